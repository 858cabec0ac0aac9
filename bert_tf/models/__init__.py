"""The model: pure functions, layers, the encoder, heads, and a functional model a task."""

# Before any module of the package, so that none is half imported when Keras registers them all.
import keras as _keras  # noqa: F401
from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from bert_tf.models.device_layout import layout_map as layout_map
    from bert_tf.models.encoder import bert_encoder as bert_encoder
    from bert_tf.models.encoder import layer_outputs as layer_outputs
    from bert_tf.models.feature_extraction import encoder_features as encoder_features
    from bert_tf.models.freezing import freeze as freeze
    from bert_tf.models.freezing import frozen_layers as frozen_layers
    from bert_tf.models.lora import add_lora as add_lora
    from bert_tf.models.lora import merge_lora as merge_lora
    from bert_tf.models.rollout import attention_rollout as attention_rollout
    from bert_tf.models.task_models import HEADS as HEADS
    from bert_tf.models.task_models import bert_classifier as bert_classifier
    from bert_tf.models.task_models import bert_multiple_choice as bert_multiple_choice
    from bert_tf.models.task_models import (
        bert_next_sentence_predictor as bert_next_sentence_predictor,
    )
    from bert_tf.models.task_models import bert_pretrainer as bert_pretrainer
    from bert_tf.models.task_models import bert_sentence_encoder as bert_sentence_encoder
    from bert_tf.models.task_models import bert_span_labeler as bert_span_labeler
    from bert_tf.models.task_models import bert_token_classifier as bert_token_classifier
