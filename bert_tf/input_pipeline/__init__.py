"""Records to batches: tf.data pipelines, what is checked before training, dynamic masks."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from bert_tf.input_pipeline.baselines import unigram_cross_entropy as unigram_cross_entropy
    from bert_tf.input_pipeline.finetuning import TaskRecords as TaskRecords
    from bert_tf.input_pipeline.masking import MaskingRule as MaskingRule
    from bert_tf.input_pipeline.masking import NextPieceRule as NextPieceRule
    from bert_tf.input_pipeline.pretraining import pretraining_dataset as pretraining_dataset
    from bert_tf.input_pipeline.record_checks import check_records as check_records
    from bert_tf.input_pipeline.record_checks import count_records as count_records
    from bert_tf.input_pipeline.row_packing import count_rows as count_rows
    from bert_tf.input_pipeline.token_batches import LengthCounts as LengthCounts
    from bert_tf.input_pipeline.token_batches import count_lengths as count_lengths
