"""Records: one schema that writers and readers share, and TFRecord files, without TensorFlow."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from bert_tf.records.decoding import decode_example as decode_example
    from bert_tf.records.decoding import parse_example_fn as parse_example_fn
    from bert_tf.records.decoding import read_examples as read_examples
    from bert_tf.records.encoding import encode_examples as encode_examples
    from bert_tf.records.files import RecordFile as RecordFile
    from bert_tf.records.files import RecordWriter as RecordWriter
    from bert_tf.records.files import manifest_path as manifest_path
    from bert_tf.records.files import read_records as read_records
    from bert_tf.records.files import scan_records as scan_records
    from bert_tf.records.schema import FeatureSpec as FeatureSpec
    from bert_tf.records.schema import classification_features as classification_features
    from bert_tf.records.schema import multi_label_features as multi_label_features
    from bert_tf.records.schema import multiple_choice_features as multiple_choice_features
    from bert_tf.records.schema import pretraining_features as pretraining_features
    from bert_tf.records.schema import regression_features as regression_features
    from bert_tf.records.schema import span_features as span_features
    from bert_tf.records.schema import (
        token_classification_features as token_classification_features,
    )
    from bert_tf.records.schema import (
        unmasked_pretraining_features as unmasked_pretraining_features,
    )
