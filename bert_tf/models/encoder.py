"""The BERT encoder as a functional Keras model.

Shapes: B batch, F sequence length, N heads, D hidden size, L layers, V vocabulary, R = B * F
rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models import fusion
from bert_tf.models.dropout import dropout_keys
from bert_tf.models.functional import attention_adder, check_ids, check_length
from bert_tf.models.layers import ConfiguredLayer, Embeddings, Encoder, Pooler

INPUT_NAMES = ("input_ids", "input_mask", "segment_ids")  # of every model of the package
_OF_LAYERS = ("hidden_states", "attention_probs")  # outputs of a Bert that are lists


@keras.saving.register_keras_serializable(package="bert_tf")
class Bert(ConfiguredLayer):
    """The whole encoder as one layer, whose name "bert" begins the paths of its variables.

    All dropout masks of a forward pass in training derive from one draw of `seed_generator`: its
    state (a variable, with "seed" in its path) is all there is to save for an exact resume.

    Args:
        config: the model's configuration.
        hidden_states: whether to return the hidden states of all layers.
        attention_probs: whether to return the attention probabilities of all layers.
        train_pooler: whether the pooler's variables are trainable. Not so in pre-training without
            next sentence prediction, where they have no gradient.
        recompute: layers whose activations are computed anew for the gradients, to save memory:
            "none", "all", "every_2" and such, or numbers from 0; see `layers.recomputed_layers`.
        **kwargs: `name`, `dtype` (a policy) and `trainable` of `keras.layers.Layer`.

    Raises:
        ValueError: if an argument is wrong, or attention_probs are asked of recomputed layers.

    Reference: `BertModel` of google-research/bert `modeling.py`.
    """

    def __init__(
        self,
        config: BertConfig,
        hidden_states: bool = False,
        attention_probs: bool = False,
        train_pooler: bool = True,
        recompute: str | Sequence[int] = "none",
        **kwargs,
    ):
        super().__init__(config, **kwargs)
        config.check_size()
        self.hidden_states = hidden_states
        self.attention_probs = attention_probs
        self.train_pooler = train_pooler
        self.embeddings = self.make_layer(Embeddings, "embeddings")
        self.encoder = self.make_layer(Encoder, "encoder", recompute=recompute)
        if attention_probs and self.encoder.recompute:
            raise ValueError(
                "recompute: cannot be combined with attention_probs, which would be kept in memory"
            )
        self.pooler = self.make_layer(Pooler, "pooler")
        self.pooler.trainable = train_pooler
        self.seed_generator = keras.random.SeedGenerator(name="dropout_seed")

    def build(self, input_shape=None):
        """Make the variables."""
        self.embeddings.build()
        self.encoder.build()
        self.pooler.build()

    def call(self, inputs, training=None):
        """Encode a batch.

        Args:
            inputs: dict of integer [B, F]: "input_ids"; "input_mask", 1 for tokens and 0 for
                padding; "segment_ids". Where rows hold several sequences also those of
                `packed_inputs`.
            training: whether to apply dropout.

        Returns:
            dict: "sequence_output" [B, F, D] and "pooled_output" [B, D], of packed rows [B, K, D],
            in the compute dtype; "embedding_table" [V, D], the word embeddings, for heads that
            share them; on request "hidden_states", a list of L + 1 [B, F, D] (embeddings first),
            and "attention_probs", a list of L float32 [B, N, F, F] (before dropout).

        Raises:
            ValueError: F is too long, or an id has no embedding (see `check_ids`).
        """
        config = self.config
        input_ids = inputs["input_ids"]
        batch, length = ops.shape(input_ids)
        if not training:  # whose records are checked before it, and which this would slow
            check_ids("input_ids", input_ids, config.vocab_size)
            check_ids("segment_ids", inputs["segment_ids"], config.type_vocab_size)
            if "position_ids" in inputs:
                check_ids("position_ids", inputs["position_ids"], config.max_position_embeddings)
        keys = None
        if training and (config.hidden_dropout_prob or config.attention_probs_dropout_prob):
            keys = dropout_keys(self.seed_generator.next(), 1 + self.encoder.num_dropouts)
        embedded = self.embeddings(
            input_ids,
            inputs["segment_ids"],
            None if keys is None else keys[0],
            inputs.get("position_ids"),
        )  # [R, D]
        mask = inputs["input_mask"]
        adder = attention_adder(
            mask, length, config.left_to_right, inputs.get("sequence_ids")
        )  # [B, 1, 1 or F, F]
        # While fusing no attention probabilities are left.
        with fusion.fusing(fusion.is_fusing() and not self.attention_probs):
            all_rows, all_probabilities = self.encoder(
                embedded, adder, None if keys is None else keys[1:], training=training
            )
        shape = (batch, length, config.hidden_size)
        sequence = ops.reshape(all_rows[-1], shape)  # [B, F, D]
        outputs = {
            "sequence_output": sequence,
            "pooled_output": self.pooler(sequence, mask, inputs.get("pooled_positions")),
            "embedding_table": ops.convert_to_tensor(self.embeddings.word_embeddings),  # [V, D]
        }
        if self.hidden_states:
            outputs["hidden_states"] = [ops.reshape(r, shape) for r in [embedded, *all_rows]]
        if self.attention_probs:
            outputs["attention_probs"] = all_probabilities
        return outputs

    def compute_output_spec(self, inputs, training=None):
        """Return the shapes and types of what `call` returns.

        Keras would trace `call` with sizes of its own choice, that may pass the longest sequence.
        """
        config = self.config
        batch, length = inputs["input_ids"].shape
        check_length(length, config)
        sequence_shape = (batch, length, config.hidden_size)
        probabilities_shape = (batch, config.num_attention_heads, length, length)
        layers = range(config.num_hidden_layers)
        outputs = {
            "sequence_output": keras.KerasTensor(sequence_shape, self.compute_dtype),
            "pooled_output": keras.KerasTensor(
                (*_pooled(inputs), config.hidden_size), self.compute_dtype
            ),
            "embedding_table": keras.KerasTensor(
                (config.vocab_size, config.hidden_size), self.variable_dtype
            ),
        }
        if self.hidden_states:
            outputs["hidden_states"] = [
                keras.KerasTensor(sequence_shape, self.compute_dtype) for _ in (None, *layers)
            ]
        if self.attention_probs:
            outputs["attention_probs"] = [keras.KerasTensor(probabilities_shape) for _ in layers]
        return outputs

    def save_own_variables(self, store):
        """Save the state of the dropout generator, which Keras leaves out of its files."""
        super().save_own_variables(store)
        store["dropout_seed"] = self.seed_generator.state.numpy()

    def load_own_variables(self, store):
        """Load the state of the dropout generator, so that training goes on as if never saved."""
        self.seed_generator.state.assign(store["dropout_seed"])

    def get_config(self):
        """Return the arguments."""
        return {
            **super().get_config(),
            "hidden_states": self.hidden_states,
            "attention_probs": self.attention_probs,
            "train_pooler": self.train_pooler,
            "recompute": list(self.encoder.recompute),
        }


def encoder_inputs() -> dict[str, keras.KerasTensor]:
    """Return the symbolic inputs of an encoder: integer [B, F], both sizes free.

    Returns:
        dict with input_ids, input_mask and segment_ids.
    """
    return {name: keras.Input((None,), dtype="int32", name=name) for name in INPUT_NAMES}


def packed_inputs() -> dict[str, keras.KerasTensor]:
    """Return the further symbolic inputs of rows that hold several sequences each.

    No sequence sees another one: results are those of each in a row of its own.

    Returns:
        dict of int32: sequence_ids [B, F], the number of a token's sequence in its row, from 1, and
        0 for padding; position_ids [B, F], its place in that; pooled_positions [B, K], places in
        the row of what is pooled, any for sequences that are not there.
    """
    names = ("sequence_ids", "position_ids", "pooled_positions")
    return {name: keras.Input((None,), dtype="int32", name=name) for name in names}


def _pooled(inputs: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return the shape of what is pooled: (B,), or (B, K) of packed rows."""
    if "pooled_positions" in inputs:
        return tuple(inputs["pooled_positions"].shape)
    return (inputs["input_ids"].shape[0],)


def bert_encoder(
    config: BertConfig,
    *,
    hidden_states: bool = False,
    attention_probs: bool = False,
    pooled_output: bool = True,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_encoder",
) -> keras.Model:
    """Make the BERT encoder.

    Inputs, a dict of int32 [B, F]: "input_ids"; "input_mask", 1 for tokens and 0 for padding;
    "segment_ids", 0 for the first segment and 1 for the second. Any F up to
    `max_position_embeddings` works.

    Outputs, a dict: "sequence_output" [B, F, D], "pooled_output" [B, D]; on request
    "hidden_states_0" (the embeddings) to "hidden_states_L", each [B, F, D], and
    "attention_probs_0" to "attention_probs_{L-1}", each float32 [B, N, F, F] (before dropout);
    `layer_outputs` collects one of the two. Each has a name, as the outputs of a SavedModel have.

    Initial weights and dropout follow `keras.utils.set_random_seed`.

    Args:
        config: the model's configuration.
        hidden_states: whether to output the hidden states of all layers.
        attention_probs: whether to output the attention probabilities of all layers.
        pooled_output: whether to output the pooled output. Without it the pooler's variables are
            there, but not trainable.
        recompute: see `Bert`.
        dtype: a Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16", or "bfloat16"
            or "float16", whose weights are of half precision too, as for inference in less memory.
            None (default) for Keras' global one.
        name: the model's name.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: if an argument is wrong, or on a call with F too long.
    """
    inputs = encoder_inputs()
    bert = Bert(
        config, hidden_states, attention_probs, pooled_output, recompute, name="bert", dtype=dtype
    )
    outputs = dict(bert(inputs))
    del outputs["embedding_table"]
    if not pooled_output:
        del outputs["pooled_output"]
    for key in _OF_LAYERS:
        outputs |= {f"{key}_{number}": value for number, value in enumerate(outputs.pop(key, ()))}
    return keras.Model(inputs, outputs, name=name)


def layer_outputs(outputs: Mapping[str, Any], name: str) -> list[Any]:
    """Collect what an encoder gives of each layer.

    Args:
        outputs: of a `bert_encoder`: tensors or, as `encoder.output`, symbolic ones.
        name: "hidden_states" or "attention_probs".

    Returns:
        The outputs of that name in the order of layers; none where the encoder was made without.
    """
    return [outputs[f"{name}_{n}"] for n in range(len(outputs)) if f"{name}_{n}" in outputs]
