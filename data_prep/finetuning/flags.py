"""Flags that name fine-tuning data, and the sources they mean."""

import dataclasses
import functools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tasks.table import TASKS, Task, get_task
from data_prep.finetuning import glue, ner, swag, tables
from data_prep.finetuning.kinds import reader_of
from data_prep.finetuning.sources import (
    Source,
    available_splits,
    file_source,
    read_tagged,
    table_source,
    table_task,
    tagged_source,
    tfds_source,
)

_FILE_FLAGS = {"train": "train_file", "dev": "dev_file", "test": "test_file"}
# Of kinds that not every script has: a flag by which to know those that do.
_FLAG_OF_KIND = {"token_classification": "tag_scheme", "span": "doc_stride"}


def define_data_flags(values: flags.FlagValues) -> None:
    """Define the flags that say what the data are; the scripts that train have them too.

    Args:
        values: where to define them.
    """
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
    names = functools.partial(flags.DEFINE_list, flag_values=values)
    string("task_name", None, f"One of {', '.join(TASKS)}; leave it out for tables of your own.")
    define_file_flags(values)
    names("splits", None, "Splits to make, such as train,dev_matched. Default: all that are there.")
    boolean("tfds", False, "Read what TensorFlow Datasets has prepared in --data_dir.")
    flags.DEFINE_enum(
        "kind",
        "classification",
        ["classification", "regression", "multi_label"],
        "What the labels of your own tables are.",
        flag_values=values,
    )
    string("text_column", None, "Column of the text, or of a pair's first text.")
    string("text_b_column", None, "Column of a pair's second text.")
    names("label_column", [], "Column of the label; for multi_label also several, of 0 and 1.")
    string("label_separator", "|", "What separates labels in one column, for multi_label.")
    names("labels", None, "Labels in the order of their ids. Default: those of the training file.")
    string("id_column", None, "Column with a name for each row.")
    flags.DEFINE_enum(
        "file_format",
        None,
        list(tables.FORMATS),
        "Format of your own tables. Default: by the file's extension.",
        flag_values=values,
    )
    boolean("has_header", True, "Whether the first row names the columns; else they are 0, 1, ...")
    boolean(
        "quotes",
        None,
        'Whether "..." may hold separators and line ends. Default: in CSV yes, in TSV no.',
    )


def define_file_flags(values: flags.FlagValues) -> None:
    """Define the flags that say where data lie, and what to do with bad examples.

    Args:
        values: where to define them.
    """
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    string("data_dir", None, "The task's own folder, with its official files.")
    for split, flag in _FILE_FLAGS.items():
        string(flag, None, f"File of the {split} split, in place of --data_dir.")
    integer(
        "num_workers",
        0,
        "Worker processes; 0 for one per core, or none if the input is small.",
        lower_bound=0,
    )
    flags.DEFINE_bool(
        "skip_bad_examples",
        False,
        "Leave bad examples out, and list them in a file.",
        flag_values=values,
    )
    integer("max_bad_shown", 10, "Most bad examples shown of a split.", lower_bound=0)


def define_tagged_flags(values: flags.FlagValues) -> None:
    """Define the flags of tagged words.

    Args:
        values: where to define them.
    """
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    integer("token_column", 0, "Column of the words, from 0; from the end if negative.")
    integer("tag_column", -1, "Column of the tags, likewise.")
    flags.DEFINE_enum(
        "tag_scheme",
        "original",
        list(ner.TAG_SCHEMES),
        "Tags as they are in the files, or with B- on the first word of every entity.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "document_context",
        False,
        "Fill sequences up with the words around the sentence in its document.",
        flag_values=values,
    )


def define_span_flags(values: flags.FlagValues) -> None:
    """Define the flags of questions on documents, run_squad.py's.

    Args:
        values: where to define them.
    """
    default = WindowRule()
    integer = functools.partial(flags.DEFINE_integer, flag_values=values, lower_bound=1)
    integer("doc_stride", default.doc_stride, "Tokens between the starts of two windows.")
    integer("max_query_length", default.max_query_length, "Tokens of a question that are kept.")


def sources_from_flags(values: flags.FlagValues) -> tuple[Task, list[Source]]:
    """Find out what is to be made.

    Args:
        values: parsed flags.

    Returns:
        The task, with its labels, and the sources of its splits.

    Raises:
        ValueError: flags that contradict each other, or a training file that is bad.
        FileNotFoundError: a file that is not there.
    """
    if values.task_name is None:
        return _own_tables(values, _given_files(values))
    task = get_task(values.task_name)
    flag = _FLAG_OF_KIND.get(task.kind)
    if flag is not None and flag not in values:
        raise ValueError(f"task_name: {task.name} is for another script")
    if values.text_column is not None or values.label_column:
        raise ValueError(f"text_column, label_column: {task.name} has columns of its own")
    if values.tfds and values.data_dir is not None and not _given_files(values):
        splits = values.splits or available_splits(task, values.data_dir, True)
        return task, [tfds_source(task, values.data_dir, s) for s in splits]
    if task.kind == "token_classification":
        return tagged_sources(values, values.labels, values.splits)
    return file_sources(values, task, values.splits)


def file_sources(
    values: flags.FlagValues, task: Task, splits: Sequence[str] | None = None
) -> tuple[Task, list[Source]]:
    """Find the official files of a task.

    Args:
        values: parsed flags, those of `define_file_flags` among them.
        task: of TASKS.
        splits: splits to look for in --data_dir; None for all that are there.

    Returns:
        The task, with its number of choices if it has some, and the sources of its splits.

    Raises:
        ValueError: both or neither of --data_dir and files; a bad header.
        FileNotFoundError: a file that is not there.
    """
    files = _split_files(values, task, splits)
    found = [file_source(task, path, split) for split, path in files.items()]
    if task.kind == "multiple_choice":
        task = dataclasses.replace(task, num_choices=swag.count_choices(found[0].files[0]))
    return task, found


def tagged_sources(
    values: flags.FlagValues,
    labels: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> tuple[Task, list[Source]]:
    """Find files of tagged words; warn on standard error of tags that training lacks.

    Args:
        values: parsed flags, those of `define_file_flags` and `define_tagged_flags` among them.
        labels: the labels in the order of their ids; None for the tags of the training file.
        splits: as for `file_sources`.

    Returns:
        The task "ner", with its labels, and the sources of its splits. A test split whose file has
        no column of tags is not labelled.

    Raises:
        ValueError, FileNotFoundError: as for `file_sources`; no labels; a bad training file.
    """
    task = TASKS["ner"]
    files = _split_files(values, task, splits)
    on_bad = (lambda message: None) if values.skip_bad_examples else None

    def read(path: str):
        return read_tagged(path, values.token_column, values.tag_column, values.tag_scheme, on_bad)

    if labels is None:
        if "train" not in files:
            raise ValueError("labels: ner needs a training file, or the labels themselves")
        labels = ner.label_names(read(files["train"]))
    sources = []
    for split, path in files.items():
        tagged = not glue.is_test_split(split) or ner.has_tags(
            path, values.token_column, values.tag_column
        )
        if tagged and split != "train":
            _warn_of_other_tags(path, read(path), labels)
        sources.append(
            tagged_source(
                path,
                split,
                document_context=values.document_context,
                token_column=values.token_column,
                tag_column=values.tag_column if tagged else None,
                tag_scheme=values.tag_scheme,
                labels=None if split == "train" else labels,
            )
        )
    return dataclasses.replace(task, labels=tuple(labels)), sources


def _warn_of_other_tags(
    path: str, sentences: Iterable[ner.Sentence], labels: Sequence[str]
) -> None:
    counts = Counter(tag for s in sentences for tag in s.tags if tag not in labels)
    if counts:
        shown = ", ".join(f"{tag} {count:,}" for tag, count in sorted(counts.items()))
        print(
            f"warning: {path}: {counts.total():,} words have tags that are not among the labels "
            f"({shown}); no model predicts them, so they count as missed",
            file=sys.stderr,
            flush=True,
        )


def extra_settings(values: flags.FlagValues, task: Task) -> dict[str, Any]:
    """Collect what `finetuning_data.prepare` takes as `extra` for a kind of task.

    Args:
        values: parsed flags.
        task: any.
    """
    if task.kind == "token_classification":
        return {"document_context": values.document_context}
    if task.kind == "span":
        return {"doc_stride": values.doc_stride, "max_query_length": values.max_query_length}
    return {}


def _given_files(values: flags.FlagValues) -> dict[str, str]:
    files = {split: values[flag].value for split, flag in _FILE_FLAGS.items()}
    files = {split: path for split, path in files.items() if path}
    for path in files.values():
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no such file: {path}")
    return files


def _split_files(
    values: flags.FlagValues, task: Task, splits: Sequence[str] | None
) -> dict[str, str]:
    """Find the file of each split, by the files given or in --data_dir."""
    files = _given_files(values)
    if bool(files) == (values.data_dir is not None):
        raise ValueError(f"{task.name}: give either data_dir, or train_file, dev_file, test_file")
    if files:
        if splits:
            raise ValueError("splits: the files given say which there are")
        return files
    splits = splits or available_splits(task, values.data_dir)
    if not splits:
        raise FileNotFoundError(f"{task.name}: no file of the task in {values.data_dir}")
    find = reader_of(task).find_file
    return {split: find(task, values.data_dir, split) for split in splits}


def _own_tables(values: flags.FlagValues, files: dict[str, str]) -> tuple[Task, list[Source]]:
    if not files:
        raise ValueError("give task_name and data_dir, or train_file and text_column")
    if values.text_column is None:
        raise ValueError("text_column: needed to read tables of your own")
    columns = tables.Columns(
        text=values.text_column,
        text_b=values.text_b_column,
        label=tuple(values.label_column),
        separator=values.label_separator,
        id=values.id_column,
        file_format=values.file_format,
        has_header=values.has_header,
        quotes=values.quotes,
    )
    if not columns.label and set(files) != {"test"}:
        raise ValueError("label_column: needed for the train and dev splits")
    task = table_task(
        values.kind,
        columns,
        files.get("train"),
        values.labels,
        skip_bad_examples=values.skip_bad_examples,
    )
    return task, [table_source(task, path, split, columns) for split, path in files.items()]


class BadExamples:
    """Shows the first messages on bad examples, and counts all."""

    def __init__(self, shown: int):
        self._shown = shown
        self.count = 0

    def __call__(self, message: str) -> None:
        """Take one message."""
        self.count += 1
        if self.count <= self._shown:
            print(f"bad example: {message}", file=sys.stderr, flush=True)
