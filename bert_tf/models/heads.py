"""Layers that turn the encoder's output into the logits of a task.

Shapes: B batch, F sequence length, P predictions, C choices, W windows of the document that has
most, D hidden size, V vocabulary, K logits.
"""

import keras
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models import fusion
from bert_tf.models.functional import (
    ACTIVATION_FUNCTIONS,
    MASKED_SCORE,
    check_pooling,
    gather_positions,
    pool_states,
    unit_vectors,
)
from bert_tf.models.layers import ConfiguredLayer, LayerNorm, check_policy, project


@keras.saving.register_keras_serializable(package="bert_tf")
class Transform(ConfiguredLayer):
    """Dense layer, activation, LayerNorm: what comes before the vocabulary.

    Variables: dense with kernel [D, D], LayerNorm.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.dense = self.make_dense(config.hidden_size, "dense")
        self.layer_norm = self.make_layer(LayerNorm, "LayerNorm")

    def build(self, input_shape=None):
        """Make the variables."""
        self.dense.build((None, self.config.hidden_size))
        self.layer_norm.build()

    def call(self, rows):
        """Map [..., D] to [..., D]."""
        activation = ACTIVATION_FUNCTIONS[self.config.hidden_act]
        rows = fusion.apply(activation, project(self.dense, rows), dtype=self.compute_dtype)
        return self.layer_norm(rows)


@keras.saving.register_keras_serializable(package="bert_tf")
class MaskedLMHead(ConfiguredLayer):
    """Logits over the vocabulary at chosen positions; shares the word embeddings.

    Variables: transform, output_bias [V].

    Reference: `get_masked_lm_output` of google-research/bert `run_pretraining.py`.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.transform = self.make_layer(Transform, "transform")

    def build(self, input_shape=None):
        """Make the variables."""
        self.transform.build()
        self.output_bias = self.add_weight(
            name="output_bias", shape=(self.config.vocab_size,), initializer="zeros"
        )

    def call(self, sequence_output, embedding_table, positions):
        """Predict word pieces.

        Args:
            sequence_output: float [B, F, D].
            embedding_table: float [V, D].
            positions: integer [B, P]; padding predictions point anywhere, as to 0.

        Returns:
            float32 logits [B, P, V].
        """
        # Gathering first: the products below, the costliest of all, run over P positions, not F.
        rows = self.transform(gather_positions(sequence_output, positions))  # [B * P, D]
        table = ops.cast(embedding_table, self.compute_dtype)
        logits = ops.matmul(rows, ops.transpose(table))  # [B * P, V]
        logits = ops.cast(logits, "float32") + ops.cast(self.output_bias, "float32")
        return ops.reshape(logits, (*ops.shape(positions), self.config.vocab_size))


@keras.saving.register_keras_serializable(package="bert_tf")
class BiLstm(ConfiguredLayer):
    """A bidirectional LSTM over an encoder's output: the paper's "+ BiLSTM", randomly initialized.

    Each direction has D / 2 units, so that what reads it reads D as before; the paper does not say
    how many it had. Variables: lstm, with forward_lstm and backward_lstm.

    Args:
        config: the model's configuration.
        return_sequences: whether to return the outputs at each position, or the last ones alone.
        **kwargs: `name` and `dtype` (a policy) of `keras.layers.Layer`.

    Raises:
        ValueError: as for `ConfiguredLayer`; or the policy has weights of half precision.

    Reference: the paper, section 5.1.
    """

    def __init__(self, config: BertConfig, return_sequences: bool, **kwargs):
        super().__init__(config, **kwargs)
        check_policy(self.dtype_policy, ("float32",))  # Keras' initial values are in no other
        self.return_sequences = return_sequences
        lstm = keras.layers.LSTM(
            config.hidden_size // 2,
            return_sequences=return_sequences,
            name="lstm",
            dtype=self.dtype_policy,
        )
        self.lstm = keras.layers.Bidirectional(lstm, name="lstm", dtype=self.dtype_policy)

    def build(self, sequence_shape=None, input_mask_shape=None):
        """Make the variables."""
        self.lstm.build((None, None, self.config.hidden_size))

    def call(self, sequence, input_mask):
        """Map [B, F, D], with input_mask integer [B, F], to [B, F, D], or [B, D] of the last."""
        outputs = self.lstm(sequence, mask=ops.not_equal(input_mask, 0))
        return ops.copy(outputs)  # without the mask that Keras attaches, of which heads would warn

    def compute_output_spec(self, sequence, input_mask):
        """Return the shape and type of what `call` returns."""
        batch, length, size = sequence.shape
        shape = (batch, length, size) if self.return_sequences else (batch, size)
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self):
        """Return the arguments."""
        return {**super().get_config(), "return_sequences": self.return_sequences}


class LinearHead(ConfiguredLayer):
    """A linear layer over the last axis, laid out as the original's heads are.

    Variables: output_weights [K, D], output_bias [K].

    Args:
        config: the model's configuration.
        units: K, the number of logits.
        **kwargs: `name`, `dtype` (a policy) and `trainable` of `keras.layers.Layer`.

    Raises:
        ValueError: if units is not a positive integer.
    """

    def __init__(self, config: BertConfig, units: int, **kwargs):
        super().__init__(config, **kwargs)
        if isinstance(units, bool) or not isinstance(units, int) or units < 1:
            raise ValueError(f"num_labels must be an integer of at least 1, got {units!r}")
        self.units = units

    def build(self, input_shape=None):
        """Make the variables."""
        self.output_weights = self.make_kernel(
            "output_weights", (self.units, self.config.hidden_size)
        )
        self.output_bias = self.add_weight(
            name="output_bias", shape=(self.units,), initializer="zeros"
        )

    def call(self, x):
        """Map [..., D] to float32 logits [..., K]."""
        x = ops.cast(x, "float32")
        weights = ops.cast(self.output_weights, "float32")
        return ops.matmul(x, ops.transpose(weights)) + ops.cast(self.output_bias, "float32")

    def compute_output_spec(self, x):
        """Return the shape and type of what `call` returns."""
        return keras.KerasTensor((*x.shape[:-1], self.units), "float32")

    def get_config(self):
        """Return the arguments."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="bert_tf")
class NextSentenceHead(LinearHead):
    """Whether the second segment follows the first: logits of 0 (it does) and 1 (random).

    Variables: output_weights [2, D], output_bias [2].

    Reference: `get_next_sentence_output` of google-research/bert `run_pretraining.py`.
    """

    def __init__(self, config: BertConfig, units: int = 2, **kwargs):
        super().__init__(config, units, **kwargs)


@keras.saving.register_keras_serializable(package="bert_tf")
class ClassificationHead(LinearHead):
    """Logits of labels from the pooled output.

    Reference: `create_model` of google-research/bert `run_classifier.py`.
    """


@keras.saving.register_keras_serializable(package="bert_tf")
class TokenClassificationHead(LinearHead):
    """Logits of labels at each position. Reference: the paper, section 5.3."""


@keras.saving.register_keras_serializable(package="bert_tf")
class MultipleChoiceHead(LinearHead):
    """A score of each choice from its pooled output. Reference: the paper, section 4.4."""


@keras.saving.register_keras_serializable(package="bert_tf")
class SpanHead(ConfiguredLayer):
    """Logits of a span's start and end at each position, under the original's name "cls".

    Variables: squad, with output_weights [2, D] and output_bias [2].

    Reference: `create_model` of google-research/bert `run_squad.py`.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.squad = LinearHead(config, 2, name="squad", dtype=self.dtype_policy)

    def build(self, input_shape=None):
        """Make the variables."""
        self.squad.build()

    def call(self, sequence_output):
        """Map [B, F, D] to a dict of float32 [B, F]: "start_logits" and "end_logits"."""
        logits = self.squad(sequence_output)  # [B, F, 2]
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


@keras.saving.register_keras_serializable(package="bert_tf")
class NextSentenceScope(ConfiguredLayer):
    """The next sentence head alone, under the original's name "cls".

    Variables: seq_relationship.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.seq_relationship = self.make_layer(NextSentenceHead, "seq_relationship")

    def build(self, input_shape=None):
        """Make the variables."""
        self.seq_relationship.build()

    def call(self, pooled_output):
        """Map [B, D] to float32 logits [B, 2]."""
        return self.seq_relationship(pooled_output)


@keras.saving.register_keras_serializable(package="bert_tf")
class MergeChoices(keras.layers.Layer):
    """Makes rows of choices, or of windows: [B, C, F] to [B * C, F]."""

    def call(self, x):
        """Reshape x."""
        return ops.reshape(x, (-1, ops.shape(x)[2]))

    def compute_output_spec(self, x):
        """Return the shape and type of what `call` returns."""
        return keras.KerasTensor((None, x.shape[2]), x.dtype)


@keras.saving.register_keras_serializable(package="bert_tf")
class SplitChoices(keras.layers.Layer):
    """Makes choices of rows again: [B * C, 1] to [B, C], as in `like` [B, C, F]."""

    def __init__(self, **kwargs):
        # Logits stay float32 under a mixed policy.
        super().__init__(autocast=False, **kwargs)

    def call(self, x, like):
        """Reshape x."""
        return ops.reshape(x, ops.shape(like)[:2])

    def compute_output_spec(self, x, like):
        """Return the shape and type of what `call` returns."""
        return keras.KerasTensor(like.shape[:2], x.dtype)


@keras.saving.register_keras_serializable(package="bert_tf")
class WindowPooling(ConfiguredLayer):
    """One vector for each document, of the pooled outputs of its windows.

    "mean" and "max" are over the windows, "first" is the first window's. "attention" is a mean
    whose weights are the softmax over the windows of their products with a vector that is learnt.
    That is the attention of hierarchical networks, whose tanh layer the pooler is already. The
    vector begins as zeros, and so the weights as equal ones. Windows without a token are padding,
    and count nowhere. All is computed in float32. Variables: with "attention" query [D].

    Args:
        config: the model's configuration, with a window_pooling.
        **kwargs: `name` and `dtype` (a policy) of `keras.layers.Layer`.

    Raises:
        ValueError: as for `ConfiguredLayer`; or the configuration has no window_pooling.

    Reference: Yang et al., Hierarchical Attention Networks for Document Classification (2016),
    section 2.2, equations 8 to 10; the other three are of Pappagari et al., arXiv 1910.10781, and
    Sun et al., arXiv 1905.05583, section 5.3.1.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        if config.window_pooling is None:
            raise ValueError("window_pooling: the configuration has none")

    def build(self, rows_shape=None, input_mask_shape=None):
        """Make the variables."""
        if self.config.window_pooling == "attention":
            self.query = self.add_weight(
                name="query", shape=(self.config.hidden_size,), initializer="zeros"
            )

    def call(self, rows, input_mask):
        """Pool.

        Args:
            rows: float [B * W, D], of the windows of one document after another.
            input_mask: integer [B, W, F], 1 for tokens and 0 for padding.

        Returns:
            [B, D] in the compute dtype.
        """
        is_real = ops.any(ops.not_equal(input_mask, 0), axis=-1)  # [B, W]
        shape = (*ops.shape(is_real), self.config.hidden_size)
        windows = ops.reshape(ops.cast(rows, "float32"), shape)  # [B, W, D]
        pooling = self.config.window_pooling
        if pooling == "first":
            pooled = ops.sum(windows[:, :1], axis=1)  # of no document at all too
        elif pooling == "max":
            # A document of padding alone, as a batch may be filled up with, stays finite.
            lowest = ops.where(is_real, 0.0, MASKED_SCORE)
            pooled = ops.max(windows + ops.expand_dims(lowest, -1), axis=1)
        else:
            # Not [:, :, None], which TFLite has not for free sizes.
            shares = ops.expand_dims(self._shares(windows, is_real), -1)
            pooled = ops.sum(windows * shares, axis=1)
        return ops.cast(pooled, self.compute_dtype)  # [B, D]

    def _shares(self, windows, is_real):
        """Return what each window counts for, float32 [B, W], which sum to 1."""
        scores = ops.where(is_real, 0.0, MASKED_SCORE)
        if self.config.window_pooling == "attention":
            scores += ops.matmul(windows, ops.cast(self.query, "float32"))
        # Not ops.softmax, which warns where there is one window.
        weights = ops.exp(scores - ops.max(scores, axis=-1, keepdims=True))
        return weights / ops.sum(weights, axis=-1, keepdims=True)

    def compute_output_spec(self, rows, input_mask):
        """Return the shape and type of what `call` returns."""
        shape = (input_mask.shape[0], self.config.hidden_size)
        return keras.KerasTensor(shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="bert_tf")
class SentencePooling(keras.layers.Layer):
    """Makes a vector of a text: [B, F, D] of its pieces and the mask [B, F] to float32 [B, D].

    Args:
        pooling: "mean" or "max" over all pieces, [CLS] and [SEP] included, or "cls", the state of
            the first; as in sentence-transformers.
        normalize: whether vectors get length 1.
        **kwargs: `name` and `dtype` of `keras.layers.Layer`.

    Raises:
        ValueError: another pooling.
    """

    def __init__(self, pooling: str = "mean", normalize: bool = False, **kwargs):
        # Sums over a text lose too much in half precision.
        super().__init__(autocast=False, **kwargs)
        check_pooling(pooling)
        self.pooling, self.normalize = pooling, normalize

    def call(self, sequence_output, input_mask):
        """Pool the states of pieces that are no padding."""
        states = ops.cast(sequence_output, "float32")
        vectors = pool_states(states, input_mask, self.pooling)
        return unit_vectors(vectors) if self.normalize else vectors  # [B, D]

    def compute_output_spec(self, sequence_output, input_mask):
        """Return the shape and type of what `call` returns."""
        batch, _, size = sequence_output.shape
        return keras.KerasTensor((batch, size), "float32")

    def get_config(self):
        """Return the arguments."""
        arguments = {"pooling": self.pooling, "normalize": self.normalize}
        return {**super().get_config(), **arguments}


@keras.saving.register_keras_serializable(package="bert_tf")
class SplitTexts(keras.layers.Layer):
    """Makes groups of texts again: [B * C, D] to [B, C, D], as in `like` [B, C, F]."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # vectors stay float32

    def call(self, x, like):
        """Reshape x."""
        return ops.reshape(x, (*ops.shape(like)[:2], x.shape[-1]))

    def compute_output_spec(self, x, like):
        """Return the shape and type of what `call` returns."""
        return keras.KerasTensor((*like.shape[:2], x.shape[-1]), x.dtype)


@keras.saving.register_keras_serializable(package="bert_tf")
class PretrainingHeads(ConfiguredLayer):
    """The heads of pre-training, under the original's name "cls".

    Variables: predictions, and with next_sentence_prediction seq_relationship.
    """

    def __init__(self, config: BertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.predictions = self.make_layer(MaskedLMHead, "predictions")
        self.seq_relationship = None
        if config.next_sentence_prediction:
            self.seq_relationship = self.make_layer(NextSentenceHead, "seq_relationship")

    def build(self, input_shape=None):
        """Make the variables."""
        self.predictions.build()
        if self.seq_relationship is not None:
            self.seq_relationship.build()

    def call(self, encoded, positions):
        """Compute the logits of pre-training.

        Args:
            encoded: what `Bert` returned.
            positions: integer [B, P].

        Returns:
            dict: "masked_lm_logits" float32 [B, P, V]; with next_sentence_prediction
            "next_sentence_logits" float32 [B, 2], or [B, K, 2] where K are pooled of a row.
        """
        outputs = {
            "masked_lm_logits": self.predictions(
                encoded["sequence_output"], encoded["embedding_table"], positions
            )
        }
        if self.seq_relationship is not None:
            outputs["next_sentence_logits"] = self.seq_relationship(encoded["pooled_output"])
        return outputs

    def compute_output_spec(self, encoded, positions):
        """Return the shapes and types of what `call` returns."""
        shape = (*positions.shape, self.config.vocab_size)
        outputs = {"masked_lm_logits": keras.KerasTensor(shape, "float32")}
        if self.seq_relationship is not None:
            shape = (*encoded["pooled_output"].shape[:-1], 2)
            outputs["next_sentence_logits"] = keras.KerasTensor(shape, "float32")
        return outputs
