"""Heads over the encoder, and the models made of both.

Shape legend: B batch, F sequence length, P predictions, D hidden size, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models.encoder import Bert, bert_encoder, encoder_inputs
from bert_tf.models.layers import ACTIVATION_FUNCTIONS, ConfiguredLayer, Dropout, LayerNorm
from bert_tf.training.losses import MaskedLMLoss, NextSentenceLoss


def gather_positions(sequence, positions):
    """Pick rows of each sequence.

    Args:
        sequence: float [B, F, D].
        positions: integer [B, P], from 0 to F - 1.

    Returns:
        float [B * P, D].
    """
    batch, length, width = ops.shape(sequence)
    offsets = ops.expand_dims(ops.arange(batch, dtype="int32") * length, 1)  # [B, 1]
    flat_positions = ops.reshape(ops.cast(positions, "int32") + offsets, (-1,))  # [B * P]
    return ops.take(ops.reshape(sequence, (-1, width)), flat_positions, axis=0)


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
        return self.layer_norm(ACTIVATION_FUNCTIONS[self.config.hidden_act](self.dense(rows)))


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
            name="output_bias",
            shape=(self.config.vocab_size,),
            initializer="zeros",
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
        logits = ops.cast(logits, "float32") + self.output_bias
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

    Reference: the paper, section 5.1.
    """

    def __init__(self, config: BertConfig, return_sequences: bool, **kwargs):
        super().__init__(config, **kwargs)
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


def _encode(config: BertConfig, inputs: dict, output: str, recompute, dtype):
    """Return "pooled_output" or "sequence_output" of a Bert, or of a BiLSTM over one."""
    pooled = output == "pooled_output"
    has_lstm = getattr(config, "bilstm", False)  # what is no BertConfig is refused by Bert
    bert = Bert(
        config,
        train_pooler=pooled and not has_lstm,
        recompute=recompute,
        name="bert",
        dtype=dtype,
    )
    encoded = bert(inputs)
    if not has_lstm:
        return encoded[output]
    lstm = BiLstm(config, return_sequences=not pooled, name="bilstm", dtype=dtype)
    return lstm(encoded["sequence_output"], inputs["input_mask"])


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
        return ops.matmul(x, ops.transpose(self.output_weights)) + self.output_bias

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
    """Makes rows of choices: [B, C, F] to [B * C, F]."""

    def call(self, x):
        """Reshape x."""
        return ops.reshape(x, (-1, ops.shape(x)[2]))

    def compute_output_spec(self, x):
        """Return the shape and type of what `call` returns."""
        return keras.KerasTensor((None, x.shape[2]), x.dtype)


@keras.saving.register_keras_serializable(package="bert_tf")
class SplitChoices(keras.layers.Layer):
    """Makes choices of rows again: [B * C, 1] to [B, C], as in `like` [B, C, F]."""

    def call(self, x, like):
        """Reshape x."""
        return ops.reshape(x, ops.shape(like)[:2])

    def compute_output_spec(self, x, like):
        """Return the shape and type of what `call` returns."""
        return keras.KerasTensor(like.shape[:2], x.dtype)


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
            "next_sentence_logits" float32 [B, 2].
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
            batch = encoded["pooled_output"].shape[0]
            outputs["next_sentence_logits"] = keras.KerasTensor((batch, 2), "float32")
        return outputs


def bert_pretrainer(
    config: BertConfig,
    *,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_pretrainer",
) -> keras.Model:
    """Make the pre-training model: encoder, masked LM head, next sentence head.

    Inputs, a dict: those of `modeling.bert_encoder`, and int32 "masked_lm_positions" [B, P].

    Outputs, a dict of float32: "masked_lm_logits" [B, P, V], "next_sentence_logits" [B, 2]. With
    `next_sentence_prediction` off the latter is missing, and the pooler, though it is there for
    fine-tuning, stays as it was initialised: nothing trains it, so its variables are not trainable.

    Args:
        config: the model's configuration.
        recompute: see `modeling.Bert`.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`, to be compiled with `pretraining_compile_arguments`.

    Raises:
        ValueError: if config is not a BertConfig, or on a call with F too long.
    """
    inputs = encoder_inputs()
    bert = Bert(
        config,
        train_pooler=config.next_sentence_prediction,
        recompute=recompute,
        name="bert",
        dtype=dtype,
    )
    encoded = bert(inputs)
    positions = keras.Input((None,), dtype="int32", name="masked_lm_positions")
    outputs = PretrainingHeads(config, name="cls", dtype=dtype)(encoded, positions)
    return keras.Model({**inputs, "masked_lm_positions": positions}, outputs, name=name)


def pretraining_compile_arguments(config: BertConfig) -> dict[str, Any]:
    """Return the losses and metrics of pre-training, as `Model.compile` takes them.

    The dataset then yields (inputs, labels, sample weights): labels are "masked_lm_logits" integer
    [B, P] and "next_sentence_logits" integer [B, 1], sample weights the masked LM weights [B, P]
    and ones [B, 1], under the same two names.

    Args:
        config: the model's configuration.

    Returns:
        dict with "loss" and "weighted_metrics".
    """
    losses: dict[str, Any] = {"masked_lm_logits": MaskedLMLoss()}
    if config.next_sentence_prediction:
        losses["next_sentence_logits"] = NextSentenceLoss()
    metrics = {
        output: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")] for output in losses
    }
    return {"loss": losses, "weighted_metrics": metrics}


# The original's dropout before a classifier, whatever the configuration says.
_HEAD_DROPOUT = 0.1


def bert_classifier(
    config: BertConfig,
    num_labels: int,
    *,
    dropout_rate: float = _HEAD_DROPOUT,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_classifier",
) -> keras.Model:
    """Make a model that classifies a text or a pair, or with one label gives a number.

    Inputs: those of `modeling.bert_encoder`. Output: float32 logits [B, num_labels].

    Args:
        config: the model's configuration.
        num_labels: how many logits; 1 for regression.
        dropout_rate: dropout of the pooled output.
        recompute: see `modeling.Bert`.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: if an argument is wrong, or on a call with F too long.

    Reference: `create_model` of google-research/bert `run_classifier.py`.
    """
    inputs = encoder_inputs()
    pooled = _encode(config, inputs, "pooled_output", recompute, dtype)
    pooled = Dropout(dropout_rate, name="dropout", dtype=dtype)(pooled)
    logits = ClassificationHead(config, num_labels, name="classifier", dtype=dtype)(pooled)
    return keras.Model(inputs, logits, name=name)


def bert_span_labeler(
    config: BertConfig,
    *,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_span_labeler",
) -> keras.Model:
    """Make a model that finds the answer to a question as a span of the second segment (SQuAD).

    Inputs: those of `modeling.bert_encoder`. Outputs, a dict of float32 [B, F]: "start_logits" and
    "end_logits". Nothing reads the pooled output, so the pooler is not trainable.

    Args:
        config: the model's configuration.
        recompute: see `modeling.Bert`.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: if config is not a BertConfig, or on a call with F too long.

    Reference: `create_model` of google-research/bert `run_squad.py`.
    """
    inputs = encoder_inputs()
    sequence = _encode(config, inputs, "sequence_output", recompute, dtype)
    return keras.Model(inputs, SpanHead(config, name="cls", dtype=dtype)(sequence), name=name)


def bert_token_classifier(
    config: BertConfig,
    num_labels: int,
    *,
    dropout_rate: float = _HEAD_DROPOUT,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_token_classifier",
) -> keras.Model:
    """Make a model that labels each word piece, as for named entities.

    Inputs: those of `modeling.bert_encoder`. Output: float32 logits [B, F, num_labels]. Nothing
    reads the pooled output, so the pooler is not trainable.

    Args:
        config: the model's configuration.
        num_labels: how many logits for each position.
        dropout_rate: dropout of the sequence output.
        recompute: see `modeling.Bert`.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: if an argument is wrong, or on a call with F too long.

    Reference: the paper, section 5.3.
    """
    inputs = encoder_inputs()
    sequence = _encode(config, inputs, "sequence_output", recompute, dtype)
    sequence = Dropout(dropout_rate, name="dropout", dtype=dtype)(sequence)
    head = TokenClassificationHead(config, num_labels, name="token_classification", dtype=dtype)
    return keras.Model(inputs, head(sequence), name=name)


def bert_multiple_choice(
    config: BertConfig,
    *,
    dropout_rate: float = _HEAD_DROPOUT,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_multiple_choice",
) -> keras.Model:
    """Make a model that scores choices, each a sequence of its own (SWAG).

    Inputs: those of `modeling.bert_encoder`, each [B, C, F] for C choices, any number of them.
    Output: float32 logits [B, C], whose softmax is over the choices.

    Args:
        config: the model's configuration.
        dropout_rate: dropout of the pooled output.
        recompute: see `modeling.Bert`.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: if an argument is wrong, or on a call with F too long.

    Reference: the paper, section 4.4. Its head is a vector alone; the bias here, which a softmax
    over choices does not see, is there because transformers' class has one.
    """
    inputs = {key: keras.Input((None, None), dtype="int32", name=key) for key in encoder_inputs()}
    rows = {key: MergeChoices(name=f"merge_{key}")(value) for key, value in inputs.items()}
    pooled = _encode(config, rows, "pooled_output", recompute, dtype)
    pooled = Dropout(dropout_rate, name="dropout", dtype=dtype)(pooled)
    scores = MultipleChoiceHead(config, 1, name="multiple_choice", dtype=dtype)(pooled)
    logits = SplitChoices(name="logits")(scores, inputs["input_ids"])
    return keras.Model(inputs, logits, name=name)


def bert_next_sentence_predictor(
    config: BertConfig,
    *,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_next_sentence_predictor",
) -> keras.Model:
    """Make a model that tells whether the second segment follows the first.

    Inputs: those of `modeling.bert_encoder`. Output: float32 logits [B, 2], 0 meaning that it does.

    Args:
        config: the model's configuration.
        recompute: see `modeling.Bert`.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: if config is not a BertConfig, or on a call with F too long.

    Reference: `get_next_sentence_output` of google-research/bert `run_pretraining.py`.
    """
    inputs = encoder_inputs()
    pooled = Bert(config, recompute=recompute, name="bert", dtype=dtype)(inputs)["pooled_output"]
    logits = NextSentenceScope(config, name="cls", dtype=dtype)(pooled)
    return keras.Model(inputs, logits, name=name)


@dataclasses.dataclass(frozen=True)
class Head:
    """A kind of model.

    Attributes:
        make: (config, ...) -> the model.
        has_labels: whether `make` takes num_labels.
        has_dropout: whether `make` takes dropout_rate.
    """

    make: Callable[..., keras.Model]
    has_labels: bool = False
    has_dropout: bool = False


HEADS = {
    "encoder": Head(bert_encoder),
    "pretraining": Head(bert_pretrainer),
    "next_sentence": Head(bert_next_sentence_predictor),
    "classification": Head(bert_classifier, has_labels=True, has_dropout=True),
    "span": Head(bert_span_labeler),
    "token_classification": Head(bert_token_classifier, has_labels=True, has_dropout=True),
    "multiple_choice": Head(bert_multiple_choice, has_dropout=True),
}
