"""Each kind of task: how its examples become records."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_tf.records.schema import FeatureSpec
from bert_tf.tasks.document_windows import TextRule, WindowRule
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.table import TASKS, Task
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import glue, ner, squad, swag, text_groups
from data_prep.finetuning.glue import OnBad


@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """What the records of a task depend on beside its examples and the vocabulary.

    Attributes:
        task: the task, with its labels.
        max_seq_length: L.
        extra: settings of one kind only, such as doc_stride; values that JSON can hold.
    """

    task: Task
    max_seq_length: int
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the data of one kind of task are found, read and made into records.

    Attributes:
        find_file: (task, folder, split) -> path of the split's official file.
        read_file: (task, path, split, on_bad, on_skip) -> iterator over examples.
        make_features: (examples, tokenizer, settings, index of the first example) -> arrays
            [M, ...] for `features_of`. M may exceed the number of examples; the rows are in their
            order. Arrays beyond those features are counts, whose sums the manifest has.
        test_is_labelled: whether official test files have labels.
        line_per_example: whether lines of a file tell, nearly, how many examples it has.
        count: (examples, tokenizer) -> further counts for the manifest.
        texts: example -> its texts, as they are tokenized.
    """

    find_file: Callable[[Task, str, str], str]
    read_file: Callable[[Task, str, str, OnBad, OnBad], Iterator[Any]]
    make_features: Callable[
        [Sequence[Any], FullTokenizer, FeatureSettings, int], dict[str, np.ndarray]
    ]
    test_is_labelled: bool = False
    line_per_example: bool = True
    count: Callable[[Sequence[Any], FullTokenizer], dict[str, int]] = lambda examples, tokenizer: {}
    texts: Callable[[Any], Sequence[str]] = lambda example: (example.text_a, example.text_b or "")


def _text_features(
    examples: Sequence[glue.TextExample],
    tokenizer: FullTokenizer,
    settings: FeatureSettings,
    first: int,
) -> dict[str, np.ndarray]:
    task = settings.task
    return glue.make_features(
        examples,
        tokenizer,
        settings.max_seq_length,
        task.kind,
        task.labels,
        text_rule(settings),
    )


def _num_choices(task: Task) -> int:
    if task.num_choices is None:
        raise ValueError(f"task {task.name}: num_choices must be given")
    return task.num_choices


def text_rule(settings: FeatureSettings) -> TextRule | None:
    """Read how texts to classify are cut into windows; None where they are one sequence.

    Raises:
        ValueError: a value of it is out of range, or the kind of task has no such windows.
    """
    task = settings.task
    if "max_windows" not in settings.extra:
        return None
    if not get_kind(task.kind).takes_windows:
        raise ValueError(f"max_windows: is for texts to classify, got a task of {task.kind}")
    return TextRule(settings.max_seq_length, has_pairs=task.has_pairs, **settings.extra)


def features_of(settings: FeatureSettings) -> tuple[FeatureSpec, ...]:
    """Return the features of a task's records.

    Raises:
        ValueError: a task of choices does not say how many; or as for `text_rule`.
    """
    task, kind = settings.task, get_kind(settings.task.kind)
    num_choices = _num_choices(task) if kind.has_choices else 1
    rule = text_rule(settings)
    length = settings.max_seq_length * (rule.max_windows if rule else 1)
    return kind.schema(length, len(task.labels or ()), num_choices)


_CONLL_NAMES = ("{}.txt", "{}.conll", "{}.tsv", "{}.bio", "{}.iob")
_CONLL_VALID_NAMES = tuple(name.format("valid") for name in _CONLL_NAMES)  # CoNLL++'s and others'
_SQUAD_NAMES = {
    "squad1.1": ("{}-v1.1.json", "{}-v1.1.subset.json"),
    "squad2.0": ("{}-v2.0.json", "{}-v2.0.subset.json"),
}
# Unique ids of a chunk's windows begin here, so many apart for each of its examples.
_IDS_PER_QUESTION = 4096


def _first_file(folder: str, split: str, names: Sequence[str]) -> str:
    paths = [os.path.join(folder, name.format(split)) for name in names]
    for path in paths:
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f"no such file: {paths[0]} (nor {', '.join(paths[1:])})")


def _tagged_features(
    groups: Sequence[Sequence[ner.Sentence]],
    tokenizer: FullTokenizer,
    settings: FeatureSettings,
    first: int,
) -> dict[str, np.ndarray]:
    arrays, _ = ner.make_features(
        [sentence for group in groups for sentence in group],
        tokenizer,
        settings.task.labels or (),
        settings.max_seq_length,
        settings.extra.get("document_context", False),
    )
    return arrays


def window_rule(settings: FeatureSettings) -> WindowRule:
    """Read how documents are cut into windows from the settings of a task of spans."""
    names = ("doc_stride", "max_query_length")
    lengths = {name: settings.extra[name] for name in names if name in settings.extra}
    return WindowRule(settings.max_seq_length, **lengths)


def _span_features(
    examples: Sequence[squad.SquadExample],
    tokenizer: FullTokenizer,
    settings: FeatureSettings,
    first: int,
) -> dict[str, np.ndarray]:
    return squad.make_features(
        examples,
        tokenizer,
        window_rule(settings),
        is_training=any(example.start_position is not None for example in examples),
        first_unique_id=squad.FIRST_UNIQUE_ID + first * _IDS_PER_QUESTION,
        answers_at_start=settings.extra.get("answers_at_start", False),
    )


_CLASSIFICATION = Reader(glue.split_path, glue.read_file, _text_features)


def _official_sts(task: Task, folder: str, split: str) -> str:
    return glue.split_path(TASKS["sts-b"], folder, split)


# Official files are STS-B's: of texts alone, without scores, for retrieval.
_TEXT_GROUPS = Reader(
    _official_sts,
    lambda task, path, split, on_bad, on_skip: text_groups.read_sts(
        path, split, text_groups.STS_MAX_SCORE, on_bad
    ),
    lambda groups, tokenizer, settings, first: text_groups.make_features(
        groups, tokenizer, settings.max_seq_length, settings.task.kind
    ),
    texts=lambda group: group.texts,
)

# The reader of each kind of `bert_tf.tasks.KINDS`.
READERS: dict[str, Reader] = {
    "classification": _CLASSIFICATION,
    "regression": _CLASSIFICATION,
    "multi_label": _CLASSIFICATION,
    "multiple_choice": Reader(
        lambda task, folder, split: swag.split_path(folder, split),
        lambda task, path, split, on_bad, on_skip: swag.read_examples(path, split, on_bad),
        lambda examples, tokenizer, settings, first: swag.make_features(
            examples, tokenizer, settings.max_seq_length, _num_choices(settings.task)
        ),
        texts=lambda example: (example.context, *example.choices),
    ),
    "similarity": _TEXT_GROUPS,
    "retrieval": _TEXT_GROUPS,
    "token_classification": Reader(
        lambda task, folder, split: _first_file(
            folder, split, _CONLL_NAMES + (_CONLL_VALID_NAMES if split == "dev" else ())
        ),
        lambda task, path, split, on_bad, on_skip: (
            (sentence,) for sentence in ner.read_sentences(path, on_bad=on_bad)
        ),
        _tagged_features,
        test_is_labelled=True,
        line_per_example=False,
        texts=lambda sentences: [" ".join(sentence.words) for sentence in sentences],
    ),
    "span": Reader(
        lambda task, folder, split: _first_file(folder, split, _SQUAD_NAMES[task.name]),
        lambda task, path, split, on_bad, on_skip: squad.read_squad(
            path,
            version_2_with_negative=task.name == "squad2.0",
            is_training=split == "train",
            on_bad=on_bad,
            on_skip=on_skip,
        ),
        _span_features,
        line_per_example=False,
        count=squad.count_answers,
        texts=lambda example: (example.question_text, " ".join(example.doc_tokens)),
    ),
}


def reader_of(task: Task) -> Reader:
    """Look a task's kind up.

    Args:
        task: any.

    Raises:
        ValueError: there is no reader for it.
    """
    if task.kind not in READERS:
        raise ValueError(
            f"task {task.name}: no reader for kind {task.kind}; there are {', '.join(READERS)}"
        )
    return READERS[task.kind]
