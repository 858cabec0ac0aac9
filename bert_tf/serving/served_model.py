"""Models behind the tokenizer: strings in, answers out, as functions that a SavedModel holds.

Each class here joins a Keras model with `graph_tokenizer.TextToIds` and whatever turns its outputs
into an answer, labels included. `export_saved_model` writes them. All functions take any
number of texts, none included; rows do not depend on one another. Texts are UTF-8, bytes that are
not are dropped; longer ones are cut, as in training.

Shapes: B texts, L pieces of the longest, K labels or candidates, C choices, M masks of the text
with most, H hidden size, V vocabulary.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.models.variables import config_of
from bert_tf.serving.half_precision import StoredWeights
from bert_tf.tasks.document_windows import TextRule
from bert_tf.tokenization.graph_tokenizer import PiecesWithOffsets, TextToIds
from bert_tf.tokenization.vocabulary import vocabulary_doubts

_log = logging.getLogger(__name__)

_MAX_BYTES_PER_PIECE = 4096  # on average; a word without spaces can be one piece, [UNK]
_MOST_BYTES = 2**31 - 1  # of a string's substring
ID_INPUTS = ("input_ids", "input_mask", "segment_ids")


def strings(*names: str, rank: int = 1) -> list[tf.TensorSpec]:
    """Return what a function takes: string tensors of a rank, their sizes free."""
    return [tf.TensorSpec([None] * rank, tf.string, name) for name in names]


def integers(*names: str, rank: int = 2) -> list[tf.TensorSpec]:
    """Return what a function takes: int32 tensors of a rank, their sizes free."""
    return [tf.TensorSpec([None] * rank, tf.int32, name) for name in names]


def function(
    body: Callable[..., Any] | None = None, *, input_signature: Sequence[tf.TensorSpec]
) -> Any:
    """Make what a SavedModel can hold of a function, or method, of tensors.

    A session, as TF Serving's, feeds tensors of any shape: the graph itself refuses those of
    another rank than the signature's, and inputs of different numbers of rows, as INVALID_ARGUMENT.

    Args:
        body: the function; None to decorate one.
        input_signature: its inputs, but for self; the first dimension of each is the batch.
    """
    if body is None:
        return functools.partial(function, input_signature=input_signature)

    @functools.wraps(body)
    def checked(*arguments):
        first = len(arguments) - len(input_signature)  # self comes before
        return body(*arguments[:first], *_checked(arguments[first:], input_signature))

    # Nothing here branches on a tensor, and AutoGraph takes seconds to look for that.
    return tf.function(checked, input_signature=input_signature, autograph=False)


def _checked(
    tensors: Sequence[tf.Tensor], input_signature: Sequence[tf.TensorSpec]
) -> list[tf.Tensor]:
    """Return tensors that are there only if their shapes at run time are of a signature."""
    ranked = []
    for tensor, spec in zip(tensors, input_signature, strict=True):
        # The traced rank would make this a constant; past this operation nothing knows it.
        hidden = tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=None)
        rank, expected = tf.rank(hidden), spec.shape.rank
        message = f"{spec.name}: expected rank {expected}, got rank"
        with tf.control_dependencies([tf.debugging.Assert(rank == expected, [message, rank])]):
            ranked.append(tf.identity(tensor))
    counts = [tf.shape(tensor)[0] for tensor in ranked]
    checks = [
        tf.debugging.Assert(
            count == counts[0],
            [f"{spec.name}: expected rows as many as of {input_signature[0].name}, which are"]
            + [counts[0], "got", count],
        )
        for count, spec in zip(counts[1:], input_signature[1:], strict=True)
    ]
    if not checks:
        return ranked
    with tf.control_dependencies(checks):
        return [tf.identity(tensor) for tensor in ranked]


def _limits(inputs: Mapping[str, tf.Tensor], config: BertConfig) -> dict[str, Any]:
    """Return what the values of each input must be below."""
    limits = {
        "input_ids": config.vocab_size,
        "input_mask": 2,
        "segment_ids": config.type_vocab_size,
        "masked_lm_positions": tf.shape(inputs["input_ids"])[-1],
    }
    return {name: limits[name] for name in inputs}


def checked_ids(inputs: Mapping[str, tf.Tensor], config: BertConfig) -> dict[str, tf.Tensor]:
    """Return ids that are there only if a model can read them: a failed check is INVALID_ARGUMENT.

    Without a check the model would read the tables' ends for negative ids, or nothing for segments
    that it does not have.

    Args:
        inputs: of `ServedModel.ids`.
        config: of the model.
    """
    shape, most = tf.shape(inputs["input_ids"]), config.max_position_embeddings
    message = [f"input_ids: expected at most {most} positions, got", shape[-1]]
    checks = [tf.debugging.Assert(shape[-1] <= most, message)]
    for name in ID_INPUTS[1:]:
        other = tf.shape(inputs[name])
        message = [f"{name}: expected the shape of input_ids", shape, "got", other]
        checks.append(tf.debugging.Assert(tf.reduce_all(shape == other), message))
    for name, limit in _limits(inputs, config).items():
        values = inputs[name]
        low, high = tf.reduce_min(values), tf.reduce_max(values)
        message = [f"{name}: expected integers of 0 to", limit - 1, "got", low, "to", high]
        is_empty = tf.size(values) == 0
        checks.append(tf.debugging.Assert(is_empty | ((low >= 0) & (high < limit)), message))
    with tf.control_dependencies(checks):
        return {name: tf.identity(values) for name, values in inputs.items()}


def failing_ids(inputs: Mapping[str, tf.Tensor], config: BertConfig) -> dict[str, tf.Tensor]:
    """Return ids by which reading a table fails where `checked_ids` would refuse them.

    For runtimes that have no assertions, but refuse an index beyond the end.

    Args:
        inputs: of `ServedModel.ids`.
        config: of the model.
    """
    valid, changed = tf.constant(True), dict(inputs)
    for name, limit in _limits(inputs, config).items():
        is_valid = (inputs[name] >= 0) & (inputs[name] < limit)
        if name == "masked_lm_positions":
            beyond = tf.size(inputs["input_ids"])
            changed[name] = tf.where(is_valid, inputs[name], beyond)
        else:
            valid &= is_valid
    changed["input_ids"] = tf.where(valid, inputs["input_ids"], config.vocab_size)
    return changed


@dataclasses.dataclass(frozen=True, eq=False)
class Untracked:
    """Keeps a model, or some of them, from being written into a SavedModel as an object.

    Keras writes copies of a model's variables, to which TF Serving restores the weights, while the
    signatures read the variables themselves.
    """

    value: Any


class ServedModel(tf.Module):
    """A model that takes strings; the subclasses say what it answers.

    Attributes:
        task: what it does, in the words of the model card.
        weights: the variables that a SavedModel holds.
        text_to_ids: the tokenizer.
        answer: the function of "serving_default".
        example: a request of `answer`: input -> values of a batch (an attribute or a property).
        descriptions: name of an input or output -> what it is (an attribute or a property).
        texts: names of the texts of a model that takes one or two and cuts them, which
            `answer_packed` then answers; else ().
        windows: how texts are cut, for a model that reads them in windows.
        label_names: names of the labels, if it has any.
        temperature: what the Keras model's logits are divided by; see `tasks.calibration`.
        thresholds: of several labels, the probability that each must exceed to hold; () for one
            half.
    """

    task: str
    answer: Any
    example: Any
    descriptions: Any
    texts: tuple[str, ...] = ()
    windows: TextRule | None = None
    label_names: tuple[str, ...] = ()
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()

    def __init__(self, model: keras.Model, text_to_ids: TextToIds):
        """Join them.

        Args:
            model: with the inputs of `models.bert_encoder`.
            text_to_ids: made of the vocabulary that the model was trained with; its max_seq_length
                is where texts are cut.

        Raises:
            ValueError: the vocabulary has more pieces than the model, or the length is beyond it.
        """
        super().__init__(name="served_model")
        self._config = config_of(model)
        if text_to_ids.vocab_size > self.config.vocab_size:
            raise ValueError(
                f"vocab_file: has {text_to_ids.vocab_size} pieces, the model a vocabulary of "
                f"{self.config.vocab_size}"
            )
        for doubt in vocabulary_doubts(
            text_to_ids.vocab, text_to_ids.do_lower_case, self.config.vocab_size
        ):
            _log.warning("%s", doubt)
        if text_to_ids.max_seq_length > self.config.max_position_embeddings:
            raise ValueError(
                f"max_seq_length: the model has {self.config.max_position_embeddings} positions, "
                f"got {text_to_ids.max_seq_length}"
            )
        self._hidden = Untracked(model)
        self.weights: Any = [variable.value for variable in model.variables]
        self._stored_weights: StoredWeights | None = None
        self.text_to_ids = text_to_ids

    @property
    def model(self) -> keras.Model:
        """The Keras model."""
        return self._hidden.value

    @property
    def config(self) -> BertConfig:
        """The model's configuration."""
        return self._config

    @property
    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of what the model returns; "logits" where it has no name."""
        outputs = self.model.output
        outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
        return {name: tuple(value.shape) for name, value in outputs.items()}

    def signatures(self) -> dict[str, Any]:
        """Return the SavedModel's signatures: strings, ids, pieces, what TF Serving has besides."""
        return {"serving_default": self.answer, "ids": self.ids, "pieces": self.pieces}

    def store_weights(self, dtype: str) -> None:
        """Keep the weights in half precision from now on; what computes is them, as float32.

        Args:
            dtype: "float16" or "bfloat16".

        Raises:
            ValueError: another dtype; or a function of this object was called before, and holds
                the weights as they were.
        """
        if any(f.experimental_get_tracing_count() for f in self.signatures().values()):
            raise ValueError("dtype: choose it before a function of the model is called")
        self._stored_weights = StoredWeights(self.model.variables, dtype)
        self.weights = self._stored_weights

    def answer_packed(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return what `answer` gives, for texts that are ids already; for a model with `texts`.

        Args:
            inputs: of `ids`.
        """
        raise NotImplementedError

    def for_saving(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the variables are what a SavedModel shall hold."""
        stored = self._stored_weights
        return contextlib.nullcontext() if stored is None else stored.for_saving()

    def call(self, inputs: Mapping[str, tf.Tensor]) -> Any:
        """Call the Keras model in inference."""
        with self.computing():
            return self.model(inputs, training=False)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which Keras' layers compute with the weights that are stored."""
        stored = self._stored_weights
        return contextlib.nullcontext() if stored is None else stored.scope()

    @function(input_signature=integers(*ID_INPUTS))
    def ids(self, input_ids, input_mask, segment_ids) -> dict[str, tf.Tensor]:
        """Return the outputs of the model for ids that were made elsewhere.

        Args:
            input_ids: int32 [B, L].
            input_mask: int32 [B, L], 1 where a piece stands.
            segment_ids: int32 [B, L].

        Returns:
            What the model returns, as float32; "logits" where it has no name. Ids that the model
            cannot read are INVALID_ARGUMENT.
        """
        return self.run_checked(
            {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        )

    @function(input_signature=strings("text"))
    def pieces(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return how texts are cut into pieces, special tokens not added, to look at.

        Args:
            text: string [B].

        Returns:
            "pieces" string [B, T], "" beyond those of a text; "char_starts" and "char_ends" int32
            [B, T], where each stands in the text, in Unicode code points; "piece_count" int32 [B].
        """
        return self._shown(self.text_to_ids.tokenize_with_offsets(self._beginning(text)))

    def _shown(self, pieces: PiecesWithOffsets) -> dict[str, tf.Tensor]:
        tokens = self.text_to_ids.ids_to_tokens(pieces.ids.flat_values)
        return {
            "pieces": pieces.ids.with_flat_values(tokens).to_tensor(""),
            "char_starts": pieces.char_starts.to_tensor(),
            "char_ends": pieces.char_ends.to_tensor(),
            "piece_count": tf.cast(pieces.ids.row_lengths(), tf.int32),
        }

    def run_checked(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return what `run` does, for ids of which nothing is known."""
        return self.run(checked_ids(inputs, self.config))

    def run(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return what `ids` gives, for a dictionary of its inputs."""
        outputs = self.call(inputs)
        outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
        return {name: tf.cast(value, tf.float32) for name, value in outputs.items()}

    def _pack(self, text: tf.Tensor, text_b: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Pack texts [B] into ids [B, L], no longer than the longest needs."""
        text_b = text_b if text_b is None else self._beginning(text_b)
        return self._cut(self.text_to_ids.pack(self._beginning(text), text_b))

    def _beginning(self, text: tf.Tensor, windows: int = 1) -> tf.Tensor:
        """Return what of texts of any shape can count where only so many windows of L pieces do.

        So that a text of megabytes is not tokenized whole; far beyond any real text of L pieces.
        """
        size = min(_MAX_BYTES_PER_PIECE * self.text_to_ids.max_seq_length * windows, _MOST_BYTES)
        return tf.strings.substr(text, 0, size)  # bytes of half a character are dropped later

    @staticmethod
    def _cut(packed: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Cut ids [..., L] to what the longest needs."""
        longest = tf.reduce_max(tf.reduce_sum(packed["input_mask"], axis=-1))
        longest = tf.maximum(longest, 1)  # of no texts at all
        end = [slice(None)] * (packed["input_mask"].shape.rank - 1)
        return {name: value[(*end, slice(longest))] for name, value in packed.items()}
