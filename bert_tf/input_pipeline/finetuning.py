"""Fine-tuning records to batches of sequences of like length.

Records are padded to max_seq_length. A batch is cut to its longest sequence, rounded up to one of a
few lengths, and training puts sequences of like length together: most sentences are much shorter
than max_seq_length, and XLA and TPUs compile each shape but once.

A document in windows is one record: a batch holds as many windows of each as its longest document
has, and documents with like numbers of windows come together.

Which records batch i of a training run holds follows from (records, seed, batch size, i) alone, so
a run can be resumed from its step. Every record comes once in each epoch.

Shapes: B batch, F length of a batch, L max_seq_length, C choices, W windows of a batch, K labels, N
records.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.files import beside, local_copy, read_json
from bert_tf.input_pipeline.record_checks import PARSE_ERRORS, as_written
from bert_tf.input_pipeline.record_order import FILLER, RecordOrder
from bert_tf.records.decoding import decode_example, parse_example_fn
from bert_tf.records.files import RecordFile
from bert_tf.records.schema import INPUT_NAMES, FeatureSpec
from bert_tf.tasks.kinds import get_kind

# Lengths of batches. Steps of a third to a half: finer ones would save little and compile more.
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_READ_AT_ONCE = 1024  # records, where all are read
_TOKEN_LABELS = ("label_ids", "label_mask")


def padded_length(length: int, max_seq_length: int) -> int:
    """Round a length up to one of LENGTHS, and to at most max_seq_length."""
    index = bisect.bisect_left(LENGTHS, length)
    return min(LENGTHS[index] if index < len(LENGTHS) else max_seq_length, max_seq_length)


# === Elements: (inputs, labels, weights) of each kind of task ===


def _one_label(batch: Mapping[str, Any], weights: Any) -> tuple[Any, Any]:
    return batch["label_ids"][:, 0], weights


def _label_row(batch: Mapping[str, Any], weights: Any) -> tuple[Any, Any]:
    return batch["label_ids"], weights


def _label_each_token(batch: Mapping[str, Any], weights: Any) -> tuple[Any, Any]:
    return batch["label_ids"], tf.cast(batch["label_mask"], tf.float32) * weights[:, None]


def _span(batch: Mapping[str, Any], weights: Any) -> tuple[Any, Any]:
    labels = {
        "start_logits": batch["start_positions"][:, 0],
        "end_logits": batch["end_positions"][:, 0],
    }
    return labels, dict.fromkeys(labels, weights)


# How records hold labels, as `Kind.labels` says -> (features, weights) -> (labels, weights).
_LABELS: dict[str, Callable[[Mapping[str, Any], Any], tuple[Any, Any]]] = {
    "one": _one_label,
    "row": _label_row,
    "text": _label_row,
    "token": _label_each_token,
    "span": _span,
}


def _split_choices(batch: dict[str, Any], shape: Sequence[int]) -> None:
    for name in INPUT_NAMES:
        batch[name] = tf.reshape(batch[name], shape)


def _element(
    batch: dict[str, Any], labels_of: str, length: Any, weights: Any, with_mask: bool
) -> tuple[Any, Any, Any]:
    """Return (inputs, labels, weights) of a batch, cut to a length where there is one."""
    if length is not None:
        for name in (*INPUT_NAMES, *(_TOKEN_LABELS if labels_of == "token" else ())):
            batch[name] = batch[name][..., :length]
    if "is_real_example" in batch:
        weights *= tf.cast(batch["is_real_example"][:, 0], tf.float32)
    labels, weights = _LABELS[labels_of](batch, weights)
    if with_mask and labels_of == "span":
        labels["input_mask"] = batch["input_mask"]
    return {name: batch[name] for name in INPUT_NAMES}, labels, weights


class TaskRecords:
    """The records of one split of a task, as batches for `fit`, `predict` and `Trainer`.

    Elements are (inputs, labels, weights): inputs int32 input_ids, input_mask and segment_ids
    [B, F] (multiple_choice, similarity, retrieval [B, C, F], documents in windows [B, W, F]);
    labels and float32 weights by kind:

    | kind | labels | weights |
    |---|---|---|
    | classification, multiple_choice | int32 [B] | [B] |
    | regression | float32 [B] | [B] |
    | multi_label | float32 [B, K] | [B] |
    | similarity | float32 [B] | [B] |
    | retrieval | int32 [B, C], equal for equal texts | [B] |
    | token_classification | int32 [B, F] | [B, F], 1 where a label counts |
    | span | start_logits, end_logits int32 [B] | the same names [B] |

    Training elements hold weights only where they are asked for, or labels of tokens need them:
    Keras multiplies its `class_weight` by none.

    Attributes:
        label_names: of the labels, in the order of their ids; None where they are not known.
        lengths: int [N], tokens of each record that are not padding; of a document in windows the
            end of its last token, where windows of L stand one after another.
        max_windows: of a document; None for records that are one sequence, or choices.
        order: which records each batch holds.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        kind: str,
        schema: Sequence[FeatureSpec],
        *,
        num_choices: int | None = None,
        max_windows: int | None = None,
        lengths: np.ndarray | None = None,
        vocab_size: int | None = None,
        label_names: Sequence[str] | None = None,
    ):
        """Open a record file.

        Args:
            path: plain TFRecord file, as data_prep/create_finetuning_data.py writes.
            kind: kind of task; see the table.
            schema: features of the records.
            num_choices: C, for kinds of several sequences an example.
            max_windows: windows that a record has room for, where records are documents.
            lengths: int [N], as the attribute; None to count them.
            vocab_size: where given, an id outside it stops the stream with an error.
            label_names: of the labels, in the order of their ids.

        Raises:
            ValueError: a kind that is not there, a corrupt file, one without records, or lengths
                that are not its records'.
            OSError: the file cannot be read.
        """
        self._kind = get_kind(kind)
        _check_num_choices(kind, num_choices)
        if max_windows is not None and not self._kind.takes_windows:
            raise ValueError(f"max_windows: is for texts to classify, got {max_windows} for {kind}")
        self.kind, self.num_choices, self.max_windows = kind, num_choices, max_windows
        self.label_names = None if label_names is None else tuple(label_names)
        self.path, self._file = os.fspath(path), RecordFile(path)
        if not len(self._file):
            raise ValueError(f"{self.path}: no records in this file")
        self._schema = tuple(schema)
        _check_first(self._file, self._schema)
        self._parse = parse_example_fn(self._schema)
        self._vocab_size = vocab_size
        self._forward = functools.lru_cache(maxsize=1)(_forward_function)
        width = next(f.length for f in schema if f.name == "input_ids")
        self.max_seq_length = width // (num_choices or max_windows or 1)
        self._longest = self.max_seq_length * (max_windows or 1)
        if lengths is None:
            lengths = _count_lengths(self._file, self._schema, self._longest)
        self.lengths = np.asarray(lengths)
        _check_lengths(self.lengths, len(self), self._longest, self.path)
        # TensorFlow never lets go of what a numpy_function refers to: that is this object, not an
        # array for each dataset.
        self.order = RecordOrder(self.lengths)

    @classmethod
    def open(cls, path: str | os.PathLike, *, vocab_size: int | None = None) -> TaskRecords:
        """Open records that data_prep/create_finetuning_data.py wrote, by the manifest with them.

        Args:
            path: "<split>.tfrecord", beside "<split>.manifest.json".
            vocab_size: of the model; None for that of the vocabulary the records were made with.

        Raises:
            FileNotFoundError: there is no manifest.
            ValueError: the manifest is not one of such records; or as for the class.
        """
        arguments = _read_manifest(os.fspath(path))
        arguments["vocab_size"] = vocab_size or arguments["vocab_size"]
        return cls(path, **arguments)

    def __len__(self) -> int:
        return len(self._file)

    # === Datasets ===

    def training_dataset(
        self,
        *,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        num_steps: int | None = None,
        group_by_length: bool = True,
        pad_to_max: bool = False,
        with_mask: bool = False,
        with_weights: bool = False,
    ) -> tf.data.Dataset:
        """Make shuffled batches, epoch after epoch.

        Args:
            batch_size: B.
            seed: of the order, at least 0.
            start_step: number of the first batch; batch i is the same whatever the start.
            num_steps: how many batches; None for no end.
            group_by_length: whether records of like length come together.
            pad_to_max: whether F is always L, and of documents W always max_windows.
            with_mask: for span, whether labels also hold input_mask, for a loss without padding.
            with_weights: whether elements hold weights although all are 1, as a `Trainer` wants
                them; a record that is not real (weight 0) stops the stream where they do not.

        Returns:
            Dataset of (inputs, labels), with weights of (inputs, labels, weights).

        Raises:
            ValueError: an argument is out of range.
        """
        if batch_size < 1 or start_step < 0 or seed < 0:
            raise ValueError(
                "batch_size, start_step, seed: expected at least 1, 0 and 0, "
                f"got {batch_size}, {start_step} and {seed}"
            )

        def numbers(step: int) -> np.ndarray:
            return self.order.training_batch(
                int(step), batch_size=batch_size, seed=seed, group_by_length=group_by_length
            )

        stop = 2**62 if num_steps is None else start_step + num_steps
        steps = tf.data.Dataset.range(start_step, stop)
        if num_steps is None:
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            steps = steps.apply(endless)
        with_weights = with_weights or self._kind.labels == "token"
        return self._dataset(steps, numbers, batch_size, pad_to_max, with_mask, with_weights)

    def evaluation_dataset(
        self,
        *,
        batch_size: int,
        group_by_length: bool = False,
        pad_to_max: bool | None = None,
        fill_last_batch: bool = False,
    ) -> tf.data.Dataset:
        """Make one pass over all records, in the order of the file; the last batch may be short.

        So the means of Keras' `evaluate` and the rows of its `predict` are of the records alone.

        Args:
            batch_size: B.
            group_by_length: whether records come sorted by length, as `order` tells.
            pad_to_max: whether F is always L; None for only where a model's outputs have that axis,
                as Keras' `predict` joins them and the loss of a span is over padding too.
            fill_last_batch: whether rows of weight 0 fill the last batch up, so that all batches
                have one shape, as a `Trainer` on several devices wants it. Keras takes such rows
                into its means, and predicts them.

        Returns:
            Dataset of (inputs, labels, weights).
        """

        def numbers(step: int) -> np.ndarray:
            order = self.order.evaluation_order(batch_size, group_by_length=group_by_length)
            row = order[int(step)]
            return row if fill_last_batch else row[row != FILLER]

        steps = tf.data.Dataset.range(-(-len(self) // batch_size))
        size = batch_size if fill_last_batch else None
        pad_to_max = self._kind.per_token if pad_to_max is None else pad_to_max
        return self._dataset(steps, numbers, size, pad_to_max)

    def _dataset(
        self,
        steps: tf.data.Dataset,
        numbers_of: Callable[[int], np.ndarray],
        batch_size: int | None,
        pad_to_max: bool,
        with_mask: bool = False,
        with_weights: bool = True,
    ) -> tf.data.Dataset:
        def fetch(step: Any):
            numbers = numbers_of(step)
            real = numbers[numbers != FILLER]
            longest = self._longest if pad_to_max else int(self.lengths[real].max())
            # A filler is a copy of a record of its batch, as an empty one has nothing to attend to.
            rows = np.where(numbers == FILLER, real[0], numbers)
            serialized = np.array([self._file.read(int(number)) for number in rows], object)
            return (
                serialized,
                # Of several windows the first is full.
                np.int32(padded_length(min(longest, self.max_seq_length), self.max_seq_length)),
                np.int32(max(1, -(-longest // self.max_seq_length))),
                (numbers != FILLER).astype(np.float32),
            )

        @as_written
        def element(step: Any):
            serialized, length, windows, weights = tf.numpy_function(
                fetch, [step], [tf.string, tf.int32, tf.int32, tf.float32], stateful=False
            )
            serialized.set_shape([batch_size])
            weights.set_shape([batch_size])
            batch = self._parse(serialized)
            if self.max_windows:
                shape = [-1, self.max_windows, self.max_seq_length]
                _cut_windows(batch, None if pad_to_max else windows, shape, self.path)
            if not pad_to_max:
                _check_cut(batch["input_mask"], length, self.max_seq_length, self.path)
            if self.num_choices:
                _split_choices(batch, [-1, self.num_choices, self.max_seq_length])
            if self._vocab_size is not None:
                _check_ids(batch["input_ids"], self._vocab_size, self.path)
            end, labels_of = None if pad_to_max else length, self._kind.labels
            whole = _element(batch, labels_of, end, weights, with_mask)
            if with_weights:
                return whole
            _check_no_filler(whole[2], self.path)
            return whole[:2]

        dataset = steps.map(element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        options.deterministic = True
        return dataset.prefetch(4).with_options(options)

    # === Predictions ===

    def predict(
        self,
        model: Any,
        *,
        batch_size: int,
        jit_compile: bool = False,
        group_by_length: bool = True,
        pad_to_max: bool = False,
        reduce: Callable[[Any], Any] | None = None,
        fill: float = 0.0,
    ) -> dict[str, np.ndarray]:
        """Run a model over all records, dropout off.

        Args:
            model: of the task's kind.
            batch_size: B.
            jit_compile: whether to compile with XLA.
            group_by_length: whether records of like length are computed together; results do not
                depend on it.
            pad_to_max: whether F is always L; likewise.
            reduce: outputs of a batch -> tensors or a dict of them, computed with the model, where
                whole outputs would be large.
            fill: what stands at positions of padding.

        Returns:
            name -> array [N, ...] in the order of the file, "logits" where the outputs have no
            names; sequences padded to L.
        """
        # The same function for the same model: an evaluation while training is not traced again.
        forward = self._forward(model, reduce, jit_compile, self.max_windows is not None)
        per_token = _outputs_per_token(forward, self.max_seq_length) if self._kind.per_token else ()
        order = self.order.evaluation_order(batch_size, group_by_length=group_by_length)
        dataset = self.evaluation_dataset(
            batch_size=batch_size,
            group_by_length=group_by_length,
            pad_to_max=pad_to_max,
            fill_last_batch=True,  # one shape for XLA to compile
        )
        outputs = _Outputs(len(self), self.max_seq_length, per_token, fill)
        for numbers, (inputs, _, _) in zip(order, dataset, strict=True):
            outputs.add(numbers, inputs["input_mask"].numpy(), forward(inputs))
        return outputs.arrays

    def labels(self) -> np.ndarray | dict[str, np.ndarray]:
        """Return the labels of all records, in the order of the file; read anew at each call.

        Returns:
            int64 or float32 [N] or [N, K]; for token_classification and span a dict of the features
            that hold them.
        """
        features = [f for f in self._schema if f.name not in (*INPUT_NAMES, "is_real_example")]
        parts = list(_read_all(self._file, features))
        arrays = {f.name: np.concatenate([part[f.name] for part in parts]) for f in features}
        if self._kind.per_token:
            return arrays
        is_row = self._kind.labels in ("row", "text")
        return arrays["label_ids"] if is_row else arrays["label_ids"][:, 0]


@dataclasses.dataclass
class _Outputs:
    """Outputs of a model, collected by record.

    Attributes:
        count: N.
        max_seq_length: L.
        per_token: names of the outputs [B, F, ...].
        fill: what stands at their positions of padding.
        arrays: name -> [N, ...], those per token [N, L, ...].
    """

    count: int
    max_seq_length: int
    per_token: Collection[str]
    fill: float
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def add(self, numbers: np.ndarray, mask: np.ndarray, outputs: Mapping[str, Any]) -> None:
        """Put the outputs of a batch at the numbers [B] of its records; the mask is [B, F]."""
        real = numbers != FILLER
        for name, tensor in outputs.items():
            values, is_per_token = tensor.numpy()[real], name in self.per_token
            if name not in self.arrays:
                shape = (
                    [self.max_seq_length, *values.shape[2:]] if is_per_token else values.shape[1:]
                )
                self.arrays[name] = np.full([self.count, *shape], self.fill, values.dtype)
            if is_per_token:
                # How many of padding are in a batch depends on the others in it.
                values[mask[real] == 0] = self.fill
                self.arrays[name][numbers[real], : mask.shape[-1]] = values
            else:
                self.arrays[name][numbers[real]] = values


def _forward_function(
    model: Any, reduce: Callable[[Any], Any] | None, jit_compile: bool, in_windows: bool = False
):
    """Return the inputs of a batch -> name -> what `predict` collects."""
    # Of a partial, since TensorFlow warns of many traces of one code, also those of several models.
    # XLA compiles a program for each shape anyhow; without it one trace does for all lengths.
    arguments: dict[str, Any] = {"jit_compile": jit_compile, "reduce_retracing": not jit_compile}
    if in_windows and not jit_compile:  # of whose two free sizes each would take a trace
        spec = tf.TensorSpec([None, None, None], tf.int32)
        arguments = {"input_signature": [dict.fromkeys(INPUT_NAMES, spec)]}
    return tf.function(functools.partial(_forward, model, reduce), **arguments)


def _forward(model: Any, reduce: Callable[[Any], Any] | None, inputs: Any) -> Mapping[str, Any]:
    outputs = model(inputs, training=False)
    outputs = outputs if reduce is None else reduce(outputs)
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def _outputs_per_token(forward: Any, max_seq_length: int) -> frozenset[str]:
    """Name the outputs whose second axis is the length of the batch.

    One batch does not tell: its length may be that of a list of the best answers.
    """
    # Traced by itself: `forward` would go on with a length that is not known.
    forward = tf.function(forward.python_function)
    names = []
    for length in (max_seq_length, max_seq_length - 1):
        spec = tf.TensorSpec([None, length], tf.int32)
        outputs = forward.get_concrete_function(dict.fromkeys(INPUT_NAMES, spec)).structured_outputs
        names.append({n for n, x in outputs.items() if x.shape.rank > 1 and x.shape[1] == length})
    return frozenset(names[0] & names[1])


# === Reading and checking ===


def _read_manifest(path: str) -> dict[str, Any]:
    """Read the arguments of `TaskRecords` from the manifest beside a record file."""
    manifest_path = path.removesuffix(".tfrecord") + ".manifest.json"
    try:
        manifest = read_json(manifest_path)
        kind, num_choices = get_kind(manifest["kind"]), manifest["num_choices"]
        names, max_windows = manifest["labels"], dict(manifest["extra"]).get("max_windows")
        length = manifest["max_seq_length"] * (max_windows or 1)
        arguments = {
            "kind": manifest["kind"],
            "schema": kind.schema(length, len(names or ()), num_choices),
            "label_names": names,
            "num_choices": num_choices if kind.has_choices else None,
            "max_windows": max_windows,
            "vocab_size": manifest["vocab_size"],
        }
        lengths_file = local_copy(beside(path, manifest["lengths_file"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{manifest_path}: not a manifest of create_finetuning_data.py: {error!r}"
        ) from error
    try:
        with open(lengths_file, "rb") as file:
            version = np.lib.format.read_magic(file)
        if version != (1, 0):  # NumPy takes as much memory as headers of others say they have
            raise ValueError(f"a file of NumPy's version {version}, expected (1, 0)")
        # Mapped: what the file claims to hold takes no memory that it does not.
        lengths = np.array(np.load(lengths_file, mmap_mode="r"))
    except OSError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise any of half a dozen types
        raise ValueError(f"{lengths_file}: not the lengths of records: {error}") from error
    return {**arguments, "lengths": lengths}


def _read_all(file: RecordFile, features: Sequence[FeatureSpec]) -> Iterator[dict[str, np.ndarray]]:
    """Read features of all records, in the order of the file, [n, length] of some at a time."""
    description = {
        feature.name: tf.io.FixedLenFeature([feature.length], getattr(tf, feature.dtype))
        for feature in features
    }
    for begin in range(0, len(file), _READ_AT_ONCE):
        end = min(begin + _READ_AT_ONCE, len(file))
        serialized = [file.read(number) for number in range(begin, end)]
        try:
            parsed = tf.io.parse_example(serialized, description)
        except PARSE_ERRORS as error:
            reason = getattr(error, "message", "one is no tf.train.Example")
            raise ValueError(
                f"{file.path}: records {begin} to {end - 1}: expected the features "
                f"{', '.join(description)}: {reason}"
            ) from error
        yield {name: rows.numpy() for name, rows in parsed.items()}


def _count_lengths(
    file: RecordFile, schema: Sequence[FeatureSpec], max_seq_length: int
) -> np.ndarray:
    """Count the tokens of each record that are not padding, int64 [N]."""
    ends = np.arange(1, max_seq_length + 1)
    lengths = []
    for part in _read_all(file, [f for f in schema if f.name == "input_mask"]):
        mask = part["input_mask"]
        mask = mask.reshape(len(mask), -1, max_seq_length)  # [n, C or 1, L]
        # To the last token: one that is hidden in between takes its place too.
        lengths.append(((mask != 0) * ends).max(axis=(1, 2)))
    return np.concatenate(lengths)


def _check_num_choices(kind: str, num_choices: int | None) -> None:
    if get_kind(kind).has_choices != (num_choices is not None):
        raise ValueError(
            f"num_choices: is for kinds of several sequences, got {num_choices} for {kind}"
        )


def _check_first(file: RecordFile, schema: Sequence[FeatureSpec]) -> None:
    try:
        decode_example(file.read(0), schema)
    except ValueError as error:
        raise ValueError(f"{file.path}: record 0: {error}") from error


def _check_ids(ids: tf.Tensor, vocab_size: int, path: str) -> None:
    """Stop at an id beyond the vocabulary: on a GPU a look-up would go on with wrong values."""
    message = (
        f"{path}: an id is beyond the vocab_size {vocab_size} of the model; were the records made "
        "with another vocabulary?"
    )
    tf.debugging.assert_less(ids, vocab_size, message)
    tf.debugging.assert_non_negative(ids, f"{path}: an id is below 0")


def _check_lengths(lengths: np.ndarray, count: int, max_seq_length: int, path: str) -> None:
    if lengths.shape != (count,):
        raise ValueError(
            f"lengths: expected one for each of the {count} records of {path}, got "
            f"shape {lengths.shape}"
        )
    is_integer = lengths.dtype.kind in "iu"  # NumPy finds no least of some other types
    low, high = (lengths.min(), lengths.max()) if is_integer else (None, None)
    if low is None or high is None or low < 0 or high > max_seq_length:
        raise ValueError(
            f"lengths: expected integers from 0 to the max_seq_length {max_seq_length} of "
            f"{path}, got {lengths.dtype} from {low} to {high}"
        )


def _cut_windows(batch: dict[str, Any], windows: Any, shape: Sequence[int], path: str) -> None:
    """Make inputs [B, windows, L] of rows of more windows, which must be padding.

    Args:
        batch: of rows [B, W * L].
        windows: how many are kept; None for all, a size that a TPU knows when it compiles.
        shape: [-1, W, L].
        path: of the records.
    """
    for name in INPUT_NAMES:
        rows = tf.reshape(batch[name], shape)
        if windows is None:
            batch[name] = rows
            continue
        if name == "input_mask":
            tf.debugging.assert_equal(
                tf.reduce_sum(rows[:, windows:]),
                0,
                f"{path}: a record has more windows than its length says; lengths are of other "
                "records",
            )
        batch[name] = rows[:, :windows]


def _check_no_filler(weights: Any, path: str) -> None:
    """Stop at an example of weight 0, which Keras would count where it gets no weights."""
    message = f"{path}: a record only fills a batch up; ask for with_weights=True"
    for weight in tf.nest.flatten(weights):
        tf.debugging.assert_equal(weight, 1.0, message)


def _check_cut(mask: tf.Tensor, length: tf.Tensor, max_seq_length: int, path: str) -> None:
    """Stop where a batch of some length would lose tokens."""
    rows = tf.reshape(mask, [-1, max_seq_length])
    tf.debugging.assert_equal(
        tf.reduce_sum(rows[:, length:]),
        0,
        f"{path}: a record is longer than its length says; lengths are of other records",
    )
