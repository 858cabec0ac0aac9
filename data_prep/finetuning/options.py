"""Options that name fine-tuning data, and the sources they mean."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bert_tf.files import is_file, is_remote, local_copy
from bert_tf.options import option, same
from bert_tf.tasks.document_windows import TextRule, WindowRule
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.table import TASKS, Task, get_task
from bert_tf.tasks.tag_schemes import check_tags
from data_prep.finetuning import glue, ner, swag, tables
from data_prep.finetuning.kinds import reader_of
from data_prep.finetuning.sources import (
    Source,
    TaggedOptions,
    available_splits,
    file_source,
    read_tagged,
    schemes_of_all,
    table_source,
    table_task,
    tagged_source,
    tfds_source,
)

# === Options ===


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """Where the data of a task lie."""

    data_dir: str | None = option(
        None, "The task's own folder, with its official files.", path="any", group="data"
    )
    train_file: str | None = option(
        None, "File of the train split, in place of --data_dir.", path="any"
    )
    dev_file: str | None = option(
        None, "File of the dev split, in place of --data_dir.", path="any"
    )
    test_file: str | None = option(
        None, "File of the test split, in place of --data_dir.", path="any"
    )

    def by_split(self) -> dict[str, str]:
        """Return split -> path, on this machine, of the files that are named.

        Raises:
            FileNotFoundError: one is not there.
        """
        files = {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}
        named = {split: path for split, path in files.items() if path}
        for path in named.values():
            if not is_file(path):
                raise FileNotFoundError(f"no such file: {path}")
        return {split: local_copy(path) for split, path in named.items()}

    @property
    def folder(self) -> str:
        """The data_dir, on this machine."""
        return local_copy(self.data_dir or "", lambda name: "/" not in name)


@dataclasses.dataclass(frozen=True)
class RecordOptions:
    """How records are made, and what becomes of bad examples."""

    num_workers: int = option(
        0,
        "Worker processes; 0 for one per core, or none if the input is small.",
        minimum=0,
        group="data",
    )
    skip_bad_examples: bool = option(False, "Leave bad examples out, and list them in a file.")
    max_bad_shown: int = option(10, "Most bad examples shown of a split.", minimum=0)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What the data are: a task with official files, or tables of one's own."""

    task_name: str | None = option(
        None, f"One of {', '.join(TASKS)}; leave it out for tables of your own.", group="data"
    )
    files: FileOptions = FileOptions()
    splits: tuple[str, ...] | None = option(
        None, "Splits to make, such as train,dev_matched. Default: all that are there."
    )
    tfds: bool = option(False, "Read what TensorFlow Datasets has prepared in --data_dir.")
    labels: tuple[str, ...] | None = option(
        None, "Labels in the order of their ids. Default: those of the training file."
    )
    kind: str = option(
        "classification",
        "What the labels of your own tables are.",
        choices=("classification", "regression", "multi_label"),
    )
    columns: tables.Columns = tables.Columns()


@dataclasses.dataclass(frozen=True)
class SpanOptions:
    """How questions on documents become windows, as in run_squad.py."""

    doc_stride: int = option(
        WindowRule.doc_stride, "Tokens between the starts of two windows.", minimum=1, group="data"
    )
    max_query_length: int = option(
        WindowRule.max_query_length, "Tokens of a question that are kept.", minimum=1
    )
    answers_at_start: bool = option(
        False,
        "Learn each answer where its answer_start says, to the piece. By default, as in the "
        "original, its first occurrence among the words there is learned, or all of these: in "
        "scripts without spaces often another place, or a whole sentence.",
    )


@dataclasses.dataclass(frozen=True)
class WindowOptions:
    """How long texts to classify become windows."""

    doc_stride: int | None = option(
        None,
        "Cut texts, of pairs the second ones, into windows of --max_seq_length, whose starts are "
        "so many tokens apart. By default there is one, and longer texts are cut.",
        minimum=1,
        group="data",
    )
    max_windows: int | None = option(
        None,
        f"Windows of a text at most; what is beyond them is cut. Default: {TextRule.max_windows}.",
        minimum=1,
    )
    max_query_length: int | None = option(
        None,
        "Tokens of a question, or of the first text of pairs in windows, that are kept. Default: "
        f"{WindowRule.max_query_length}.",
        minimum=1,
    )

    def of(self, task: Task) -> dict[str, Any]:
        """Return what `prepare` takes as `extra` for texts to classify.

        Raises:
            ValueError: windows are asked for, and the task has none, or there is no stride.
        """
        for name in ("doc_stride", "max_windows", "max_query_length"):
            if getattr(self, name) is None:
                continue
            if not get_kind(task.kind).takes_windows:
                raise ValueError(f"{name}: is for texts to classify, got the task {task.name}")
            if self.doc_stride is None:
                raise ValueError(f"{name}: needs --doc_stride, which cuts texts into windows")
        if self.doc_stride is None:
            return {}
        extra = {
            "doc_stride": self.doc_stride,
            "max_windows": self.max_windows or TextRule.max_windows,
        }
        if not task.has_pairs:
            return extra
        return {**extra, "max_query_length": self.max_query_length or WindowRule.max_query_length}


@dataclasses.dataclass(frozen=True)
class WindowOrSpanOptions(WindowOptions):
    """The same, and how questions on documents become windows."""

    doc_stride: int | None = option(
        None,
        "Tokens between the starts of two windows: of SQuAD's documents, 128 by default; texts to "
        "classify, and of pairs the second ones, are cut into windows only where it is given.",
        minimum=1,
        group="data",
    )
    answers_at_start: bool = same(SpanOptions, "answers_at_start")

    @property
    def spans(self) -> SpanOptions:
        """The options of SQuAD's records."""
        stride = self.doc_stride or SpanOptions.doc_stride
        query = self.max_query_length or SpanOptions.max_query_length
        return SpanOptions(stride, query, self.answers_at_start)


@dataclasses.dataclass(frozen=True)
class TaskRecordsOptions:
    """Options of create_finetuning_data.py."""

    output_dir: str = option(
        None, "Where the records are written.", required=True, path="any", group="output"
    )
    vocab_file: str = option(
        None,
        "Vocabulary of the model, one WordPiece a line.",
        required=True,
        path="any",
        group="model",
    )
    do_lower_case: bool = option(True, "True for uncased models, False for cased ones.")
    strip_accents: bool | None = option(
        None, "Strip accents, and with them vowel signs; by default where text is lower-cased."
    )
    max_seq_length: int | None = option(
        None, "Tokens of a sequence; longer ones are cut. Default: the task's."
    )
    data: DataOptions = DataOptions()
    records: RecordOptions = RecordOptions()
    tagged: TaggedOptions = TaggedOptions()
    windows: WindowOrSpanOptions = WindowOrSpanOptions()

    @property
    def spans(self) -> SpanOptions:
        """How questions on documents become windows."""
        return self.windows.spans


def extra_settings(
    task: Task,
    tagged: TaggedOptions | None = None,
    spans: SpanOptions | None = None,
    windows: WindowOptions | None = None,
) -> dict[str, Any]:
    """Return what `prepare` takes as `extra` for a kind of task.

    Args:
        task: the task.
        tagged: of a script that takes tagged words.
        spans: of a script that takes questions on documents.
        windows: of a script that takes texts to classify.

    Raises:
        ValueError: windows of texts are asked for, and the task has none.
    """
    if windows is not None and windows.max_windows is not None:
        if not get_kind(task.kind).takes_windows:
            raise ValueError(f"max_windows: is for texts to classify, got the task {task.name}")
    if task.kind == "token_classification" and tagged is not None:
        return {"document_context": tagged.document_context}
    if task.kind == "span" and spans is not None:
        extra = dataclasses.asdict(spans)
        if not extra["answers_at_start"]:
            del extra["answers_at_start"]  # of records that were made before there was a choice
        return extra
    return windows.of(task) if windows is not None else {}


# === Sources ===


def find_sources(
    data: DataOptions,
    tagged: TaggedOptions | None = None,
    spans: SpanOptions | None = None,
    *,
    skip_bad_examples: bool = False,
    test_labels: bool = True,
) -> tuple[Task, list[Source]]:
    """Find out what records are to be made of.

    Args:
        data: what the data are.
        tagged: of a script that takes tagged words.
        spans: of a script that takes questions on documents.
        skip_bad_examples: leave bad examples out in finding the labels.
        test_labels: read the labels of one's own test tables; where nobody uses them, they may be
            empty or "?".

    Returns:
        The task, with its labels, and the sources of its splits.

    Raises:
        ValueError: options that contradict each other, or a training file that is bad.
        FileNotFoundError: a file that is not there.
    """
    if data.task_name is None:
        return _own_tables(data, skip_bad_examples, test_labels)
    task, files = get_task(data.task_name), data.files
    others = {"token_classification": (tagged, "run_ner.py"), "span": (spans, "run_squad.py")}
    options_of_kind, command = others.get(task.kind, (data, ""))
    if options_of_kind is None:
        raise ValueError(f"task_name: {task.name} is for {command}, got another command")
    if data.columns.text is not None or data.columns.label:
        raise ValueError(f"text_column, label_column: {task.name} has columns of its own")
    if data.tfds and files.data_dir is not None and not files.by_split():
        if is_remote(files.data_dir):
            raise ValueError(f"data_dir: with tfds expected a local folder, got {files.data_dir}")
        splits = data.splits or available_splits(task, files.data_dir, True)
        return task, [tfds_source(task, files.data_dir, split) for split in splits]
    if task.kind == "token_classification" and tagged is not None:
        return tagged_sources(
            files, tagged, data.labels, data.splits, skip_bad_examples=skip_bad_examples
        )
    return file_sources(files, task, data.splits)


def file_sources(
    files: FileOptions, task: Task, splits: Sequence[str] | None = None
) -> tuple[Task, list[Source]]:
    """Find the official files of a task.

    Args:
        files: where they lie.
        task: of TASKS.
        splits: splits to look for in --data_dir; None for all that are there.

    Returns:
        The task, with its number of choices if it has some, and the sources of its splits.

    Raises:
        ValueError: both or neither of --data_dir and files; a bad header.
        FileNotFoundError: a file that is not there.
    """
    paths = _split_files(files, task, splits)
    sources = [file_source(task, path, split) for split, path in paths.items()]
    if get_kind(task.kind).has_choices:
        task = dataclasses.replace(task, num_choices=swag.count_choices(sources[0].files[0]))
    return task, sources


def tagged_sources(
    files: FileOptions,
    tagged: TaggedOptions,
    labels: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    *,
    skip_bad_examples: bool = False,
) -> tuple[Task, list[Source]]:
    """Find files of tagged words; warn on standard error of tags that training lacks.

    Args:
        files: where they lie.
        tagged: how they are read.
        labels: the labels in the order of their ids; None for the tags of the training file.
        splits: as for `file_sources`.
        skip_bad_examples: as for `find_sources`.

    Returns:
        The task "ner", with its labels, and the sources of its splits. A test split whose file has
        no column of tags is not labelled.

    Raises:
        ValueError, FileNotFoundError: as for `file_sources`; no labels; a bad training file.
    """
    task = TASKS["ner"]
    paths = _split_files(files, task, splits)
    on_bad = (lambda message: None) if skip_bad_examples else None

    with_tags = {
        split: path
        for split, path in paths.items()
        if not glue.is_test_split(split)
        or ner.has_tags(path, tagged.token_column, tagged.tag_column)
    }
    # As they are, tags are the same in any scheme, and so are records that were made before.
    schemes = schemes_of_all(with_tags, tagged) if tagged.tag_scheme != "original" else {}

    def read(split: str) -> Iterable[ner.Sentence]:
        return read_tagged(paths[split], tagged, on_bad, schemes.get(split))

    if labels is None:
        if "train" not in paths:
            raise ValueError("labels: ner needs a training file, or the labels themselves")
        counts: Counter[str] = Counter()
        labels = ner.label_names(_counted(read("train"), counts))
        tables.tell_labels(f"{paths['train']}: column {tagged.tag_column}", labels, counts)
    sources = []
    for split, path in paths.items():
        if split in with_tags and split != "train":
            _warn_of_other_tags(path, read(split), labels)
        how = tagged if split in with_tags else tagged.without_tags()
        known = None if split == "train" else labels
        sources.append(tagged_source(path, split, how, known, schemes.get(split)))
    return dataclasses.replace(task, labels=tuple(labels)), sources


def _counted(sentences: Iterable[ner.Sentence], counts: Counter[str]) -> Iterator[ner.Sentence]:
    """Yield sentences, and count their tags."""
    for sentence in sentences:
        counts.update(sentence.tags)
        yield sentence


def _warn_of_other_tags(
    path: str, sentences: Iterable[ner.Sentence], labels: Sequence[str]
) -> None:
    counts = Counter(tag for s in sentences for tag in s.tags if tag not in labels)
    check_tags([*labels, *counts], f"{path}: its tags and the labels")  # before any training
    if counts:
        shown = ", ".join(f"{tag} {count:,}" for tag, count in sorted(counts.items()))
        print(
            f"warning: {path}: {counts.total():,} words have tags that are not among the labels "
            f"({shown}); no model predicts them, so they count as missed",
            file=sys.stderr,
            flush=True,
        )


def _split_files(files: FileOptions, task: Task, splits: Sequence[str] | None) -> dict[str, str]:
    """Find the file of each split, by the files given or in --data_dir."""
    paths = files.by_split()
    if bool(paths) == (files.data_dir is not None):
        raise ValueError(f"{task.name}: give either data_dir, or train_file, dev_file, test_file")
    if files.data_dir is None:
        if splits:
            raise ValueError("splits: the files given say which there are")
        return paths
    splits = splits or available_splits(task, files.folder)
    if not splits:
        raise FileNotFoundError(f"{task.name}: no file of the task in {files.data_dir}")
    find = reader_of(task).find_file
    return {split: find(task, files.folder, split) for split in splits}


def _own_tables(
    data: DataOptions, skip_bad_examples: bool, test_labels: bool
) -> tuple[Task, list[Source]]:
    paths, columns = data.files.by_split(), data.columns
    if not paths:
        raise ValueError("give task_name and data_dir, or train_file and text_column")
    if columns.text is None:
        raise ValueError("text_column: needed to read tables of your own")
    if not columns.label and set(paths) != {"test"}:
        raise ValueError("label_column: needed for the train and dev splits")
    task = table_task(
        data.kind, columns, paths.get("train"), data.labels, skip_bad_examples=skip_bad_examples
    )
    unlabelled = dataclasses.replace(columns, label=())
    return task, [
        table_source(task, path, split, columns if test_labels or split != "test" else unlabelled)
        for split, path in paths.items()
    ]


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
