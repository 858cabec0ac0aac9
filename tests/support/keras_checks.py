"""The checks of layers and models that Keras and KerasHub have for their own, called on ours.

    KERAS_BACKEND=jax python -m unittest tests.support.keras_checks

Of KerasHub they run where it is installed.

Not called are those about what ours are not: of sparse and ragged inputs, of masks that Keras hands
from layer to layer (ours are inputs), and KerasHub's of backbones, tasks, presets, tokenizers and
preprocessors, which want its own classes and their attributes. KerasHub's of precision wants
outputs in the compute dtype, which logits are not. On torch neither looks at precision without a
GPU. Layers of several inputs are checked in the models that hold them; what quantizing and saving
models does is in `policy_checks`.
"""

import importlib.util
import sys
import types
import unittest

import keras
import numpy as np
from keras import ops
from keras.src.testing import TestCase

from bert_tf.models.bilstm_tagger import ScalarMix, ToMask
from bert_tf.models.encoder import Bert
from bert_tf.models.heads import (
    ClassificationHead,
    MergeChoices,
    MultipleChoiceHead,
    NextSentenceScope,
    SpanHead,
    TokenClassificationHead,
    Transform,
)
from bert_tf.models.layers import Dropout, Intermediate, LayerNorm
from bert_tf.models.task_models import HEADS
from tests.support.policy_checks import CONFIG, make_model

WIDTH, LENGTH = CONFIG.hidden_size, 7
OF_CONFIG = {"config": CONFIG}


@keras.saving.register_keras_serializable(package="bert_tf_tests")
class PackedBert(Bert):
    """The encoder as a layer of one input, as these checks want it: [B, 3, F] to [B, F + 1, D].

    Takes ids, mask and segments one after another; gives sequence and pooled output so.
    """

    def build(self, input_shape=None):
        super().build()

    def call(self, packed, training=None):
        names = ("input_ids", "input_mask", "segment_ids")
        inputs = {name: packed[:, index] for index, name in enumerate(names)}
        found = super().call(inputs, training=training)
        pooled = ops.expand_dims(found["pooled_output"], 1)
        return ops.concatenate([found["sequence_output"], pooled], axis=1)

    def compute_output_spec(self, packed, training=None):
        batch, _, length = packed.shape
        return keras.KerasTensor((batch, length + 1, WIDTH), self.compute_dtype)


def packed_inputs():
    random = np.random.default_rng(5)
    ids, segments = random.integers(0, 37, (2, LENGTH)), random.integers(0, 3, (2, LENGTH))
    mask = np.arange(LENGTH) < [[LENGTH], [3]]
    return np.stack([ids, mask, segments], axis=1).astype(np.int32)


# Layer, its arguments, the shape of its input and that of its output, and what else to check.
OF_COMPUTE_DTYPE = [
    (LayerNorm, OF_CONFIG, (5, WIDTH), (5, WIDTH), {"expected_num_trainable_weights": 2}),
    (Transform, OF_CONFIG, (5, WIDTH), (5, WIDTH), {"expected_num_trainable_weights": 4}),
    (Intermediate, OF_CONFIG, (5, WIDTH), (5, 19), {"expected_num_trainable_weights": 2}),
    (ScalarMix, {}, (2, 5, 3, WIDTH), (2, 5, WIDTH), {"expected_num_trainable_weights": 2}),
]
OF_LOGITS = [
    (layer, OF_CONFIG | arguments, shape, expected, {"expected_num_trainable_weights": 2})
    for layer, arguments, shape, expected in (
        (ClassificationHead, {"units": 3}, (5, WIDTH), (5, 3)),
        (MultipleChoiceHead, {"units": 1}, (5, WIDTH), (5, 1)),
        (TokenClassificationHead, {"units": 3}, (2, 5, WIDTH), (2, 5, 3)),
        (NextSentenceScope, {}, (5, WIDTH), (5, 2)),
    )
]
WITHOUT_WEIGHTS = [
    (Dropout, {"rate": 0.3}, (5, WIDTH), (5, WIDTH), {"run_training_check": False}),
    (MergeChoices, {}, (2, 5, 3), (None, 3), {"run_training_check": False}),
    (ToMask, {}, (2, 5), (2, 5), {"run_training_check": False}),
]
SPAN_LOGITS = {name: (2, 5) for name in ("start_logits", "end_logits")}


def encoder_check():
    """What is the same in both checks of the encoder."""
    return {
        "init_kwargs": OF_CONFIG,
        "input_data": ops.convert_to_tensor(packed_inputs()),
        "expected_output_shape": (2, LENGTH + 1, WIDTH),
    }


class KerasChecks(TestCase):
    def test_layers(self):
        for layer, arguments, shape, expected, others in (
            *OF_COMPUTE_DTYPE,
            *OF_LOGITS,
            *WITHOUT_WEIGHTS,
        ):
            with self.subTest(layer.__name__):
                self.run_layer_test(
                    layer, arguments, shape, expected_output_shape=expected, **others
                )

    def test_span_head(self):
        self.run_layer_test(
            SpanHead,
            OF_CONFIG,
            (2, 5, WIDTH),
            expected_output_shape=SPAN_LOGITS,
            run_training_check=False,  # these checks have one loss for one output
        )

    def test_encoder(self):
        self.run_layer_test(
            PackedBert,
            **encoder_check(),
            expected_num_seed_generators=1,
            expected_num_non_trainable_weights=0,
        )

    def test_models(self):
        for kind in HEADS:
            with self.subTest(kind):
                self.run_class_serialization_test(make_model(kind))


if importlib.util.find_spec("keras_hub"):
    # What its checks of data pipelines need, and its wheel does not bring.
    if importlib.util.find_spec("grain") is None:
        sys.modules["grain"] = types.ModuleType("grain")
    from keras_hub.src.tests.test_case import TestCase as HubTestCase

    class KerasHubChecks(HubTestCase):
        def test_layers(self):
            for row in (*OF_COMPUTE_DTYPE, *OF_LOGITS):
                layer, arguments, shape, expected, others = row
                with self.subTest(layer.__name__):
                    self.run_layer_test(
                        layer,
                        arguments,
                        input_data=ops.ones(shape),
                        expected_output_shape=expected,
                        run_precision_checks=row in OF_COMPUTE_DTYPE,
                        **others,
                    )

        def test_span_head(self):
            self.run_layer_test(
                SpanHead,
                OF_CONFIG,
                input_data=ops.ones((2, 5, WIDTH)),
                expected_output_shape=SPAN_LOGITS,
                expected_num_trainable_weights=2,
                run_training_check=False,
                run_precision_checks=False,
            )

        def test_encoder(self):
            self.run_layer_test(
                PackedBert,
                **encoder_check(),
                expected_num_trainable_weights=len(make_model("encoder").trainable_weights),
                expected_num_non_trainable_variables=1,  # the state of its masks
            )

        def test_models(self):
            for kind in HEADS:
                with self.subTest(kind):
                    self.run_serialization_test(make_model(kind))


if __name__ == "__main__":
    unittest.main()
