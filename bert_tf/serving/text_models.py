"""Served models of texts: strings in, answers out, one class a kind of answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bert_tf.models.encoder import layer_outputs
from bert_tf.models.functional import check_pooling, pool_states, unit_vectors
from bert_tf.models.task_models import parts_of_windows
from bert_tf.serving.served_model import (
    ID_INPUTS,
    ServedModel,
    Untracked,
    function,
    integers,
    strings,
)
from bert_tf.serving.windows import run_in_parts, windows_in_graph
from bert_tf.tasks.document_windows import TextRule
from bert_tf.tasks.trained_task import threshold_logits
from bert_tf.tokenization.graph_tokenizer import TextToIds


class FillMask(ServedModel):
    """Candidates for each [MASK] of a text.

    Args:
        model: as `task_models.bert_pretrainer` makes it.
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
        ids = [*text_to_ids.vocab.values()]
        if not text_to_ids.parse_mask:
            raise ValueError("text_to_ids: expected parse_mask, without which no text has a mask")
        if not 1 <= top_k <= len(ids):
            raise ValueError(f"top_k: expected 1 to {len(ids)}, got {top_k}")
        self.top_k = top_k
        model_vocab_size = model.output["masked_lm_logits"].shape[-1]
        # Rows that the vocabulary does not use, as where its size was rounded up, are no answer.
        self._is_word = tf.constant(np.isin(np.arange(model_vocab_size), ids))

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

    @function(input_signature=integers(*ID_INPUTS, "masked_lm_positions"))
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
        return self.run_checked(
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

    For a model of windows (`bert_classifier` with a window_pooling) `windows` says how texts of any
    length are cut; its signature of ids takes int32 [B, W, L], where windows of 0 are padding.
    """

    # TF Serving's signature of tf.train.Examples, where there is one for the answer.
    examples_signature = ""

    def __init__(
        self,
        model: keras.Model,
        text_to_ids: TextToIds,
        texts: Sequence[str],
        windows: TextRule | None = None,
    ):
        super().__init__(model, text_to_ids)
        self._check_windows(windows, len(texts) == 2)
        self.windows = windows
        self.text_inputs = tuple(texts)
        if windows is None:
            self.texts = self.text_inputs
        else:
            self._parts = Untracked(parts_of_windows(model))
            # The arguments' names are the signature's, here too.
            ids: Callable[..., Any] = lambda input_ids, input_mask, segment_ids: (  # noqa: E731
                self.run_checked(
                    {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
                )
            )
            self.ids = function(ids, input_signature=integers(*ID_INPUTS, rank=3))
        # The arguments' names are the signature's.
        one: Callable[..., Any] = lambda text: self._answer(text)  # noqa: E731
        two: Callable[..., Any] = lambda text, text_b: self._answer(text, text_b)  # noqa: E731
        self.answer = function(
            one if len(texts) == 1 else two, input_signature=strings(*self.text_inputs)
        )
        if self.examples_signature:  # a SavedModel traces every function it finds
            self.from_examples = function(
                lambda inputs: self._answer_examples(inputs), input_signature=strings("inputs")
            )

    def signatures(self) -> dict[str, Any]:
        """Return the signatures, with TF Serving's of examples."""
        signatures = super().signatures()
        if self.examples_signature:
            signatures[self.examples_signature] = self.from_examples
        return signatures

    @property
    def example(self) -> dict[str, list[str]]:
        """A request."""
        examples = {"text": ["A fine film."], "text_b": ["The film was good."]}
        return {name: examples[name] for name in self.text_inputs}

    def _check_windows(self, windows: TextRule | None, has_pairs: bool) -> None:
        if (windows is None) != (self.config.window_pooling is None):
            expected = "a TextRule, as the model reads texts in windows"
            raise ValueError(
                f"windows: expected {expected if windows is None else 'None'}, got {windows}"
            )
        length = self.text_to_ids.max_seq_length
        if windows and (windows.max_seq_length, windows.has_pairs) != (length, has_pairs):
            raise ValueError(
                f"windows: expected max_seq_length {length} and has_pairs {has_pairs}, got "
                f"{windows.max_seq_length} and {windows.has_pairs}"
            )

    def answer_packed(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return what `answer` gives, for texts that are ids already."""
        return self.answer_logits(self.run(inputs)["logits"])

    def scaled(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the logits [B, K] that answers are made of, for those of the Keras model."""
        return logits

    def answer_logits(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn scaled logits [B, K] into what `answer` gives."""
        raise NotImplementedError

    def _answer(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        if self.windows is None:
            return self.answer_packed(self._pack(*texts))
        return self.answer_logits(self.scaled(self._logits_of_windows(self.windows, *texts)))

    def _logits_of_windows(self, rule: TextRule, *texts: tf.Tensor) -> tf.Tensor:
        """Logits [B, K] of texts of any length, whose windows are encoded some at a time."""
        ids = self.text_to_ids
        pieces = [ids(self._beginning(text, rule.max_windows)) for text in texts]
        cls, sep = (tf.fill([pieces[0].nrows(), 1], value) for value in (ids.cls_id, ids.sep_id))
        heads: Any = tf.RaggedTensor.from_tensor(cls)
        if rule.has_pairs:
            heads = tf.concat([cls, pieces[0][:, : rule.max_query_length], sep], axis=1)
        windows = windows_in_graph(
            pieces[-1],
            heads,
            sep_id=ids.sep_id,
            pad_id=ids.pad_id,
            max_seq_length=rule.max_seq_length,
            stride=rule.doc_stride,
            segment=int(rule.has_pairs),
            most=rule.max_windows,
        )
        encode, decide = self._parts.value

        def run(part: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            with self.computing():
                rows = encode([part[name] for name in ID_INPUTS], training=False)
            return {"rows": tf.cast(rows, tf.float32)}

        size = self.config.hidden_size
        rows = run_in_parts(run, windows.inputs, {"rows": (None, size)})["rows"]  # [N, D]
        # By text, with padding where a text has fewer windows than another.
        counts = tf.math.bincount(windows.rows, minlength=tf.size(texts[0]))
        table = tf.RaggedTensor.from_row_lengths(rows, counts).to_tensor(shape=[None, None, size])
        mask = tf.sequence_mask(counts, tf.shape(table)[1], tf.int32)[:, :, None]  # [B, W, 1]
        with self.computing():
            logits = decide([tf.reshape(table, [-1, size]), mask], training=False)
        return tf.cast(logits, tf.float32)

    def _answer_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        raise NotImplementedError

    def _parse(self, inputs: tf.Tensor) -> list[Any]:
        description = {name: tf.io.FixedLenFeature([], tf.string) for name in self.text_inputs}
        features = tf.io.parse_example(inputs, description)
        return [features[name] for name in self.text_inputs]

    def _rows_of_labels(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Names of the labels for each row, string [B, K]."""
        return tf.broadcast_to(labels, tf.shape(logits))


def _texts(has_pairs: bool) -> tuple[str, ...]:
    return ("text", "text_b") if has_pairs else ("text",)


class Classifier(_TextModel):
    """One label for a text or a pair.

    Args:
        model: as `task_models.bert_classifier` makes it.
        text_to_ids: the tokenizer.
        labels: names of the K labels.
        has_pairs: whether a request has two texts, "text" and "text_b".
        temperature: what the model's logits are divided by; see `tasks.calibration`.
        windows: how texts are cut, for a model of windows.

    Raises:
        ValueError: as for `ServedModel`; or the labels are not as many as the model's, windows are
            not of the model, or the temperature is not above 0.
    """

    task = "classification"
    examples_signature = "classify"

    def __init__(
        self,
        model: keras.Model,
        text_to_ids: TextToIds,
        labels: Sequence[str],
        *,
        has_pairs: bool = False,
        temperature: float = 1.0,
        windows: TextRule | None = None,
    ):
        super().__init__(model, text_to_ids, _texts(has_pairs), windows)
        self.labels = checked_labels(labels, model)
        self.label_names = tuple(labels)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature: expected a number above 0, got {temperature}")
        self.temperature = float(temperature)

    @property
    def descriptions(self) -> dict[str, str]:
        """What inputs and outputs are."""
        return {
            "text": "text, or the first of a pair",
            "text_b": "second text",
            "label": "the likeliest label",
            "labels": "all labels",
            "probabilities": f"their probabilities, which sum to 1{self._calibration}",
            "logits": f"one for each label{self._calibration}",
        }

    @property
    def _calibration(self) -> str:
        if self.temperature == 1:
            return ""
        return f"; calibrated by the temperature {self.temperature:.4g}"

    def run(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return what `ids` gives, for a dictionary of its inputs: logits at the temperature."""
        outputs = super().run(inputs)
        return {**outputs, "logits": self.scaled(outputs["logits"])}

    def scaled(self, logits: tf.Tensor) -> tf.Tensor:
        """Return logits at the temperature."""
        return logits if self.temperature == 1 else logits / self.temperature

    def answer_logits(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn logits [B, K] into what `answer` gives."""
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
    """Any number of labels for a text or a pair; arguments as for `Classifier`, and thresholds.

    Args:
        thresholds: the probability that each of the K labels must exceed to hold; () for one half.

    Raises:
        ValueError: as for `Classifier`; or thresholds that are not K, or not between 0 and 1.
    """

    task = "multi_label"

    def __init__(
        self,
        model: keras.Model,
        text_to_ids: TextToIds,
        labels: Sequence[str],
        *,
        thresholds: Sequence[float] = (),
        **arguments: Any,
    ):
        super().__init__(model, text_to_ids, labels, **arguments)
        self.thresholds = tuple(thresholds)
        if self.thresholds and len(self.thresholds) != len(labels):
            raise ValueError(
                f"thresholds: expected {len(labels)}, one for each label, got {len(thresholds)}"
            )
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds: expected numbers between 0 and 1, got {thresholds}")
        # A constant of the graph: one for all, or one for each label.
        self._least_logits = np.float32(threshold_logits(self.thresholds or (0.5,)))

    @property
    def descriptions(self) -> dict[str, str]:
        """What inputs and outputs are."""
        said, logits = "whether it is at least one half", ""
        if self.thresholds:
            pairs = zip(self.label_names, self.thresholds, strict=True)
            shown = ", ".join(f"{name} {threshold:.3g}" for name, threshold in pairs)
            said = f"whether it is above the label's threshold: {shown}"
            pairs = zip(self.label_names, threshold_logits(self.thresholds), strict=True)
            shown = ", ".join(f"{name} {least:.3g}" for name, least in pairs)
            logits = f"; a label holds above: {shown}"
        return {
            "text": "text, or the first of a pair",
            "text_b": "second text",
            "labels": "all labels",
            "probabilities": f"the probability of each by itself{self._calibration}",
            "is_label": said,
            "logits": f"one for each label{self._calibration}{logits}",
        }

    def answer_logits(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn logits [B, K] into what `answer` gives."""
        return {
            "labels": self._rows_of_labels(self.labels, logits),
            "probabilities": tf.sigmoid(logits),
            "is_label": logits > self._least_logits,
        }


class Regressor(_TextModel):
    """A number for a text or a pair.

    Args:
        model: as `task_models.bert_classifier` makes it with one label.
        text_to_ids: the tokenizer.
        has_pairs: whether a request has two texts, "text" and "text_b".
        windows: how texts are cut, for a model of windows.

    Raises:
        ValueError: as for `ServedModel`; or the model gives several numbers, or windows are not of
            the model.
    """

    task = "regression"
    examples_signature = "regress"
    descriptions = {
        "text": "text, or the first of a pair",
        "text_b": "second text",
        "value": "the number",
    }

    def __init__(
        self,
        model: keras.Model,
        text_to_ids: TextToIds,
        *,
        has_pairs: bool = False,
        windows: TextRule | None = None,
    ):
        super().__init__(model, text_to_ids, _texts(has_pairs), windows)
        if model.output_shape[-1] != 1:
            raise ValueError(
                f"model: a regression has one output, this model {model.output_shape[-1]}"
            )

    def answer_logits(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn logits [B, 1] into what `answer` gives."""
        return {"value": logits[:, 0]}

    def _answer_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": self._answer(*self._parse(inputs))["value"]}


class NextSentence(_TextModel):
    """Whether a text follows another; model: `task_models.bert_next_sentence_predictor`."""

    task = "next_sentence"
    descriptions = {
        "text": "text",
        "text_b": "text that may follow",
        "is_next": "the probability that it follows",
    }

    def __init__(self, model: keras.Model, text_to_ids: TextToIds):
        super().__init__(model, text_to_ids, _texts(has_pairs=True))

    def answer_logits(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn logits [B, 2] into what `answer` gives."""
        return {"is_next": tf.nn.softmax(logits)[:, 0]}


class MultipleChoice(ServedModel):
    """The best of several texts to go on with; model: `task_models.bert_multiple_choice`."""

    task = "multiple_choice"
    example = {"text": ["He opens the door."], "choices": [["He steps outside.", "He is a door."]]}
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
        packed: Any = self.text_to_ids.pack_choices(
            self._beginning(text), self._beginning(choices)
        )  # dense, as choices are
        rows = self._cut(packed)
        logits = self.run(rows)["logits"]  # [B, C]
        return {
            "choice": tf.argmax(logits, axis=-1, output_type=tf.int32),
            "probabilities": tf.nn.softmax(logits),
        }

    @function(input_signature=integers(*ID_INPUTS, rank=3))
    def ids(self, input_ids, input_mask, segment_ids) -> dict[str, tf.Tensor]:
        """Logits float32 [B, C] for ids that were made elsewhere, int32 [B, C, L] each."""
        return self.run_checked(
            {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        )


class Embedder(ServedModel):
    """A vector for each text.

    Args:
        model: as `models.bert_encoder` makes it, with hidden_states where a layer is asked for.
        text_to_ids: the tokenizer.
        layer: hidden state to take the mean of: 0 for the embeddings, -1 for the last layer.
        pooling: of a model that was trained for vectors, how they are made of the last layer:
            "mean", "cls" or "max". It then answers "embedding" too, its vector.
        normalize: likewise, whether they have length 1.

    Raises:
        ValueError: as for `ServedModel`; or the model does not give that layer, or there is no such
            pooling.
    """

    task = "embeddings"
    texts = ("text",)
    example = {"text": ["A fine film."]}
    descriptions = {
        "text": "text",
        "embedding": "the vector that the model was trained for",
        "pooled": "the pooler's output, where the model has a trained one",
        "mean": "mean over all pieces, [CLS] and [SEP] included, of a layer's hidden state",
    }

    def __init__(
        self,
        model: keras.Model,
        text_to_ids: TextToIds,
        *,
        layer: int = -1,
        pooling: str | None = None,
        normalize: bool = False,
    ):
        super().__init__(model, text_to_ids)
        if pooling is not None:
            check_pooling(pooling)
        states = layer_outputs(model.output, "hidden_states")
        if layer != -1 and not states:
            raise ValueError("layer: make the encoder with hidden_states=True")
        if states and not -len(states) <= layer < len(states):
            raise ValueError(f"layer: expected 0 to {len(states) - 1}, got {layer}")
        self.layer = layer
        self.pooling, self.normalize = pooling, normalize

    def run(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return what `ids` gives, for a dictionary of its inputs."""
        outputs = self.call(inputs)
        states = layer_outputs(outputs, "hidden_states")
        state = states[self.layer] if states else outputs["sequence_output"]
        mask, last = inputs["input_mask"], tf.cast(outputs["sequence_output"], tf.float32)
        vectors = {"mean": pool_states(tf.cast(state, tf.float32), mask, "mean")}  # [B, H]
        if "pooled_output" in outputs:
            vectors["pooled"] = tf.cast(outputs["pooled_output"], tf.float32)
        if self.pooling is None:
            return vectors
        vector = pool_states(last, mask, self.pooling)
        return {"embedding": unit_vectors(vector) if self.normalize else vector, **vectors}

    @function(input_signature=strings("text"))
    def answer(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return float32 [B, H] of string [B]: "mean", and what else the model has.

        That is "embedding" of one that was trained for vectors, and with a pooler "pooled".
        """
        return self.answer_packed(self._pack(text))

    def answer_packed(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return what `answer` gives, for texts that are ids already."""
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
