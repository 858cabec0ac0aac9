"""SWAG: choose the ending of a situation. Its CSV files to examples, examples to features.

Each example becomes as many sequences as it has endings: A is the context, B the beginning of the
next sentence with one of the endings. Any CSV with SWAG's columns and two endings or more will do.

References: Zellers et al. 2018 (arXiv 1808.05326); BERT paper (arXiv 1810.04805 v2), section 4.4.
"""

import csv
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning.glue import OnBad, is_test_split, pack_texts, refuse
from data_prep.finetuning.tables import TextLines, read_delimited

FILE_NAMES = {"train": "train.csv", "dev": "val.csv", "test": "test.csv"}
_NUMBER_COLUMN = ""  # the files' first column: a number, under an empty name


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A context and its possible continuations.

    Attributes:
        guid: split and number, such as "dev-7".
        context: what the choice follows.
        choices: the continuations, each whole.
        label: which one is right, from 0; None where it is not known.
        location: where it stands, for messages: "<path>, line <n>".
    """

    guid: str
    context: str
    choices: tuple[str, ...]
    label: int | None
    location: str


def split_path(data_dir: str | os.PathLike[str], split: str) -> str:
    """Name the official file of a split.

    Args:
        data_dir: the folder with train.csv, val.csv, test.csv.
        split: "train", "dev" or "test".

    Raises:
        ValueError: another split.
        FileNotFoundError: no such file.
    """
    if split not in FILE_NAMES:
        raise ValueError(f"swag: split must be one of {', '.join(FILE_NAMES)}; got {split!r}")
    path = os.path.join(data_dir, FILE_NAMES[split])
    if not os.path.isfile(path):
        raise FileNotFoundError(f"swag: no {FILE_NAMES[split]} in {os.fspath(data_dir)}")
    return path


def count_choices(path: str | os.PathLike[str]) -> int:
    """Count the endings that a file's header names.

    Args:
        path: CSV in SWAG's columns.

    Raises:
        ValueError: an empty file, or one without ending0 and ending1.
    """
    with TextLines(path) as lines:
        header = [name.strip() for name in next(csv.reader(lines), [])]
    if not header:
        raise ValueError(f"{os.fspath(path)}: the file is empty")
    count = sum(re.fullmatch(r"ending[0-9]+", name) is not None for name in header)
    missing = [f"ending{i}" for i in range(max(count, 2)) if f"ending{i}" not in header]
    if missing:
        raise ValueError(
            f"{os.fspath(path)}, line 1: no column {missing[0]!r}; the file has {', '.join(header)}"
        )
    return count


def read_examples(
    path: str | os.PathLike[str], split: str = "train", on_bad: OnBad = None
) -> Iterator[ChoiceExample]:
    """Read a file in SWAG's columns, row by row.

    Args:
        path: CSV with the columns sent1, sent2, ending0, ending1, ... and, but for test splits,
            label; others are not read.
        split: first part of `guid`; of test splits no labels are read.
        on_bad: what to do with the message of a bad row; None to raise it.

    Yields:
        The examples in order.

    Raises:
        ValueError: a bad row (columns too few or many, not UTF-8, a label that is no choice),
            naming file and line, unless on_bad takes it; always for an empty file or one without a
            needed column.
        OSError: the file cannot be read.
    """
    endings = [f"ending{i}" for i in range(count_choices(path))]
    labelled = not is_test_split(split)
    valid = {str(i): i for i in range(len(endings))}
    needed = ["sent1", "sent2", *endings, *(["label"] if labelled else [])]
    empty = True
    for row in read_delimited(path, needed):
        empty = False
        location = f"{os.fspath(path)}, line {row.line}"
        error = row.error
        if not error and labelled and row.values["label"].strip() not in valid:
            error = f"label must be from 0 to {len(endings) - 1}, got {row.values['label']!r}"
        if error:
            refuse(on_bad, f"{location}: {error}")
            continue
        values = row.values
        begin = values["sent2"]
        yield ChoiceExample(
            f"{split}-{values.get(_NUMBER_COLUMN) or row.line}",
            values["sent1"],
            tuple(f"{begin} {values[ending]}" if begin else values[ending] for ending in endings),
            valid[values["label"].strip()] if labelled else None,
            location,
        )
    if empty:
        raise ValueError(f"{os.fspath(path)}: no examples: the file has but a header")


def make_features(
    examples: Sequence[ChoiceExample],
    tokenizer: FullTokenizer,
    max_seq_length: int,
    num_choices: int,
) -> dict[str, np.ndarray]:
    """Turn examples into the arrays of their records.

    Args:
        examples: N examples. One without a label gets 0.
        tokenizer: of the model's vocabulary.
        max_seq_length: L.
        num_choices: C, choices of each example.

    Returns:
        input_ids int32 [N, C * L]; input_mask, segment_ids uint8 [N, C * L]; label_ids int64
        [N, 1]; is_real_example uint8 [N, 1]. Sequence c of an example is [c * L : (c + 1) * L].

    Raises:
        ValueError: an example with another number of choices, naming its file and line.

    Reference: BERT paper, section 4.4.
    """
    for example in examples:
        if len(example.choices) != num_choices:
            raise ValueError(
                f"{example.location}: expected {num_choices} choices, got {len(example.choices)}"
            )
    texts = ((e.context, choice) for e in examples for choice in e.choices)
    packed = pack_texts(texts, tokenizer, max_seq_length)
    shape = (len(examples), num_choices * max_seq_length)
    labels = [0 if e.label is None else e.label for e in examples]
    return {
        **{name: values.reshape(shape) for name, values in packed.items()},
        "label_ids": np.array(labels, np.int64).reshape(-1, 1),
        "is_real_example": np.ones((len(examples), 1), np.uint8),
    }
