"""Where examples come from: official folders, tables, tagged files, tensorflow-datasets."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bert_tf.options import option
from bert_tf.tasks.table import Task, custom_task
from bert_tf.tasks.tag_schemes import TagScheme, tag_scheme
from data_prep.finetuning import glue, ner, tables
from data_prep.finetuning.glue import OnBad
from data_prep.finetuning.kinds import reader_of


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the examples of a split come from.

    Attributes:
        split: the split's name; the records are named after it.
        files: files whose content the examples depend on.
        read: (on_bad, on_skip) -> iterator over the examples, in order; see the readers.
        settings: what the examples depend on beside the files; values that JSON can hold.
        labelled: whether the examples have labels; the records of others have zeros for them.
        line_per_example: whether lines of the files tell, nearly, how many examples to expect.
    """

    split: str
    files: tuple[str, ...]
    read: Callable[[OnBad, OnBad], Iterator[Any]]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labelled: bool = True
    line_per_example: bool = True

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.split):
            raise ValueError(f"split: expected letters, digits and _ . -, got {self.split!r}")


def file_source(task: Task, path: str | os.PathLike[str], split: str) -> Source:
    """Name a file in the official format of a task as a source.

    Args:
        task: of TASKS.
        path: the file.
        split: the split it holds; those called "test" or "test_..." have no labels in most tasks.
    """
    reader, path = reader_of(task), os.fspath(path)

    def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[Any]:
        return reader.read_file(task, path, split, on_bad, on_skip)

    settings = {"reader": task.kind, "task": task.name}
    labelled = reader.test_is_labelled or not glue.is_test_split(split)
    return Source(split, (path,), read, settings, labelled, reader.line_per_example)


def folder_source(task: Task, data_dir: str | os.PathLike[str], split: str) -> Source:
    """Name the official file of a split in a folder as a source.

    Args:
        task: of TASKS.
        data_dir: the task's own folder, as the original's --data_dir.
        split: such as "train", "dev", "dev_matched", "test".

    Raises:
        FileNotFoundError: there is no such file.
    """
    return file_source(task, reader_of(task).find_file(task, os.fspath(data_dir), split), split)


@dataclasses.dataclass(frozen=True)
class TaggedOptions:
    """How tagged words are read and shown to a model."""

    token_column: int = option(
        0, "Column of the words, from 0; from the end if negative.", group="data"
    )
    tag_column: int | None = option(-1, "Column of the tags, likewise.")
    tag_scheme: str = option(
        "original",
        "Tags as they are in the files, or with B- on the first word of every entity.",
        choices=tuple(ner.TAG_SCHEMES),
    )
    document_context: bool = option(
        False, "Fill sequences up with the words around the sentence in its document."
    )

    def without_tags(self) -> "TaggedOptions":
        """Return how a file is read that has no column of tags."""
        return dataclasses.replace(self, tag_column=None)


def tagged_source(
    path: str | os.PathLike[str],
    split: str,
    tagged: TaggedOptions = TaggedOptions(),
    labels: Sequence[str] | None = None,
    scheme: TagScheme | None = None,
) -> Source:
    """Name a file of tagged words as a source.

    Args:
        path: see `ner.read_sentences`.
        split: the split it holds.
        tagged: how it is read; for words of the document around each sentence the task's settings
            must say so too.
        labels: where given, tags that are not among them become O in the records, or the first of
            labels without O. No model of these labels predicts them, so `entity_scores`, of the
            tags of the file, counts them as missed.
        scheme: as for `read_tagged`.
    """
    path = os.fspath(path)
    allowed = None if labels is None else frozenset(labels)
    other = ner.OUTSIDE if not labels or ner.OUTSIDE in labels else labels[0]

    def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[Any]:
        sentences = read_tagged(path, tagged, on_bad, scheme)
        if allowed is not None:
            sentences = (
                dataclasses.replace(
                    s, tags=tuple(tag if tag in allowed else other for tag in s.tags)
                )
                for s in sentences
            )
        return ner.documents(sentences) if tagged.document_context else ((s,) for s in sentences)

    settings = {"reader": "token_classification", **dataclasses.asdict(tagged)}
    if allowed is not None:
        settings["other_tags"] = other  # the labels themselves are the task's
    if scheme is not None:
        settings["scheme"] = scheme.kind
    labelled = tagged.tag_column is not None
    return Source(split, (path,), read, settings, labelled, line_per_example=False)


def read_tagged(
    path: str,
    tagged: TaggedOptions,
    on_bad: OnBad = None,
    scheme: TagScheme | None = None,
) -> Iterator[ner.Sentence]:
    """Read sentences, and write their tags in a scheme.

    Args:
        path: as for `tagged_source`.
        tagged: likewise.
        on_bad: as for `ner.read_sentences`.
        scheme: of all tags that there are; None (default) for those of this file alone.
    """
    convert = ner.TAG_SCHEMES[tagged.tag_scheme]
    words, tags = tagged.token_column, tagged.tag_column
    scheme = scheme or ner.scheme_of(path, words, tags)
    for sentence in ner.read_sentences(
        path, on_bad=on_bad, token_column=words, tag_column=tags, scheme=scheme
    ):
        yield dataclasses.replace(sentence, tags=convert(sentence.tags, scheme))


def schemes_of_all(paths: Mapping[str, str], tagged: TaggedOptions) -> dict[str, TagScheme]:
    """Find the files whose tags mean something else than the file alone shows.

    Tags without forms are types beside O and words without it, and a small file may have no O. The
    tags of the training file say what they are, or without one those of all files together.

    Args:
        paths: split -> file, of files with tags.
        tagged: as for `tagged_source`.

    Returns:
        Split -> the scheme to read its file with.
    """
    columns = (tagged.token_column, tagged.tag_column)
    tags = {split: ner.tags_in(path, *columns) for split, path in paths.items()}
    of_all = tag_scheme(tags["train"] if "train" in tags else set().union(*tags.values()))
    own = {split: tag_scheme(found) for split, found in tags.items()}
    # Forms say by themselves what they mean, and other files may have them.
    return {
        split: of_all
        for split, found in tags.items()
        if own[split] != of_all and own[split].kind != "forms" and of_all.reads(found)
    }


def tfds_source(task: Task, data_dir: str | os.PathLike[str], split: str) -> Source:
    """Name a split that TensorFlow Datasets has prepared as a source.

    Args:
        task: of GLUE.
        data_dir: see `glue.tfds_folder`.
        split: such as "train", "dev", "dev_matched", "test".

    Raises:
        FileNotFoundError: there is no prepared data.
    """
    folder = glue.tfds_folder(task, data_dir)
    files = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())

    def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[Any]:
        return glue.read_tfds(task, split, folder, on_bad)

    settings = {"reader": "tfds", "task": task.name}
    labelled = not glue.is_test_split(split)
    return Source(split, tuple(files), read, settings, labelled, line_per_example=False)


def table_source(
    task: Task, path: str | os.PathLike[str], split: str, columns: tables.Columns
) -> Source:
    """Name a table of one's own as a source.

    Args:
        task: see `table_task`.
        path: CSV, TSV or JSONL.
        split: the split's name. In the file of a test split label columns need not be there.
        columns: which columns mean what.

    Raises:
        ValueError: a test split's file that is empty or begins badly.
    """
    path = os.fspath(path)
    if glue.is_test_split(split) and not tables.has_labels(path, columns):
        columns = dataclasses.replace(columns, label=())

    def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[Any]:
        return tables.read_examples(path, columns, task.kind, task.labels, split, on_bad)

    described = dataclasses.asdict(columns) | {"file_format": tables.format_of(path, columns)}
    settings = {"reader": "table", "columns": described}
    return Source(split, (path,), read, settings, labelled=bool(columns.label))


def table_task(
    kind: str,
    columns: tables.Columns,
    train_file: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    name: str = "custom",
    skip_bad_examples: bool = False,
) -> Task:
    """Make the task of one's own tables.

    Args:
        kind: "classification", "regression" or "multi_label".
        columns: which columns mean what.
        train_file: where the labels are found if they are not given.
        labels: the labels in the order of their ids; None to find them.
        name: of the task.
        skip_bad_examples: leave bad rows out in finding the labels.

    Raises:
        ValueError: neither labels nor a training file, or see `tables.infer_labels`.
    """
    label_names = tuple(labels) if labels else None
    if len(columns.label) > 1 and label_names is not None and label_names != columns.label:
        raise ValueError("labels: where each label has a column, they are the columns' names")
    if label_names is None and kind != "regression":
        if train_file is None:
            raise ValueError(f"labels: {kind} needs a training file, or the labels themselves")
        ignore = (lambda message: None) if skip_bad_examples else None
        label_names = tables.infer_labels(train_file, columns, kind, ignore)
    return custom_task(kind, label_names, columns.text_b is not None, name)


def available_splits(task: Task, data_dir: str | os.PathLike[str], tfds: bool = False) -> list[str]:
    """Name the splits of a task that a folder has.

    Args:
        task: of TASKS.
        data_dir: the task's own folder, or with tfds see `glue.tfds_folder`.
        tfds: whether TensorFlow Datasets has prepared it.

    Returns:
        Their names, training first.
    """
    if tfds:
        return [s for s in (task.train_split, *task.eval_splits, *task.test_splits) if s]
    if task.name in glue.GLUE_TASKS:
        return glue.available_splits(task, data_dir)
    splits = []
    for split in filter(None, (task.train_split, *task.eval_splits, *task.test_splits)):
        with contextlib.suppress(FileNotFoundError):
            reader_of(task).find_file(task, os.fspath(data_dir), split)
            splits.append(split)
    return splits
