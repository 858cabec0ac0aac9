"""Heads over the encoder, and the models made of both.

Shape legend: B batch, F sequence length, P predictions, D hidden size, V vocabulary.
"""

from typing import Any

import keras
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.layers import ACTIVATION_FUNCTIONS, ConfiguredLayer, LayerNorm
from bert_tf.losses import MaskedLMLoss, NextSentenceLoss
from bert_tf.modeling import Bert, encoder_inputs


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
class NextSentenceHead(ConfiguredLayer):
    """Whether the second segment follows the first: logits of 0 (it does) and 1 (random).

    Variables: output_weights [2, D], output_bias [2].

    Reference: `get_next_sentence_output` of google-research/bert `run_pretraining.py`.
    """

    def build(self, input_shape=None):
        """Make the variables."""
        self.output_weights = self.make_kernel("output_weights", (2, self.config.hidden_size))
        self.output_bias = self.add_weight(name="output_bias", shape=(2,), initializer="zeros")

    def call(self, pooled_output):
        """Map [B, D] to float32 logits [B, 2]."""
        pooled_output = ops.cast(pooled_output, "float32")
        return ops.matmul(pooled_output, ops.transpose(self.output_weights)) + self.output_bias


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
    config: BertConfig, *, dtype=None, name: str = "bert_pretrainer"
) -> keras.Model:
    """Make the pre-training model: encoder, masked LM head, next sentence head.

    Inputs, a dict: those of `modeling.bert_encoder`, and int32 "masked_lm_positions" [B, P].

    Outputs, a dict of float32: "masked_lm_logits" [B, P, V], "next_sentence_logits" [B, 2]. With
    `next_sentence_prediction` off the latter is missing, and the pooler, though it is there for
    fine-tuning, stays as it was initialised: nothing trains it, so its variables are not trainable.

    Args:
        config: the model's configuration.
        dtype: a Keras dtype policy, as "mixed_bfloat16"; None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`, to be compiled with `pretraining_compile_arguments`.

    Raises:
        ValueError: if config is not a BertConfig, or on a call with F too long.
    """
    inputs = encoder_inputs()
    bert = Bert(config, train_pooler=config.next_sentence_prediction, name="bert", dtype=dtype)
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
