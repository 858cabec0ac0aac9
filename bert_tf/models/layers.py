"""The layers of BERT: pure functions for the mathematics, layers for the variables.

Layers are named so that `variable.path` is the variable's name in the original's checkpoints. The
encoder keeps hidden states as a matrix of rows, as the original does: dense layers are then plain
matrix products, without reshapes.

Shapes: B batch, F from-length (queries), T to-length (keys), N heads, H head size, D hidden
size, I intermediate size, V vocabulary, S segments, R = B * F rows.
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models import fusion
from bert_tf.models.dropout import dropout, dropout_keys
from bert_tf.models.functional import (
    ACTIVATION_FUNCTIONS,
    attention_probabilities,
    check_length,
    gather_positions,
    layer_norm,
    residual_norm,
)
from bert_tf.models.word_vectors import given_word_vectors

# Dropout sites of one transformer layer: attention probabilities, attention output, layer output.
_DROPOUTS_PER_LAYER = 3

_initializer = contextvars.ContextVar("initializer", default=None)


@contextlib.contextmanager
def initial_values(initializer: keras.initializers.Initializer):
    """Within it new kernels begin with the values of an initializer, not with the original's.

    For models whose weights are about to be loaded: drawing the initial ones takes longer than
    loading does.
    """
    token = _initializer.set(initializer)
    try:
        yield
    finally:
        _initializer.reset(token)


def kernel_initializer(config: BertConfig) -> keras.initializers.Initializer:
    """Return the original's initializer, a normal cut off at two deviations."""
    initializer = _initializer.get()
    return initializer or keras.initializers.TruncatedNormal(stddev=config.initializer_range)


def project(dense: keras.layers.Dense, rows):
    """Apply a dense layer, so that the gradient of its bias is right in bfloat16 too.

    TensorFlow's kernel for CPUs sums that gradient in bfloat16 (BiasAddGrad, in 2.21), in which
    4,096 ones are 256. That of `+` sums in float32.

    Args:
        dense: built, without an activation.
        rows: float [..., units before].

    Returns:
        [..., units] of the layer's compute dtype.
    """
    dtype = dense.compute_dtype
    if dtype != "bfloat16" or dense.quantization_mode is not None:
        return dense(rows)
    product = ops.matmul(ops.cast(rows, dtype), ops.cast(dense.kernel, dtype))
    return product + ops.cast(dense.bias, dtype)


_FLOATS = ("float32", "bfloat16", "float16")


def check_policy(policy: keras.DTypePolicy, weights: Sequence[str] = _FLOATS) -> None:
    """Refuse a dtype policy that a layer does not work under.

    Args:
        policy: of the layer.
        weights: the types that its weights can have.

    Raises:
        ValueError: the weights or the computation would be of another type.
    """
    names = ", ".join(["float32", "mixed_bfloat16", "mixed_float16", *weights[1:]])
    if policy.quantization_mode is not None:
        raise ValueError(
            f"dtype: expected one of {names}, got {policy.name}; model.quantize("
            f"{policy.quantization_mode!r}) makes a quantized model of another"
        )
    if policy.variable_dtype not in weights or policy.compute_dtype not in _FLOATS:
        raise ValueError(f"dtype: expected one of {names}, got {policy.name}")


class ConfiguredLayer(keras.layers.Layer):
    """A layer whose sizes are those of a `BertConfig`.

    Args:
        config: the model's configuration.
        quantized: path of a layer within -> its policy, where it is another; for models that were
            quantized, with `model.quantize`, before they were saved.
        **kwargs: `name`, `dtype` (a policy) and `trainable` of `keras.layers.Layer`.

    Raises:
        ValueError: if config is not a BertConfig, or the policy is none that works (see
            `check_policy`).
    """

    def __init__(self, config: BertConfig, quantized: Mapping[str, Any] | None = None, **kwargs):
        # What is cast to the compute dtype is said in the code below: Keras' autocasting would take
        # away the precision of attention masks and of embeddings before their LayerNorm.
        super().__init__(autocast=False, **kwargs)
        if not isinstance(config, BertConfig):
            raise ValueError(f"config must be a BertConfig, got {type(config).__name__}")
        check_policy(self.dtype_policy)
        self.config = config
        self.quantized = {
            path: keras.dtype_policies.get(p) for path, p in (quantized or {}).items()
        }

    def add_weight(self, *args, **kwargs):
        """Add a weight, which is not cast either.

        Keras would cast those of the outermost layer of a mixed policy, autocast or not.
        """
        return super().add_weight(*args, **{"autocast": False, **kwargs})

    def make_kernel(self, name: str, shape: tuple[int, ...], **kwargs):
        """Add a weight with the original's initial values."""
        initializer = kernel_initializer(self.config)
        return self.add_weight(name=name, shape=shape, initializer=initializer, **kwargs)

    def make_dense(self, units: int, name: str) -> keras.layers.Dense:
        """Make a dense layer with the original's initial values."""
        initializer = kernel_initializer(self.config)
        policy = self.quantized.get(name, self.dtype_policy)
        return keras.layers.Dense(units, kernel_initializer=initializer, name=name, dtype=policy)

    def make_layer(self, layer_class, name: str, **kwargs):
        """Make a layer of the same configuration and precision."""
        first = f"{name}/"
        quantized = {p[len(first) :]: v for p, v in self.quantized.items() if p.startswith(first)}
        return layer_class(
            self.config, name=name, dtype=self.dtype_policy, quantized=quantized, **kwargs
        )

    def get_config(self):
        """Return the arguments."""
        values = {**super().get_config(), "config": self.config.to_dict()}
        quantized = {
            layer.path.removeprefix(f"{self.path}/"): keras.dtype_policies.serialize(
                layer.dtype_policy
            )
            for layer in self._flatten_layers(include_self=False)
            if layer.quantization_mode is not None
        }
        return {**values, "quantized": quantized} if quantized else values

    @classmethod
    def from_config(cls, config):
        """Make the layer from what `get_config` returned."""
        return super().from_config({**config, "config": BertConfig.from_dict(config["config"])})


@keras.saving.register_keras_serializable(package="bert_tf")
class LayerNorm(ConfiguredLayer):
    """Layer normalisation over the hidden size, in float32 whatever the policy.

    Variables: gamma [D], beta [D].
    """

    def build(self, input_shape=None):
        """Make the variables."""
        shape = (self.config.hidden_size,)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")

    def call(self, x):
        """Normalise [..., D]; return the compute dtype."""
        return fusion.apply(
            layer_norm,
            x,
            *map(ops.convert_to_tensor, (self.gamma, self.beta)),
            dtype=self.compute_dtype,
            epsilon=self.config.layer_norm_eps,
        )


@keras.saving.register_keras_serializable(package="bert_tf")
class Embeddings(ConfiguredLayer):
    """Sum of word, position and segment embeddings, then LayerNorm and dropout.

    Variables: word_embeddings [V, D], token_type_embeddings [S, D], position_embeddings
    [max_position_embeddings, D], LayerNorm.

    Reference: `embedding_lookup` and `embedding_postprocessor` of google-research/bert.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.layer_norm = self.make_layer(LayerNorm, "LayerNorm")

    def build(self, input_shape=None):
        """Make the variables."""
        config, width = self.config, self.config.hidden_size
        self.word_embeddings = self.make_kernel("word_embeddings", (config.vocab_size, width))
        self.token_type_embeddings = self.make_kernel(
            "token_type_embeddings", (config.type_vocab_size, width)
        )
        self.position_embeddings = self.make_kernel(
            "position_embeddings", (config.max_position_embeddings, width)
        )
        self.layer_norm.build()

    def call(self, input_ids, segment_ids, dropout_key=None, position_ids=None):
        """Embed word pieces.

        Args:
            input_ids: integer [B, F].
            segment_ids: integer [B, F].
            dropout_key: uint32 [2], or None for no dropout.
            position_ids: integer [B, F]; None for 0 to F - 1 in each row.

        Returns:
            Rows [R, D] in the compute dtype.

        Raises:
            ValueError: if F is known and above max_position_embeddings.
        """
        config = self.config
        check_length(input_ids.shape[1], config)
        batch, length = ops.shape(input_ids)
        flat_ids = ops.reshape(input_ids, (-1,))  # [R]
        flat_segment_ids = ops.reshape(segment_ids, (-1,))  # [R]
        # Summed in float32, whatever the tables are kept in.
        given = given_word_vectors()
        if given is None:
            words = ops.take(self.word_embeddings, flat_ids, axis=0)
        else:
            words = ops.reshape(given, (-1, config.hidden_size))
        words = ops.cast(words, "float32")  # [R, D]
        # Few segments: a product with one-hot rows, whose gradient is a product as well.
        one_hot = ops.one_hot(flat_segment_ids, config.type_vocab_size, dtype="float32")  # [R, S]
        segments = ops.matmul(one_hot, ops.cast(self.token_type_embeddings, "float32"))  # [R, D]
        positions = ops.convert_to_tensor(self.position_embeddings)  # [max_position_embeddings, D]
        if position_ids is None:
            positions = positions[None, :length]  # [1, F, D]
        else:
            positions = ops.take(positions, position_ids, axis=0)  # [B, F, D]
        positions = ops.cast(positions, "float32")
        embedded = ops.reshape(words + segments, (batch, length, config.hidden_size)) + positions
        embedded = ops.reshape(embedded, (-1, config.hidden_size))  # [R, D]
        return dropout(self.layer_norm(embedded), config.hidden_dropout_prob, dropout_key)


@keras.saving.register_keras_serializable(package="bert_tf")
class SelfAttention(ConfiguredLayer):
    """Multi-head attention of a sequence to itself, before the output projection.

    Variables: query, key, value, each a dense layer with kernel [D, N * H].

    Reference: `attention_layer` of google-research/bert `modeling.py`.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.query = self.make_dense(config.hidden_size, "query")
        self.key = self.make_dense(config.hidden_size, "key")
        self.value = self.make_dense(config.hidden_size, "value")

    def build(self, input_shape=None):
        """Make the variables."""
        for layer in (self.query, self.key, self.value):
            layer.build((None, self.config.hidden_size))

    def call(self, rows, adder, dropout_key=None):
        """Attend.

        Args:
            rows: float [R, D].
            adder: float32 [B, 1, 1 or F, F], see `attention_adder`.
            dropout_key: uint32 [2], or None for no dropout.

        Returns:
            (context, probabilities): rows [R, D], and float32 [B, N, F, T] before dropout.
        """
        config = self.config
        heads = config.num_attention_heads
        shape = (ops.shape(adder)[0], ops.shape(adder)[-1], heads, config.hidden_size // heads)
        if fusion.is_fusing() and fusion.fused_kernels is not None:
            return self._fused(rows, adder, dropout_key, shape), None
        query = ops.reshape(project(self.query, rows), shape)  # [B, F, N, H]
        key = ops.reshape(project(self.key, rows), shape)  # [B, T, N, H]
        value = ops.reshape(project(self.value, rows), shape)  # [B, T, N, H]
        probabilities = attention_probabilities(query, key, adder)  # [B, N, F, T]
        dropped = dropout(probabilities, config.attention_probs_dropout_prob, dropout_key)
        dropped = ops.cast(dropped, self.compute_dtype)
        context = ops.einsum("BNFT,BTNH->BFNH", dropped, value)  # [B, F, N, H]
        return ops.reshape(context, (-1, config.hidden_size)), probabilities

    def _fused(self, rows, adder, dropout_key, shape):
        """Attend while fusing; return rows [R, D]."""
        config = self.config
        batch, length, heads, size = shape
        layers = (self.query, self.key, self.value)
        if any(layer.quantization_mode for layer in layers):
            projected = ops.concatenate([layer(rows) for layer in layers], axis=-1)
        else:  # one product, and one for each gradient, in place of three
            kernel = ops.concatenate([ops.convert_to_tensor(x.kernel) for x in layers], axis=1)
            bias = ops.concatenate([ops.convert_to_tensor(x.bias) for x in layers], axis=0)
            projected = ops.matmul(rows, ops.cast(kernel, self.compute_dtype))
            projected = projected + ops.cast(bias, self.compute_dtype)  # [R, 3 D]; as in `project`
        projected = ops.reshape(projected, (batch, length, 3, heads, size))
        query, key, value = ops.unstack(ops.transpose(projected, (2, 0, 3, 1, 4)))  # [B, N, F, H]
        scores = ops.matmul(query, ops.swapaxes(key, 2, 3))  # [B, N, F, T]
        weights = fusion.fused_kernels.attention_weights(
            scores,
            adder,
            dropout_key,
            config.attention_probs_dropout_prob,
            1.0 / math.sqrt(size),
        )
        context = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))  # [B, F, N, H]
        return ops.reshape(context, (-1, config.hidden_size))


@keras.saving.register_keras_serializable(package="bert_tf")
class ResidualOutput(ConfiguredLayer):
    """Dense layer back to the hidden size, dropout, residual sum, LayerNorm (post-LN).

    Variables: dense with kernel [D or I, D], LayerNorm.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.dense = self.make_dense(config.hidden_size, "dense")
        self.layer_norm = self.make_layer(LayerNorm, "LayerNorm")

    def build(self, input_shape):
        """Make the variables; input_shape [R, D or I]."""
        self.dense.build(input_shape)
        self.layer_norm.build()

    def call(self, rows, residual, dropout_key=None):
        """Project rows [R, D or I] and join the residual [R, D]; return rows [R, D]."""
        norm = self.layer_norm
        return fusion.apply(
            residual_norm,
            project(self.dense, rows),
            residual,
            *map(ops.convert_to_tensor, (norm.gamma, norm.beta)),
            *(() if dropout_key is None else (dropout_key,)),
            dtype=self.compute_dtype,
            epsilon=self.config.layer_norm_eps,
            rate=self.config.hidden_dropout_prob,
        )


@keras.saving.register_keras_serializable(package="bert_tf")
class Attention(ConfiguredLayer):
    """Self-attention with its output projection. Variables: self, output."""

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.self_attention = self.make_layer(SelfAttention, "self")
        self.residual_output = self.make_layer(ResidualOutput, "output")

    def build(self, input_shape=None):
        """Make the variables."""
        self.self_attention.build()
        self.residual_output.build((None, self.config.hidden_size))

    def call(self, rows, adder, dropout_keys=None):
        """Attend from rows [R, D]; return (rows [R, D], probabilities [B, N, F, T])."""
        context, probabilities = self.self_attention(rows, adder, _pick(dropout_keys, 0))
        return self.residual_output(context, rows, _pick(dropout_keys, 1)), probabilities


@keras.saving.register_keras_serializable(package="bert_tf")
class Intermediate(ConfiguredLayer):
    """The wide dense layer with the activation. Variables: dense with kernel [D, I]."""

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.dense = self.make_dense(config.intermediate_size, "dense")

    def build(self, input_shape=None):
        """Make the variables."""
        self.dense.build((None, self.config.hidden_size))

    def call(self, rows):
        """Map rows [R, D] to [R, I]."""
        activation = ACTIVATION_FUNCTIONS[self.config.hidden_act]
        return fusion.apply(activation, project(self.dense, rows), dtype=self.compute_dtype)


@keras.saving.register_keras_serializable(package="bert_tf")
class TransformerLayer(ConfiguredLayer):
    """One layer of the encoder. Variables: attention, intermediate, output.

    Reference: `transformer_model` of google-research/bert `modeling.py`.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.attention = self.make_layer(Attention, "attention")
        self.intermediate = self.make_layer(Intermediate, "intermediate")
        self.residual_output = self.make_layer(ResidualOutput, "output")

    def build(self, input_shape=None):
        """Make the variables."""
        self.attention.build()
        self.intermediate.build()
        self.residual_output.build((None, self.config.intermediate_size))

    def call(self, rows, adder, dropout_keys=None):
        """Transform a sequence.

        Args:
            rows: float [R, D].
            adder: float32 [B, 1, 1 or F, F], see `attention_adder`.
            dropout_keys: uint32 [3, 2], or None for no dropout.

        Returns:
            (rows [R, D], attention probabilities float32 [B, N, F, T]).
        """
        attended, probabilities = self.attention(rows, adder, dropout_keys)
        inner = self.intermediate(attended)  # [R, I]
        return self.residual_output(inner, attended, _pick(dropout_keys, 2)), probabilities


def recomputed_layers(choice: str | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the numbers of the layers whose activations are computed anew in the backward pass.

    Args:
        choice: "none", "all", "every_K" for layers 0, K, 2K and so on, or their numbers from 0: a
            sequence, or a text as "0,2,5".
        num_layers: layers of the encoder.

    Raises:
        ValueError: it is none of these, or there is no such layer.
    """
    if choice == "none":
        return ()
    every = re.fullmatch("all|every_([1-9][0-9]*)", choice) if isinstance(choice, str) else None
    if every:
        return tuple(range(0, num_layers, int(every[1] or 1)))
    parts = choice.split(",") if isinstance(choice, str) else choice
    # What is no number is not in the range either.
    numbers = [n if type(n) is int else int(n) if str(n).strip().isdecimal() else -1 for n in parts]
    if not all(0 <= n < num_layers for n in numbers):
        raise ValueError(
            f"recompute: expected none, all, every_K or numbers of layers from 0 to "
            f"{num_layers - 1}, got {choice!r}"
        )
    return tuple(sorted(set(numbers)))


@keras.saving.register_keras_serializable(package="bert_tf")
class Encoder(ConfiguredLayer):
    """The stack of transformer layers. Variables: layer_0, layer_1, ...

    Args:
        config: the model's configuration.
        recompute: layers of which training keeps the input alone, and computes the rest again for
            the gradients: less memory, more time, the same results. See `recomputed_layers`.
        **kwargs: `name`, `dtype` (a policy) and `trainable` of `keras.layers.Layer`.

    Raises:
        ValueError: if config is not a BertConfig, or has no such layers.
    """

    def __init__(self, config: BertConfig, recompute: str | Sequence[int] = "none", **kwargs):
        super().__init__(config, **kwargs)
        self.recompute = recomputed_layers(recompute, config.num_hidden_layers)
        self.transformer_layers = [
            self.make_layer(TransformerLayer, f"layer_{index}")
            for index in range(config.num_hidden_layers)
        ]

    @property
    def num_dropouts(self) -> int:
        """How many dropout keys a call takes."""
        return _DROPOUTS_PER_LAYER * len(self.transformer_layers)

    def build(self, input_shape=None):
        """Make the variables."""
        for layer in self.transformer_layers:
            layer.build()

    def call(self, rows, adder, dropout_keys=None, training=None):
        """Run all layers.

        Args:
            rows: float [R, D].
            adder: float32 [B, 1, 1 or F, F], see `attention_adder`.
            dropout_keys: uint32 [num_dropouts, 2], or None for no dropout.
            training: whether gradients will be computed.

        Returns:
            (rows of each layer: list of L [R, D]; probabilities: list of L float32 [B, N, F, T],
            None in training for layers that are recomputed).
        """
        all_rows, all_probabilities = [], []
        for index, layer in enumerate(self.transformer_layers):
            first = _DROPOUTS_PER_LAYER * index
            keys = dropout_keys
            if keys is not None:
                keys = keys[first : first + _DROPOUTS_PER_LAYER]
            if training and index in self.recompute:
                rows, probabilities = _recomputed(layer, adder, keys)(rows), None
            else:
                rows, probabilities = layer(rows, adder, keys)
            all_rows.append(rows)
            all_probabilities.append(probabilities)
        return all_rows, all_probabilities

    def get_config(self):
        """Return the arguments."""
        return {**super().get_config(), "recompute": list(self.recompute)}


def _recomputed(layer, adder, keys):
    """Return the function from a layer's input rows to its output that keeps nothing in between.

    The dropout keys come from outside, so that the second pass has the masks of the first.
    """

    def run(rows):
        return layer(rows, adder, keys)[0]

    return keras.remat(run)


@keras.saving.register_keras_serializable(package="bert_tf")
class Pooler(ConfiguredLayer):
    """Dense layer with tanh over the first token. Variables: dense with kernel [D, D].

    A left-to-right model pools the last token that is no padding: its first sees nothing but
    itself. The paper does not say what it did.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.dense = self.make_dense(config.hidden_size, "dense")

    def build(self, input_shape=None):
        """Make the variables."""
        self.dense.build((None, self.config.hidden_size))

    def call(self, sequence, input_mask, positions=None):
        """Pool rows.

        Args:
            sequence: float [B, F, D].
            input_mask: integer [B, F], with its padding at the end.
            positions: integer [B, K], what to pool of rows that hold several sequences; None for
                the first token, or the last.

        Returns:
            [B, D], or [B, K, D] of `positions`.
        """
        if positions is not None:
            rows = gather_positions(sequence, positions)
            pooled = ops.tanh(project(self.dense, rows))  # [B * K, D]
            return ops.reshape(pooled, (*ops.shape(positions), self.config.hidden_size))
        first = sequence[:, 0]
        if self.config.left_to_right:
            last = ops.sum(ops.cast(input_mask, "int32"), axis=1) - 1  # [B]
            last = ops.maximum(last, 0)[:, None, None]  # of a row of padding alone, the first
            first = ops.take_along_axis(sequence, last, axis=1)[:, 0]  # [B, D]
        return ops.tanh(project(self.dense, first))


@keras.saving.register_keras_serializable(package="bert_tf")
class Dropout(keras.layers.Layer):
    """Dropout before a head, with masks of its own `seed_generator`; see `dropout`.

    Args:
        rate: the probability to drop an element.
        **kwargs: `name` and `dtype` (a policy) of `keras.layers.Layer`.

    Raises:
        ValueError: if rate is not in [0, 1).
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate!r}")
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator(name="dropout_seed")
        self.built = True

    def call(self, x, training=None):
        """Drop elements of x in training."""
        if not training or self.rate == 0:
            return x
        return dropout(x, self.rate, dropout_keys(self.seed_generator.next(), 1)[0])

    def compute_output_spec(self, x, training=None):
        """Return the shape and type of x."""
        return keras.KerasTensor(x.shape, x.dtype)

    def save_own_variables(self, store):
        """Save the state of the generator, which Keras leaves out of its files."""
        store["dropout_seed"] = self.seed_generator.state.numpy()

    def load_own_variables(self, store):
        """Load the state of the generator."""
        self.seed_generator.state.assign(store["dropout_seed"])

    def get_config(self):
        """Return the arguments."""
        return {**super().get_config(), "rate": self.rate}


def _pick(keys, index):
    return None if keys is None else keys[index]
