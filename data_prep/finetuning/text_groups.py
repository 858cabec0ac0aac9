"""Texts that are compared with each other: pairs with a number, pairs that belong together.

An example is C texts, each a sequence of its own: a text, its partner and any hard negatives.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.table import TASKS, Task, custom_task
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import glue, tables
from data_prep.finetuning.glue import OnBad

STS_MAX_SCORE = 5.0
NOT_THERE = 0  # in place of a text's number: a hard negative that a row does not have


@dataclasses.dataclass(frozen=True, slots=True)
class TextGroup:
    """Texts that are compared with each other.

    Attributes:
        guid: split and number, as of `glue.TextExample`.
        texts: the texts; "" for a hard negative that is not there.
        score: how like the first two are, -1 to 1; None where it is not known.
        location: where they stand, for messages: "<path>, line <n>".
    """

    guid: str
    texts: tuple[str, ...]
    score: float | None
    location: str


def text_task(kind: str, name: str, num_texts: int = 2) -> Task:
    """Make the task of groups of texts.

    Args:
        kind: "similarity" or "retrieval".
        name: of the data, which also names the folder of their records.
        num_texts: C.
    """
    return dataclasses.replace(custom_task(kind, None, True, name), num_choices=num_texts)


# === Reading ===


def read_sts(
    path: str | os.PathLike[str], split: str, max_score: float, on_bad: OnBad = None
) -> Iterator[TextGroup]:
    """Read an official file of STS-B.

    Args:
        path: the file.
        split: as for `glue.read_file`.
        max_score: the score that stands for 1.
        on_bad: what to do with the message of a bad line; None to raise it.

    Raises:
        ValueError, OSError: as of `glue.read_file`; a score beyond max_score.
    """
    for example in glue.read_file(TASKS["sts-b"], os.fspath(path), split, on_bad):
        score = example.label if isinstance(example.label, float) else None
        try:
            texts = [_checked("a sentence", text) for text in (example.text_a, example.text_b)]
            score = None if score is None else _scaled(score, max_score)
        except ValueError as error:
            glue.refuse(on_bad, f"{example.location}: {error}")
            continue
        yield TextGroup(example.guid, tuple(texts), score, example.location)


def read_table(
    path: str | os.PathLike[str],
    columns: tables.Columns,
    negatives: Sequence[str],
    split: str,
    max_score: float,
    on_bad: OnBad = None,
) -> Iterator[TextGroup]:
    """Read the rows of one's own table.

    Args:
        path: CSV, TSV or JSONL, UTF-8.
        columns: which columns mean what; a label is the score.
        negatives: columns of hard negatives, which may be empty.
        split: first part of `guid`.
        max_score: the score that stands for 1.
        on_bad: what to do with the message of a bad row; None to raise it.

    Raises:
        ValueError: a bad row, an empty text or a score beyond max_score among them, naming file and
            line, unless on_bad takes it; always for an empty file or one without a needed column.
        OSError: the file cannot be read.
    """
    empty = True
    for row in tables.read_rows(path, columns, negatives):
        empty = False
        location = f"{os.fspath(path)}, line {row.line}"
        try:
            if row.error:
                raise ValueError(row.error)
            group = TextGroup(
                f"{split}-{row.values[columns.id] if columns.id else row.line}",
                (*_texts(row.values, columns), *_negatives(row.values, negatives)),
                _score(row.values, columns, max_score),
                location,
            )
        except ValueError as error:
            glue.refuse(on_bad, f"{location}: {error}")
            continue
        yield group
    if empty:
        raise ValueError(f"{os.fspath(path)}: no examples: the file has but a header")


def repeated(groups: Iterator[TextGroup]) -> Iterator[TextGroup]:
    """Yield each different text of groups twice: what dropout alone makes two vectors of.

    Args:
        groups: whose texts they are.
    """
    seen = set()
    for group in groups:
        for text in group.texts:
            if text not in seen:
                seen.add(text)
                yield TextGroup(group.guid, (text, text), None, group.location)


def _checked(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name}: expected text, got none")
    return value


def _texts(values: Mapping[str, Any], columns: tables.Columns) -> list[str]:
    names = [name for name in (columns.text, columns.text_b) if name is not None]
    return [_checked(f"column {name!r}", values[name]) for name in names]


def _negatives(values: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    found = []
    for name in columns:
        value = values[name]
        is_none = value is None or (isinstance(value, str) and not value.strip())
        found.append("" if is_none else _checked(f"column {name!r}", value))
    return found


def _score(values: Mapping[str, Any], columns: tables.Columns, max_score: float) -> float | None:
    if not columns.label:
        return None
    (name,) = columns.label
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"column {name!r}: expected a number, got {type(value).__name__}")
    return _scaled(glue.parse_number(str(value)), max_score)


def _scaled(score: float, max_score: float) -> float:
    if not -max_score <= score <= max_score:
        raise ValueError(
            f"expected a score of {-max_score:g} to {max_score:g}, got {score:g}; max_score is the "
            "score of texts that mean the same"
        )
    return score / max_score


# === Records ===


def make_features(
    groups: Sequence[TextGroup], tokenizer: FullTokenizer, max_seq_length: int, kind: str
) -> dict[str, np.ndarray]:
    """Turn groups into the arrays of their records.

    Args:
        groups: N groups of C texts each. One without a score gets 0.
        tokenizer: of the model's vocabulary.
        max_seq_length: L.
        kind: "similarity" or "retrieval".

    Returns:
        input_ids int32 [N, C * L]; input_mask, segment_ids uint8 [N, C * L]; is_real_example uint8
        [N, 1]; label_ids: the scores float32 [N, 1], or int64 [N, C], a number of each text that
        follows from its pieces, and NOT_THERE for one that is not there.
    """
    num_texts = len(groups[0].texts)
    texts = [text for group in groups for text in group.texts]
    packed = glue.pack_texts(((text, None) for text in texts), tokenizer, max_seq_length)
    if get_kind(kind).labels == "text":
        pairs = zip(texts, packed["input_ids"], strict=True)
        numbers = [_number(ids) if text else NOT_THERE for text, ids in pairs]
        labels = np.array(numbers, np.int64).reshape(len(groups), num_texts)
    else:
        labels = np.array([group.score or 0.0 for group in groups], np.float32).reshape(-1, 1)
    shape = (len(groups), num_texts * max_seq_length)
    return {
        **{name: values.reshape(shape) for name, values in packed.items()},
        "label_ids": labels,
        "is_real_example": np.ones((len(groups), 1), np.uint8),
    }


def _number(ids: np.ndarray) -> int:
    """Return a number of 1 to 2^63 - 1 that is the same for equal pieces, and others for others.

    Of ten million texts two have one number in a run of 180,000.
    """
    digest = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (2**63 - 1) + 1
