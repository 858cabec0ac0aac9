"""What a task is, its metrics, its windows and answers, without TensorFlow."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from bert_tf.tasks.answer_decoding import AnswerRule as AnswerRule
    from bert_tf.tasks.answer_decoding import decode_answers as decode_answers
    from bert_tf.tasks.calibration import fit_temperature as fit_temperature
    from bert_tf.tasks.calibration import reliability as reliability
    from bert_tf.tasks.calibration import reliability_of as reliability_of
    from bert_tf.tasks.class_report import ClassReport as ClassReport
    from bert_tf.tasks.class_report import class_report as class_report
    from bert_tf.tasks.document_windows import WindowRule as WindowRule
    from bert_tf.tasks.entity_metrics import entity_scores as entity_scores
    from bert_tf.tasks.error_analysis import LengthBin as LengthBin
    from bert_tf.tasks.error_analysis import by_length as by_length
    from bert_tf.tasks.kinds import KINDS as KINDS
    from bert_tf.tasks.kinds import Kind as Kind
    from bert_tf.tasks.kinds import get_kind as get_kind
    from bert_tf.tasks.metrics import METRICS as METRICS
    from bert_tf.tasks.retrieval_metrics import retrieval_scores as retrieval_scores
    from bert_tf.tasks.squad_metrics import evaluate_v1 as evaluate_v1
    from bert_tf.tasks.squad_metrics import evaluate_v2 as evaluate_v2
    from bert_tf.tasks.table import TASKS as TASKS
    from bert_tf.tasks.table import Task as Task
    from bert_tf.tasks.table import custom_task as custom_task
    from bert_tf.tasks.table import get_task as get_task
    from bert_tf.tasks.thresholds import best_thresholds as best_thresholds
    from bert_tf.tasks.trained_task import TrainedTask as TrainedTask
    from bert_tf.tasks.trained_task import read_trained_task as read_trained_task
