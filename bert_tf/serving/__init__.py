"""Strings in, answers out: served models, SavedModels, files of other runtimes, `Predictor`."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from bert_tf.serving.entity_tagging import EntityTagger as EntityTagger
    from bert_tf.serving.explanations import Explanation as Explanation
    from bert_tf.serving.load import load_served_model as load_served_model
    from bert_tf.serving.onnx import export_onnx as export_onnx
    from bert_tf.serving.onnx import load_onnx as load_onnx
    from bert_tf.serving.openvino import export_openvino as export_openvino
    from bert_tf.serving.openvino import load_openvino as load_openvino
    from bert_tf.serving.predictor import Predictor as Predictor
    from bert_tf.serving.question_answering import QuestionAnswerer as QuestionAnswerer
    from bert_tf.serving.saved_model import export_saved_model as export_saved_model
    from bert_tf.serving.sentence_transformers import (
        save_sentence_transformers as save_sentence_transformers,
    )
    from bert_tf.serving.text_models import Classifier as Classifier
    from bert_tf.serving.text_models import Embedder as Embedder
    from bert_tf.serving.text_models import FillMask as FillMask
    from bert_tf.serving.text_models import MultiLabelClassifier as MultiLabelClassifier
    from bert_tf.serving.text_models import MultipleChoice as MultipleChoice
    from bert_tf.serving.text_models import NextSentence as NextSentence
    from bert_tf.serving.text_models import Regressor as Regressor
    from bert_tf.serving.tflite import export_tflite as export_tflite
    from bert_tf.serving.tflite import load_tflite as load_tflite
