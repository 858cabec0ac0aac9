"""A tagger over features of a frozen encoder: the feature-based approach of the paper.

Shapes: B batch, F sequence length, K feature layers, D feature size, C labels.
"""

import dataclasses
from collections.abc import Callable

import keras
from keras import ops

from bert_tf.models.layers import check_policy


@dataclasses.dataclass(frozen=True)
class FeatureChoice:
    """Which hidden states are a tagger's features, and how they become one vector.

    Attributes:
        description: the words of the paper.
        layers: number of layers of the encoder -> hidden states, 0 being the embeddings.
        weighted: whether they are summed with learned weights; else they are concatenated.
        min_layers: least number of layers that the encoder must have.
    """

    description: str
    layers: Callable[[int], tuple[int, ...]]
    weighted: bool = False
    min_layers: int = 1

    def hidden_states(self, num_layers: int) -> tuple[int, ...]:
        """Return the hidden states of an encoder of `num_layers` layers, 0 being the embeddings.

        Raises:
            ValueError: the encoder has too few layers.
        """
        if num_layers < self.min_layers:
            raise ValueError(
                f"features: {self.description!r} needs at least {self.min_layers} layers, the "
                f"model has {num_layers}"
            )
        return self.layers(num_layers)


# Table 7 of the paper (named entities of CoNLL-2003, BERT-Base, dev F1): 91.0, 95.6, 94.9, 95.9,
# 96.1, 95.5; fine-tuning 96.4.
FEATURE_CHOICES = {
    "embeddings": FeatureChoice("Embeddings", lambda n: (0,)),
    "second_to_last": FeatureChoice("Second-to-Last Hidden", lambda n: (n - 1,), min_layers=2),
    "last": FeatureChoice("Last Hidden", lambda n: (n,)),
    "weighted_sum_last_four": FeatureChoice(
        "Weighted Sum Last Four Hidden", lambda n: tuple(range(n - 3, n + 1)), True, 4
    ),
    "concat_last_four": FeatureChoice(
        "Concat Last Four Hidden", lambda n: tuple(range(n - 3, n + 1)), False, 4
    ),
    "weighted_sum_all": FeatureChoice(
        "Weighted Sum All Layers", lambda n: tuple(range(1, n + 1)), True
    ),
}


@keras.saving.register_keras_serializable(package="bert_tf")
class ScalarMix(keras.layers.Layer):
    """A learned weighted sum of layers: scale * sum over k of softmax(weights)[k] * layer k.

    The paper says "weighted sum" only. This is the mix of ELMo (arXiv 1802.05365, equation 1),
    without its optional normalization. It begins as the mean of the layers.

    Variables: mix_weights [K], zeros at first; scale, 1 at first.
    """

    def build(self, input_shape):
        """Make the variables for features [B, F, K, D]."""
        self.mix_weights = self.add_weight(
            name="mix_weights", shape=(input_shape[2],), initializer="zeros"
        )
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, features):
        """Map [B, F, K, D] to [B, F, D]."""
        weights = ops.cast(ops.softmax(self.mix_weights) * self.scale, features.dtype)
        return ops.einsum("bfkd,k->bfd", features, weights)

    def compute_output_shape(self, input_shape):
        """Return [B, F, D]."""
        return (*input_shape[:2], input_shape[3])


@keras.saving.register_keras_serializable(package="bert_tf")
class ToMask(keras.layers.Layer):
    """Makes booleans of an input mask of 1 and 0."""

    def call(self, x):
        """Compare x with 0."""
        return ops.not_equal(x, 0)

    def compute_output_spec(self, x):
        """Return the shape and type of what `call` returns."""
        return keras.KerasTensor(x.shape, "bool")


def bilstm_tagger(
    feature_size: int,
    num_labels: int,
    layers_to_mix: int | None = None,
    *,
    lstm_size: int = 768,
    num_lstm_layers: int = 2,
    dropout_rate: float = 0.3,
    dtype=None,
    name: str = "bilstm_tagger",
) -> keras.Model:
    """Make a tagger of features: layers of bidirectional LSTMs, and a classifier of each position.

    The paper's is "a randomly initialized two-layer 768-dimensional BiLSTM before the
    classification layer".

    Inputs, a dict: "features" float [B, F, D], or with layers_to_mix [B, F, K, D]; "input_mask"
    integer [B, F], 1 for tokens and 0 for padding, which must be at the end: LSTMs of both
    directions pass it by, so results do not depend on it. Output: float32 logits [B, F, C].

    Where the paper is silent: each direction has `lstm_size` units, and their outputs are
    concatenated; dropout is applied to the features, between the layers and before the classifier.

    Args:
        feature_size: D, numbers of a token's vector (for a concatenation, of all layers together).
        num_labels: C.
        layers_to_mix: K, to sum so many layers with learned weights (see `ScalarMix`); None
            (default) for features that are one vector already.
        lstm_size: units of each direction.
        num_lstm_layers: bidirectional layers.
        dropout_rate: the probability to drop an element.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: a size is not a positive integer, dropout_rate is not in [0, 1), or the weights
            of the policy are not float32.

    Reference: the paper, section 5.3.
    """
    sizes = {
        "feature_size": feature_size,
        "num_labels": num_labels,
        "lstm_size": lstm_size,
        "num_lstm_layers": num_lstm_layers,
        **({} if layers_to_mix is None else {"layers_to_mix": layers_to_mix}),
    }
    for argument, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument}: expected an integer of at least 1, got {value!r}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate: expected at least 0 and below 1, got {dropout_rate!r}")
    check_policy(keras.dtype_policies.get(dtype), ("float32",))
    layers = () if layers_to_mix is None else (layers_to_mix,)
    features = keras.Input((None, *layers, feature_size), name="features")
    input_mask = keras.Input((None,), dtype="int32", name="input_mask")
    mask = ToMask(name="mask")(input_mask)
    x = features
    if layers_to_mix is not None:
        x = ScalarMix(name="scalar_mix", dtype=dtype)(x)
    x = keras.layers.Dropout(dropout_rate, name="dropout_0", dtype=dtype)(x)
    for index in range(num_lstm_layers):
        lstm = keras.layers.LSTM(lstm_size, return_sequences=True, dtype=dtype)
        x = keras.layers.Bidirectional(lstm, name=f"bilstm_{index}", dtype=dtype)(x, mask=mask)
        x = keras.layers.Dropout(dropout_rate, name=f"dropout_{index + 1}", dtype=dtype)(x)
    logits = keras.layers.Dense(num_labels, name="classifier", dtype="float32")(x)
    return keras.Model({"features": features, "input_mask": input_mask}, logits, name=name)
