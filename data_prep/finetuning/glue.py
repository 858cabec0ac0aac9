"""GLUE: official TSV files and TFDS folders to examples, examples to features, submissions.

Columns are found by the names in a file's header; CoLA's train and dev files have none, and there
the official positions hold. A line is an example and a tab ends a field, always: quotes are
ordinary characters, balanced or not. The labels of test files are not public and are never read.

References: gluebenchmark.com; google-research/bert run_classifier.py (MrpcProcessor and others,
convert_single_example); BERT paper (arXiv 1810.04805 v2), appendix B.1.
"""

import collections
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_tf.files import write_text
from bert_tf.tasks.document_windows import TextRule
from bert_tf.tasks.table import TASKS, Task
from bert_tf.tokenization.packing import pack_pair
from bert_tf.tokenization.vocabulary import CLS_TOKEN, SEP_TOKEN
from bert_tf.tokenization.wordpiece import FullTokenizer

OnBad = Callable[[str], None] | None
Label = str | float | tuple[str, ...] | None

_BOM = b"\xef\xbb\xbf"
NO_GOLD_LABEL = "-"  # annotators of SNLI and MNLI did not agree


@dataclasses.dataclass(frozen=True, slots=True)
class TextExample:
    """A text or a pair of texts, with what is known of it.

    Attributes:
        guid: split and number, such as "dev-7"; the number is the file's own where it has one.
        text_a: the first text.
        text_b: the second, or None.
        label: name of the label; a number for regression; names for several labels at once; None
            where it is not known.
        location: where it stands, for messages: "<path>, line <n>".
    """

    guid: str
    text_a: str
    text_b: str | None
    label: Label
    location: str


# === Official files ===


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Names of a task's columns: as in the official files, and in TFDS (None: the same)."""

    text_a: str
    text_b: str | None
    label: str
    tfds_text_a: str | None = None
    tfds_text_b: str | None = None


_SENTENCES = _Layout("sentence1", "sentence2", "label")
_NLI = _Layout("sentence1", "sentence2", "gold_label", "premise", "hypothesis")
_LAYOUTS = {
    "cola": _Layout("sentence", None, "label"),
    "sst-2": _Layout("sentence", None, "label"),
    "mrpc": _Layout("#1 String", "#2 String", "Quality", "sentence1", "sentence2"),
    "sts-b": _Layout("sentence1", "sentence2", "score"),
    "qqp": _Layout("question1", "question2", "is_duplicate"),
    "mnli": _NLI,
    "qnli": _Layout("question", "sentence", "label"),
    "rte": _SENTENCES,
    "wnli": _SENTENCES,
    "ax": _NLI,
}
GLUE_TASKS = tuple(_LAYOUTS)
_ID_COLUMNS = ("index", "id")
_COLA_COLUMNS = ("source", "label", "original", "sentence")  # of the files without a header


def _layout(task: Task) -> _Layout:
    if task.name not in _LAYOUTS:
        raise ValueError(f"task {task.name} is not of GLUE: expected one of {', '.join(_LAYOUTS)}")
    return _LAYOUTS[task.name]


def is_test_split(split: str) -> bool:
    """Tell whether a split's labels are not public: "test", "test_matched" and such."""
    return split == "test" or split.startswith("test_")


def split_path(task: Task, data_dir: str | os.PathLike[str], split: str) -> str:
    """Name the file of a split.

    Args:
        task: of GLUE.
        data_dir: the task's own folder, as the original's --data_dir.
        split: name of the file without .tsv: "train", "dev", "dev_matched", "test"; the diagnostic
            set's "test" is diagnostic.tsv.

    Returns:
        The path of an existing file.

    Raises:
        FileNotFoundError: there is no such file; the message names those that are there.
        ValueError: the task is not of GLUE.
    """
    _layout(task)
    name = "diagnostic.tsv" if task.name == "ax" else f"{split}.tsv"
    path = os.path.join(data_dir, name)
    if os.path.isfile(path):
        return path
    if os.path.isfile(os.path.join(data_dir, task.folder, name)):
        hint = f"; it lies in {os.path.join(data_dir, task.folder)}: give that folder"
    elif os.path.isdir(data_dir):
        tables = sorted(entry for entry in os.listdir(data_dir) if entry.endswith(".tsv"))
        hint = f"; the folder has {', '.join(tables) or 'no .tsv file'}"
    else:
        hint = "; there is no such folder"
    raise FileNotFoundError(f"{task.name}: no {name} in {os.fspath(data_dir)}{hint}")


def available_splits(task: Task, data_dir: str | os.PathLike[str]) -> list[str]:
    """Name the splits whose files are in a folder.

    Args:
        task: of GLUE.
        data_dir: the task's own folder.

    Returns:
        Those of the task's splits that are there, training first. Where a task has several dev or
        test splits, a lone dev.tsv or test.tsv (of a sample) counts too.

    Raises:
        ValueError: the task is not of GLUE.
    """
    _layout(task)
    if task.name == "ax":
        there = os.path.isfile(os.path.join(data_dir, "diagnostic.tsv"))
        return ["test"] if there else []
    splits = [task.train_split, *task.eval_splits, "dev", *task.test_splits, "test"]
    return [
        split
        for split in dict.fromkeys(splits)
        if split and os.path.isfile(os.path.join(data_dir, f"{split}.tsv"))
    ]


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    r"""Lines with their numbers from 1, without line ends; empty ones are left out.

    Only \n and \r\n end a line: csv and str.splitlines() would also cut at others.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if line:
                yield number, line


def _find_columns(
    path: str, task: Task, first: Sequence[str], labelled: bool
) -> tuple[list[str], bool]:
    """Return the names of a file's columns, and whether its first line is a header with them."""
    layout = _layout(task)
    needed = [layout.text_a, layout.text_b, layout.label if labelled else None]
    names = [name.strip().casefold() for name in first]
    missing = [name for name in needed if name and name.casefold() not in names]
    if not missing:
        twice = [name for name in needed if name and names.count(name.casefold()) > 1]
        if twice:
            raise ValueError(f"{path}, line 1: column {twice[0]!r} stands twice in the header")
        return names, True
    if task.name == "cola" and labelled:
        return list(_COLA_COLUMNS), False
    shown = ", ".join(map(repr, missing))
    raise ValueError(
        f"{path}, line 1: expected a header with column {shown}, got {', '.join(map(repr, first))}"
    )


def read_file(
    task: Task, path: str, split: str, on_bad: OnBad = None, on_skip: OnBad = None
) -> Iterator[TextExample]:
    """Read a TSV file in a task's official columns, line by line.

    The labels of test splits are not public, so their examples have none. Examples of MNLI (and of
    SNLI in its layout) with the gold label "-", on which annotators did not agree, are left out as
    in the official evaluation.

    Args:
        task: of GLUE.
        path: the file.
        split: the split it holds: first part of `guid`, and without labels if it is a test split.
        on_bad: what to do with the message of a bad line; None to raise it.
        on_skip: told of each example without a gold label; None for silence.

    Yields:
        The examples in order.

    Raises:
        ValueError: a bad line (columns too few or many, unknown label, not UTF-8), naming file and
            line, unless on_bad takes it; always for an empty file or one without a needed column.
        OSError: the file cannot be read.
    """
    layout = _layout(task)
    labelled = not is_test_split(split)
    names: list[str] = []
    is_header = False
    text_a = text_b = label = number_column = -1
    has_examples = False
    for number, raw in _lines(path):
        location = f"{path}, line {number}"
        try:
            fields = raw.decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            if not names:
                raise ValueError(f"{location}: not UTF-8: {error}") from None
            has_examples = True
            refuse(on_bad, f"{location}: not UTF-8: {error}")
            continue
        if not names:
            names, is_header = _find_columns(path, task, fields, labelled)
            text_a = names.index(layout.text_a.casefold())
            text_b = names.index(layout.text_b.casefold()) if layout.text_b else -1
            label = names.index(layout.label.casefold()) if labelled else -1
            number_column = next((names.index(n) for n in _ID_COLUMNS if n in names), -1)
            if is_header:
                continue
        has_examples = True
        if len(fields) != len(names):
            refuse(on_bad, f"{location}: expected {len(names)} columns, got {len(fields)}")
            continue
        value: Label = None
        if labelled:
            if fields[label] == NO_GOLD_LABEL and task.name == "mnli":
                if on_skip is not None:
                    on_skip(f"{location}: no gold label")
                continue
            try:
                value = _parse_label(task, fields[label])
            except ValueError as error:
                refuse(on_bad, f"{location}: {error}")
                continue
        # The original counts lines from 0, a header included; submissions count the examples.
        first = 2 if is_header and not labelled else 1
        name = fields[number_column] if number_column >= 0 else number - first
        yield TextExample(
            f"{split}-{name}",
            fields[text_a],
            fields[text_b] if text_b >= 0 else None,
            value,
            location,
        )
    if not has_examples:
        raise ValueError(f"{path}: no examples: the file is empty or has but a header")


def refuse(on_bad: OnBad, message: str) -> None:
    """Raise, or hand over, the message of a bad example."""
    if on_bad is None:
        raise ValueError(message)
    on_bad(message)


def _parse_label(task: Task, text: str) -> str | float:
    """Return a label as an example has it; raise ValueError without the location."""
    if task.kind == "regression":
        return parse_number(text)
    if task.labels is not None and text not in task.labels:
        raise ValueError(f"unknown label {text!r}: expected one of {', '.join(task.labels)}")
    return text


def parse_number(text: str) -> float:
    """Read the label of a regression.

    Args:
        text: a decimal number.

    Raises:
        ValueError: not a finite number; the message says so without a location.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number as label, got {text!r}")
    return value


# === TensorFlow Datasets ===

_TFDS_SPLITS = {"dev": "validation"}  # and dev_matched: validation_matched


def tfds_folder(task: Task, data_dir: str | os.PathLike[str]) -> str:
    """Find a task's prepared folder: the one with dataset_info.json.

    Args:
        task: of GLUE.
        data_dir: that folder itself, or the one in which TFDS keeps all
            (<data_dir>/glue/mrpc/2.0.0).

    Returns:
        The folder; of several versions the highest.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the task is not of GLUE.
    """
    _layout(task)
    if os.path.isfile(os.path.join(data_dir, "dataset_info.json")):
        return os.fspath(data_dir)
    parent = os.path.join(data_dir, task.tfds_name or "")
    versions = []
    for name in os.listdir(parent) if os.path.isdir(parent) else ():
        parts = name.split(".")
        if all(part.isdigit() for part in parts) and os.path.isfile(
            os.path.join(parent, name, "dataset_info.json")
        ):
            versions.append((tuple(map(int, parts)), name))
    if not versions:
        raise FileNotFoundError(
            f"{task.name}: no prepared TFDS data in {os.fspath(data_dir)}: expected "
            f"dataset_info.json there or in {os.path.join(parent, '<version>')}"
        )
    return os.path.join(parent, max(versions)[1])


def read_tfds(
    task: Task, split: str, data_dir: str | os.PathLike[str], on_bad: OnBad = None
) -> Iterator[TextExample]:
    """Read a split that TensorFlow Datasets has prepared, in stored order and without network.

    TFDS shuffles the examples when it prepares them, so the order is not the official file's; the
    numbers in `guid` are. It imports TensorFlow, so worker processes must not call it.

    Args:
        task: of GLUE.
        split: "train", "dev", "dev_matched", "test", ... as for `split_path`.
        data_dir: see `tfds_folder`.
        on_bad: what to do with the message of a bad example; None to raise it.

    Yields:
        The same examples as of the official files; `location` is "<folder>, <split> example <n>".

    Raises:
        FileNotFoundError: see `tfds_folder`.
        ValueError: no such split or feature, or a bad example.
    """
    import tensorflow_datasets as tfds

    folder = tfds_folder(task, data_dir)
    layout = _layout(task)
    builder = tfds.builder_from_directory(folder)
    stored = split.replace("dev", _TFDS_SPLITS["dev"], 1) if split.startswith("dev") else split
    if stored not in builder.info.splits:
        raise ValueError(
            f"{folder}: no split {stored!r}; it has {', '.join(sorted(builder.info.splits))}"
        )
    features = builder.info.features
    text_a = layout.tfds_text_a or layout.text_a
    text_b = (layout.tfds_text_b or layout.text_b) if layout.text_b else None
    labelled = not is_test_split(split)
    needed = [text_a, *([text_b] if text_b else []), *(["label"] if labelled else [])]
    missing = [name for name in needed if name not in features]
    if missing:
        raise ValueError(f"{folder}: no feature {missing[0]!r}; it has {', '.join(features)}")
    label_names = getattr(features["label"], "names", None) if labelled else None
    dataset = builder.as_dataset(split=stored, shuffle_files=False)
    for number, values in enumerate(tfds.as_numpy(dataset)):
        location = f"{folder}, {split} example {number}"
        value: Label = None
        if labelled:
            try:
                value = _tfds_label(task, values["label"], label_names)
            except ValueError as error:
                refuse(on_bad, f"{location}: {error}")
                continue
        yield TextExample(
            f"{split}-{values.get('idx', number)}",
            values[text_a].decode("utf-8"),
            values[text_b].decode("utf-8") if text_b else None,
            value,
            location,
        )


def _tfds_label(task: Task, stored: Any, names: Sequence[str] | None) -> str | float:
    """Return a stored label's official one: TFDS has its own names for those that are 0 and 1."""
    if task.kind == "regression":
        return parse_number(str(float(stored)))
    number, labels = int(stored), task.labels or ()
    same = set(names or ()) == set(labels) and 0 <= number < len(labels)
    label = names[number] if names and same else str(number)
    if label not in labels:
        raise ValueError(f"unknown label {label!r}: expected one of {', '.join(labels)}")
    return label


# === Features ===


def pack_texts(
    texts: Iterable[tuple[str, str | None]], tokenizer: FullTokenizer, max_seq_length: int
) -> dict[str, np.ndarray]:
    """Tokenize and pack texts and pairs, as the original does for fine-tuning.

    Args:
        texts: N pairs (first text, second or None).
        tokenizer: of the model's vocabulary.
        max_seq_length: L; longer input is cut (see `tokenization.truncate_pair`).

    Returns:
        input_ids int32 [N, L]; input_mask, segment_ids uint8 [N, L].

    Raises:
        ValueError: max_seq_length leaves no room for the special tokens.

    Reference: google-research/bert run_classifier.py, convert_single_example.
    """
    cls_id, sep_id = tokenizer.convert_tokens_to_ids([CLS_TOKEN, SEP_TOKEN])
    pack = functools.partial(pack_pair, max_seq_length=max_seq_length, cls_id=cls_id, sep_id=sep_id)
    encode = tokenizer.encode
    packed = [pack(encode(a), encode(b) if b else None) for a, b in texts]
    shape = (len(packed), max_seq_length)
    ids = itertools.chain.from_iterable(row[0] for row in packed)
    # bytes() of small integers is many times faster than np.array() of nested lists.
    return {
        "input_ids": np.fromiter(ids, np.int32, count=shape[0] * shape[1]).reshape(shape),
        "input_mask": _bytes_array([row[1] for row in packed]).reshape(shape),
        "segment_ids": _bytes_array([row[2] for row in packed]).reshape(shape),
    }


def pack_documents(
    texts: Iterable[tuple[str, str | None]], tokenizer: FullTokenizer, rule: TextRule
) -> dict[str, np.ndarray]:
    """Tokenize texts of any length, or pairs, and cut them into windows.

    Args:
        texts: N pairs (first text, second or None).
        tokenizer: of the model's vocabulary.
        rule: how they are cut.

    Returns:
        input_ids int32 [N, W * L]; input_mask, segment_ids uint8 [N, W * L]: the windows of a text
        from left to right, each padded to L, then padding. Also windows_left_out int64 [N], how
        many windows more each text would have had.
    """
    cls_id, sep_id = tokenizer.convert_tokens_to_ids([CLS_TOKEN, SEP_TOKEN])
    encode, rows = tokenizer.encode, list(texts)
    shape = (len(rows), rule.max_windows, rule.max_seq_length)
    input_ids = np.zeros(shape, np.int32)
    input_mask, segment_ids = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    left_out = np.zeros(len(rows), np.int64)
    for row, (text, second) in enumerate(rows):
        ids, query = encode(text), None
        if rule.has_pairs:
            ids, query = encode(second or ""), ids
        windows, left_out[row] = rule.cut(ids, query, cls_id=cls_id, sep_id=sep_id)
        for number, (window, first_size) in enumerate(windows):
            input_ids[row, number, : len(window)] = window
            input_mask[row, number, : len(window)] = 1
            segment_ids[row, number, first_size : len(window)] = 1
    arrays = {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
    flat = {name: a.reshape(len(rows), shape[1] * shape[2]) for name, a in arrays.items()}
    return {**flat, "windows_left_out": left_out}


def _bytes_array(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.frombuffer(b"".join(map(bytes, rows)), np.uint8)


def make_features(
    examples: Sequence[TextExample],
    tokenizer: FullTokenizer,
    max_seq_length: int,
    kind: str,
    labels: Sequence[str] | None,
    windows: TextRule | None = None,
) -> dict[str, np.ndarray]:
    """Turn examples into the arrays of their records.

    Args:
        examples: N examples. One without a label gets 0 (as the original's test files do).
        tokenizer: of the model's vocabulary.
        max_seq_length: L.
        kind: "classification", "regression" or "multi_label".
        labels: names of the labels, K of them; None for regression.
        windows: how texts are cut into windows; None for texts that are one sequence.

    Returns:
        input_ids int32 [N, L]; input_mask, segment_ids uint8 [N, L]; is_real_example uint8 [N, 1];
        label_ids int64 [N, 1], or float32 [N, 1] for regression, or float32 [N, K] for multi_label.
        With windows the inputs are those of `pack_documents`, and what it counts is there too.

    Raises:
        ValueError: an unknown label, naming the example's file and line; a kind that has no texts.

    Reference: google-research/bert run_classifier.py, convert_single_example.
    """
    texts = ((e.text_a, e.text_b) for e in examples)
    if windows is None:
        arrays = pack_texts(texts, tokenizer, max_seq_length)
    else:
        arrays = pack_documents(texts, tokenizer, windows)
    return {
        **arrays,
        "label_ids": _label_ids(examples, kind, labels),
        "is_real_example": np.ones((len(examples), 1), np.uint8),
    }


def _label_ids(
    examples: Sequence[TextExample], kind: str, labels: Sequence[str] | None
) -> np.ndarray:
    label_to_id = {label: i for i, label in enumerate(labels or ())}
    if kind == "regression":
        numbers = [0.0 if e.label is None else e.label for e in examples]
        return np.array(numbers, np.float32).reshape(-1, 1)
    if kind == "classification":
        ids = [0 if e.label is None else _label_id(label_to_id, e.label, e) for e in examples]
        return np.array(ids, np.int64).reshape(-1, 1)
    if kind == "multi_label":
        hot = np.zeros((len(examples), len(label_to_id)), np.float32)
        for row, example in enumerate(examples):
            names = example.label if isinstance(example.label, tuple) else ()
            for name in names:
                hot[row, _label_id(label_to_id, name, example)] = 1
        return hot
    raise ValueError(
        f"kind must be classification, regression or multi_label for texts; got {kind!r}"
    )


def _label_id(label_to_id: Mapping[str, int], label: Any, example: TextExample) -> int:
    if label not in label_to_id:
        raise ValueError(
            f"{example.location}: unknown label {label!r}: expected one of {', '.join(label_to_id)}"
        )
    return label_to_id[label]


# === Submissions ===

_SUBMISSION_NAMES = {
    ("mnli", "test_matched"): "MNLI-m",
    ("mnli", "test_mismatched"): "MNLI-mm",
    **{(name, "test"): TASKS[name].folder for name in GLUE_TASKS if name != "mnli"},
}
_SCORE_RANGE = (0.0, 5.0)  # of STS-B


def submission_file_name(task: Task, split: str = "test") -> str:
    """Name a split's file in a submission to gluebenchmark.com.

    Args:
        task: of GLUE.
        split: "test", or of MNLI "test_matched" or "test_mismatched".

    Returns:
        Such as "CoLA.tsv", "MNLI-mm.tsv".

    Raises:
        ValueError: a task or split that is not submitted.
    """
    if (task.name, split) not in _SUBMISSION_NAMES:
        splits = [known_split for name, known_split in _SUBMISSION_NAMES if name == task.name]
        if not splits:
            raise ValueError(f"task {task.name} is not of GLUE")
        raise ValueError(f"{task.name}: split must be one of {', '.join(splits)}; got {split!r}")
    return _SUBMISSION_NAMES[task.name, split] + ".tsv"


def write_submission(
    path: str | os.PathLike[str],
    task: Task,
    examples: Sequence[TextExample | str | int],
    predictions: Sequence[Any],
) -> None:
    """Write predictions as gluebenchmark.com wants them: index, prediction.

    Args:
        path: file to write; see `submission_file_name`.
        task: of GLUE.
        examples: N examples of the test split, or their numbers in it.
        predictions: N names or ids of labels; for STS-B N numbers, which are brought into its range
            from 0 to 5.

    Raises:
        ValueError: lengths that differ, numbers that are not or come twice, unknown labels.
    """
    _layout(task)
    if len(examples) != len(predictions):
        raise ValueError(
            f"predictions: expected {len(examples)}, one for each example, got {len(predictions)}"
        )
    rows: dict[int, str] = {}
    for example, prediction in zip(examples, predictions, strict=True):
        name = example.guid.rsplit("-", 1)[1] if isinstance(example, TextExample) else str(example)
        if not name.isdigit():
            raise ValueError(f"examples: expected the number of a test example, got {name!r}")
        if int(name) in rows:
            raise ValueError(f"examples: number {name} comes twice")
        rows[int(name)] = _prediction_text(task, prediction, name)
    lines = [f"{number}\t{rows[number]}\n" for number in sorted(rows)]
    write_text(path, "".join(["index\tprediction\n", *lines]))


def _prediction_text(task: Task, prediction: Any, number: str) -> str:
    if task.kind == "regression":
        value = float(prediction)
        if not math.isfinite(value):
            raise ValueError(f"predictions: expected a number for example {number}, got {value}")
        low, high = _SCORE_RANGE
        return f"{min(max(value, low), high):.5f}"
    labels = task.labels or ()
    if isinstance(prediction, str):
        if prediction in labels:
            return prediction
    elif 0 <= int(prediction) < len(labels) and int(prediction) == prediction:
        return labels[int(prediction)]
    raise ValueError(
        f"predictions: expected one of {', '.join(labels)}, or its id, for example {number}; "
        f"got {prediction!r}"
    )


def majority_label(labels: Iterable[str]) -> str:
    """Find the label that comes most often: the paper's prediction for WNLI.

    Args:
        labels: those of the training examples.

    Returns:
        The most frequent one; of equally frequent ones the first in alphabetical order.

    Raises:
        ValueError: there is none.

    Reference: BERT paper, appendix B.1.
    """
    counts = collections.Counter(labels)
    if not counts:
        raise ValueError("labels: expected at least one, got none")
    return min(counts, key=lambda label: (-counts[label], label))
