"""Models behind the tokenizer: strings in, answers out, as functions that a SavedModel holds.

Each class here joins a Keras model with `preprocessing.TextToIds` and whatever turns its outputs
into an answer, labels included. `export.export_saved_model` writes them. All functions take any
number of texts, none included; rows do not depend on one another. Texts are UTF-8, bytes that are
not are dropped; longer ones are cut, as in training.

Shapes: B texts, L pieces of the longest, K labels or candidates, C choices, M masks of the text
with most, H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.serving.half_precision import StoredWeights
from bert_tf.tokenization.graph_tokenizer import TextToIds

_IDS = ("input_ids", "input_mask", "segment_ids")


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


@dataclasses.dataclass(frozen=True, eq=False)
class _Untracked:
    """Keeps a model from being written into a SavedModel as an object.

    Keras writes copies of a model's variables, to which TF Serving restores the weights, while the
    signatures read the variables themselves.
    """

    model: keras.Model


class ServedModel(tf.Module):
    """A model that takes strings; the subclasses say what it answers.

    Attributes:
        task: what it does, in the words of the model card.
        weights: the variables that a SavedModel holds.
        text_to_ids: the tokenizer.
        answer: the function of "serving_default".
        example: a request of `answer`: input -> values of a batch (an attribute or a property).
        descriptions: name of an input or output -> what it is.
        texts: names of the texts of a model that takes one or two and cuts them, which
            `answer_packed` then answers; else ().
        label_names: names of the labels, if it has any.
    """

    task: str
    answer: Any
    example: Any
    descriptions: Mapping[str, str]
    texts: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()

    def __init__(self, model: keras.Model, text_to_ids: TextToIds):
        """Joins them.

        Args:
            model: with the inputs of `modeling.bert_encoder`.
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
        if text_to_ids.max_seq_length > self.config.max_position_embeddings:
            raise ValueError(
                f"max_seq_length: the model has {self.config.max_position_embeddings} positions, "
                f"got {text_to_ids.max_seq_length}"
            )
        self._hidden = _Untracked(model)
        self.weights: Any = [variable.value for variable in model.variables]
        self._stored_weights: StoredWeights | None = None
        self.text_to_ids = text_to_ids

    @property
    def model(self) -> keras.Model:
        """The Keras model."""
        return self._hidden.model

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
        """Return the SavedModel's signatures: strings, ids, and what TF Serving has besides."""
        return {"serving_default": self.answer, "ids": self.ids}

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
        """What `answer` gives, for texts that are ids already; for a model with `texts`.

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
        stored = self._stored_weights
        with contextlib.nullcontext() if stored is None else stored.scope():
            return self.model(inputs, training=False)

    @function(input_signature=integers(*_IDS))
    def ids(self, input_ids, input_mask, segment_ids) -> dict[str, tf.Tensor]:
        """Outputs of the model for ids that were made elsewhere.

        Args:
            input_ids: int32 [B, L].
            input_mask: int32 [B, L], 1 where a piece stands.
            segment_ids: int32 [B, L].

        Returns:
            What the model returns, as float32; "logits" where it has no name.
        """
        return self.run(
            {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        )

    def run(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What `ids` gives, for a dictionary of its inputs."""
        outputs = self.call(inputs)
        outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
        return {name: tf.cast(value, tf.float32) for name, value in outputs.items()}

    def _pack(self, text: tf.Tensor, text_b: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Pack texts [B] into ids [B, L], no longer than the longest needs."""
        return self._cut(self.text_to_ids.pack(text, text_b))

    @staticmethod
    def _cut(packed: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Cut ids [..., L] to what the longest needs."""
        longest = tf.reduce_max(tf.reduce_sum(packed["input_mask"], axis=-1))
        longest = tf.maximum(longest, 1)  # of no texts at all
        end = [slice(None)] * (packed["input_mask"].shape.rank - 1)
        return {name: value[(*end, slice(longest))] for name, value in packed.items()}


def config_of(model: keras.Model) -> BertConfig:
    """Return the configuration of the encoder in a model."""
    configs = (getattr(layer, "config", None) for layer in model.layers)
    return next(config for config in configs if isinstance(config, BertConfig))


class FillMask(ServedModel):
    """Candidates for each [MASK] of a text.

    Args:
        model: as `heads.bert_pretrainer` makes it.
        text_to_ids: made with parse_mask.
        top_k: K.

    Raises:
        ValueError: as for `ServedModel`; or K is out of range.
    """

    task = "fill_mask"
    example = {"text": ["The capital of France is [MASK]."]}
    descriptions = {
        "text": "text with any number of [MASK]",
        "tokens": "pieces for each [MASK], best first; empty beyond a text's own masks",
        "scores": "their probabilities; 0 beyond a text's own masks",
        "mask_count": "masks of each text",
    }

    def __init__(self, model: keras.Model, text_to_ids: TextToIds, *, top_k: int = 5):
        super().__init__(model, text_to_ids)
        known = [*text_to_ids.vocab.values()]
        if not text_to_ids.parse_mask:
            raise ValueError("text_to_ids: expected parse_mask, without which no text has a mask")
        if not 1 <= top_k <= len(known):
            raise ValueError(f"top_k: expected 1 to {len(known)}, got {top_k}")
        self.top_k = top_k
        model_vocab_size = model.output["masked_lm_logits"].shape[-1]
        # Rows that the vocabulary does not use, as where its size was rounded up, are no answer.
        self._is_word = tf.constant(np.isin(np.arange(model_vocab_size), known))

    @function(input_signature=strings("text"))
    def answer(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Candidates for each [MASK].

        Args:
            text: string [B].

        Returns:
            "tokens" string [B, M, K], best first, and "scores" float32 [B, M, K], their
            probabilities; "" and 0 beyond the masks of a text. "mask_count" int32 [B].
        """
        inputs = self._pack(text)
        is_mask = tf.equal(inputs["input_ids"], self.text_to_ids.mask_id)  # [B, L]
        mask_count = tf.math.count_nonzero(is_mask, axis=1, dtype=tf.int32)
        # Stable, so that masks come first and in order.
        positions = tf.argsort(tf.cast(tf.logical_not(is_mask), tf.int32), axis=1, stable=True)
        positions = positions[:, : tf.maximum(tf.reduce_max(mask_count), 0)]  # [B, M]
        logits = self.call({**inputs, "masked_lm_positions": positions})
        logits = tf.cast(logits["masked_lm_logits"], tf.float32)  # [B, M, V]
        logits = tf.where(self._is_word, logits, logits.dtype.min)
        # Of logits, since unlikely pieces have equal scores of 0.
        best = tf.math.top_k(logits, k=self.top_k).indices  # [B, M, K]
        scores = tf.gather(tf.nn.softmax(logits), best, batch_dims=2)
        is_real = tf.sequence_mask(mask_count, tf.shape(positions)[1])[:, :, None]  # [B, M, 1]
        return {
            "tokens": tf.where(is_real, self.text_to_ids.ids_to_tokens(best), ""),
            "scores": tf.where(is_real, scores, 0.0),
            "mask_count": mask_count,
        }

    @function(input_signature=integers(*_IDS, "masked_lm_positions"))
    def ids(self, input_ids, input_mask, segment_ids, masked_lm_positions) -> dict[str, tf.Tensor]:
        """Logits of the model for ids that were made elsewhere.

        Args:
            input_ids: int32 [B, L].
            input_mask: int32 [B, L], 1 where a piece stands.
            segment_ids: int32 [B, L].
            masked_lm_positions: int32 [B, P].

        Returns:
            "masked_lm_logits" float32 [B, P, V] and, with next sentence prediction,
            "next_sentence_logits" float32 [B, 2].
        """
        return self.run(
            {
                "input_ids": input_ids,
                "input_mask": input_mask,
                "segment_ids": segment_ids,
                "masked_lm_positions": masked_lm_positions,
            }
        )


class _TextModel(ServedModel):
    """A model of a text or of a pair: subclasses turn its logits into an answer.

    Its signature for TF Serving's own request of this kind takes serialized tf.train.Example with
    the features "text" and, of pairs, "text_b".
    """

    def __init__(self, model: keras.Model, text_to_ids: TextToIds, texts: Sequence[str]):
        super().__init__(model, text_to_ids)
        self.texts = tuple(texts)
        # The arguments' names are the signature's.
        one: Callable[..., Any] = lambda text: self._answer(text)  # noqa: E731
        two: Callable[..., Any] = lambda text, text_b: self._answer(text, text_b)  # noqa: E731
        self.answer = function(
            one if len(texts) == 1 else two, input_signature=strings(*self.texts)
        )

    @property
    def example(self) -> dict[str, list[str]]:
        """A request."""
        examples = {"text": ["A fine film."], "text_b": ["The film was good."]}
        return {name: examples[name] for name in self.texts}

    def _answer(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.answer_packed(self._pack(*texts))

    def _answer_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        raise NotImplementedError

    def _take_examples(self) -> None:
        """Make `from_examples`, for those that can: a SavedModel traces every function it finds."""
        self.from_examples = function(
            lambda inputs: self._answer_examples(inputs), input_signature=strings("inputs")
        )

    def _parse(self, inputs: tf.Tensor) -> list[Any]:
        description = {name: tf.io.FixedLenFeature([], tf.string) for name in self.texts}
        features = tf.io.parse_example(inputs, description)
        return [features[name] for name in self.texts]

    def _rows_of_labels(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Names of the labels for each row, string [B, K]."""
        return tf.broadcast_to(labels, tf.shape(logits))


def _texts(has_pairs: bool) -> tuple[str, ...]:
    return ("text", "text_b") if has_pairs else ("text",)


class Classifier(_TextModel):
    """One label for a text or a pair.

    Args:
        model: as `heads.bert_classifier` makes it.
        text_to_ids: the tokenizer.
        labels: names of the K labels.
        has_pairs: whether a request has two texts, "text" and "text_b".

    Raises:
        ValueError: as for `ServedModel`; or the labels are not as many as the model's.
    """

    task = "classification"
    descriptions = {
        "text": "text, or the first of a pair",
        "text_b": "second text",
        "label": "the likeliest label",
        "labels": "all labels",
        "probabilities": "their probabilities, which sum to 1",
    }

    def __init__(
        self,
        model: keras.Model,
        text_to_ids: TextToIds,
        labels: Sequence[str],
        *,
        has_pairs: bool = False,
    ):
        super().__init__(model, text_to_ids, _texts(has_pairs))
        self.labels = checked_labels(labels, model)
        self.label_names = tuple(labels)
        self._take_examples()

    def signatures(self) -> dict[str, Any]:
        """Return the signatures, with TF Serving's "classify"."""
        return {**super().signatures(), "classify": self.from_examples}

    def answer_packed(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What `answer` gives, for texts that are ids already."""
        logits = self.run(inputs)["logits"]
        best = tf.argmax(logits, axis=-1)
        return {
            "label": tf.gather(self.labels, best),
            "labels": self._rows_of_labels(self.labels, logits),
            "probabilities": tf.nn.softmax(logits),
        }

    def _answer_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        answer = self._answer(*self._parse(inputs))
        return {"classes": answer["labels"], "scores": answer["probabilities"]}


class MultiLabelClassifier(Classifier):
    """Any number of labels for a text or a pair; arguments as for `Classifier`."""

    task = "multi_label"
    descriptions = {
        "text": "text, or the first of a pair",
        "text_b": "second text",
        "labels": "all labels",
        "probabilities": "the probability of each by itself",
        "is_label": "whether it is at least one half",
    }

    def answer_packed(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What `answer` gives, for texts that are ids already."""
        logits = self.run(inputs)["logits"]
        return {
            "labels": self._rows_of_labels(self.labels, logits),
            "probabilities": tf.sigmoid(logits),
            "is_label": logits > 0,
        }


class Regressor(_TextModel):
    """A number for a text or a pair.

    Args:
        model: as `heads.bert_classifier` makes it with one label.
        text_to_ids: the tokenizer.
        has_pairs: whether a request has two texts, "text" and "text_b".

    Raises:
        ValueError: as for `ServedModel`; or the model gives several numbers.
    """

    task = "regression"
    descriptions = {
        "text": "text, or the first of a pair",
        "text_b": "second text",
        "value": "the number",
    }

    def __init__(self, model: keras.Model, text_to_ids: TextToIds, *, has_pairs: bool = False):
        super().__init__(model, text_to_ids, _texts(has_pairs))
        if model.output_shape[-1] != 1:
            raise ValueError(
                f"model: a regression has one output, this model {model.output_shape[-1]}"
            )
        self._take_examples()

    def signatures(self) -> dict[str, Any]:
        """Return the signatures, with TF Serving's "regress"."""
        return {**super().signatures(), "regress": self.from_examples}

    def answer_packed(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What `answer` gives, for texts that are ids already."""
        return {"value": self.run(inputs)["logits"][:, 0]}

    def _answer_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": self._answer(*self._parse(inputs))["value"]}


class NextSentence(_TextModel):
    """Whether a text follows another; model as `heads.bert_next_sentence_predictor` makes it."""

    task = "next_sentence"
    descriptions = {
        "text": "text",
        "text_b": "text that may follow",
        "is_next": "the probability that it follows",
    }

    def __init__(self, model: keras.Model, text_to_ids: TextToIds):
        super().__init__(model, text_to_ids, _texts(has_pairs=True))

    def answer_packed(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What `answer` gives, for texts that are ids already."""
        return {"is_next": tf.nn.softmax(self.run(inputs)["logits"])[:, 0]}


class MultipleChoice(ServedModel):
    """The best of several texts to go on with; model as `heads.bert_multiple_choice` makes it."""

    task = "multiple_choice"
    example = {
        "text": ["He opens the door."],
        "choices": [["He steps outside.", "He is a door."]],
    }
    descriptions = {
        "text": "text",
        "choices": "texts of which one is the best to follow, equally many for each text",
        "choice": "the place of the best, from 0",
        "probabilities": "of all choices, which sum to 1",
    }

    @function(input_signature=[*strings("text"), *strings("choices", rank=2)])
    def answer(self, text: tf.Tensor, choices: tf.Tensor) -> dict[str, tf.Tensor]:
        """Choose.

        Args:
            text: string [B].
            choices: string [B, C].

        Returns:
            "choice" int32 [B] and "probabilities" float32 [B, C].
        """
        packed: Any = self.text_to_ids.pack_choices(text, choices)  # dense, as choices are
        rows = self._cut(packed)
        logits = self.run(rows)["logits"]  # [B, C]
        return {
            "choice": tf.argmax(logits, axis=-1, output_type=tf.int32),
            "probabilities": tf.nn.softmax(logits),
        }

    @function(input_signature=integers(*_IDS, rank=3))
    def ids(self, input_ids, input_mask, segment_ids) -> dict[str, tf.Tensor]:
        """Logits float32 [B, C] for ids that were made elsewhere, int32 [B, C, L] each."""
        return self.run(
            {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        )


class Embedder(ServedModel):
    """A vector for each text.

    Args:
        model: as `modeling.bert_encoder` makes it, with hidden_states where a layer is asked for.
        text_to_ids: the tokenizer.
        layer: hidden state to take the mean of: 0 for the embeddings, -1 for the last layer.

    Raises:
        ValueError: as for `ServedModel`; or the model does not give that layer.
    """

    task = "embeddings"
    texts = ("text",)
    example = {"text": ["A fine film."]}
    descriptions = {
        "text": "text",
        "pooled": "the pooler's output, where the model has a trained one",
        "mean": "mean over all pieces, [CLS] and [SEP] included, of a layer's hidden state",
    }

    def __init__(self, model: keras.Model, text_to_ids: TextToIds, *, layer: int = -1):
        super().__init__(model, text_to_ids)
        states = model.output.get("hidden_states")
        if layer != -1 and states is None:
            raise ValueError("layer: make the encoder with hidden_states=True")
        if states is not None and not -len(states) <= layer < len(states):
            raise ValueError(f"layer: expected 0 to {len(states) - 1}, got {layer}")
        self.layer = layer

    def run(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What `ids` gives, for a dictionary of its inputs."""
        outputs = self.call(inputs)
        states = outputs.get("hidden_states")
        state = outputs["sequence_output"] if states is None else states[self.layer]
        state = tf.cast(state, tf.float32)  # [B, L, H]
        mask = tf.expand_dims(tf.cast(inputs["input_mask"], tf.float32), 2)  # [B, L, 1]
        mean = tf.math.divide_no_nan(tf.reduce_sum(state * mask, 1), tf.reduce_sum(mask, 1))
        if "pooled_output" not in outputs:
            return {"mean": mean}
        return {"mean": mean, "pooled": tf.cast(outputs["pooled_output"], tf.float32)}

    @function(input_signature=strings("text"))
    def answer(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return "mean" and, with a pooler, "pooled": float32 [B, H], of string [B]."""
        return self.answer_packed(self._pack(text))

    def answer_packed(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What `answer` gives, for texts that are ids already."""
        return self.run(inputs)


def checked_labels(labels: Sequence[str], model: keras.Model) -> tf.Tensor:
    """Return the names of labels as a constant, string [K].

    Args:
        labels: K names.
        model: with K logits as its output.

    Raises:
        ValueError: there are more or fewer.
    """
    if len(labels) != model.output_shape[-1]:
        raise ValueError(
            f"labels: the model has {model.output_shape[-1]}, got {len(labels)}: "
            f"{', '.join(labels)}"
        )
    return tf.constant(list(labels))
