"""From the examples of any task to records, in order, on all cores, and remembered.

KINDS says for each kind of task how its files are found and read, what its records look like and
how they are made; all else here is the same for every kind. What is written beside the records:

    <split>.tfrecord          the records, in the order of the input
    <split>.lengths.npy       int32 [N], tokens of each record that are not padding
    <split>.bad_examples.txt  messages on the examples that were left out, if there are any
    <split>.manifest.json     counts, labels, settings and the fingerprint; written last

The fingerprint is a digest of all that the records depend on: content of the input, vocabulary,
settings. Records are used again only if their manifest has the fingerprint that is expected.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_tf.records.files import (
    FeatureSpec,
    RecordWriter,
    classification_features,
    encode_framed_examples,
    multi_label_features,
    multiple_choice_features,
    regression_features,
    span_features,
    token_classification_features,
)
from bert_tf.tasks.answer_decoding import WindowRule
from bert_tf.tasks.table import Task, custom_task
from bert_tf.tokenization.wordpiece import (
    UNK_TOKEN,
    FullTokenizer,
    check_special_tokens,
    load_vocab,
)
from data_prep.finetuning import glue, ner, squad, swag, tables
from data_prep.finetuning.glue import OnBad
from data_prep.pretraining import token_store
from data_prep.processes.progress import Progress
from data_prep.processes.worker_pool import WorkerPool, available_cores

FORMAT_VERSION = 1  # of the records and what lies beside them
CHUNK_EXAMPLES = 256  # made into records at once
WORKERS_PAY_BYTES = 8 << 20  # of input, about 5 s of work; less is done before processes are up
UNKNOWN_RATE_TO_WARN = 0.05
_HASH_BLOCK_BYTES = 1 << 20


# --------------------------------------------------------------------------------------------------
# Kinds of tasks


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
class KindOfTask:
    """How the data of one kind of task are found, read and made into records.

    Attributes:
      find_file: (task, folder, split) -> path of the split's official file.
      read_file: (task, path, split, on_bad, on_skip) -> iterator over examples.
      schema: settings -> features of a record.
      make_features: (examples, tokenizer, settings, index of the first example) -> arrays [M, ...]
        for the schema. M may exceed the number of examples; the rows are in their order.
      test_is_labelled: whether official test files have labels.
      line_per_example: whether lines of a file tell, nearly, how many examples it has.
    """

    find_file: Callable[[Task, str, str], str]
    read_file: Callable[[Task, str, str, OnBad, OnBad], Iterator[Any]]
    schema: Callable[[FeatureSettings], tuple[FeatureSpec, ...]]
    make_features: Callable[
        [Sequence[Any], FullTokenizer, FeatureSettings, int], dict[str, np.ndarray]
    ]
    test_is_labelled: bool = False
    line_per_example: bool = True


def _text_features(
    examples: Sequence[glue.TextExample],
    tokenizer: FullTokenizer,
    settings: FeatureSettings,
    first: int,
) -> dict[str, np.ndarray]:
    task = settings.task
    return glue.make_features(examples, tokenizer, settings.max_seq_length, task.kind, task.labels)


def _num_choices(task: Task) -> int:
    if task.num_choices is None:
        raise ValueError(f"task {task.name}: num_choices must be given")
    return task.num_choices


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
    """Reads how documents are cut into windows from the settings of a task of spans."""
    names = ("doc_stride", "max_query_length")
    given = {name: settings.extra[name] for name in names if name in settings.extra}
    return WindowRule(settings.max_seq_length, **given)


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
    )


_CLASSIFICATION = KindOfTask(
    find_file=glue.split_path,
    read_file=glue.read_file,
    schema=lambda settings: classification_features(settings.max_seq_length),
    make_features=_text_features,
)

# A further kind is one more entry here.
KINDS: dict[str, KindOfTask] = {
    "classification": _CLASSIFICATION,
    "regression": dataclasses.replace(
        _CLASSIFICATION,
        schema=lambda settings: regression_features(settings.max_seq_length),
    ),
    "multi_label": dataclasses.replace(
        _CLASSIFICATION,
        schema=lambda settings: multi_label_features(
            settings.max_seq_length, len(settings.task.labels or ())
        ),
    ),
    "multiple_choice": KindOfTask(
        find_file=lambda task, folder, split: swag.split_path(folder, split),
        read_file=lambda task, path, split, on_bad, on_skip: swag.read_examples(
            path, split, on_bad
        ),
        schema=lambda settings: multiple_choice_features(
            settings.max_seq_length, _num_choices(settings.task)
        ),
        make_features=lambda examples, tokenizer, settings, first: swag.make_features(
            examples, tokenizer, settings.max_seq_length, _num_choices(settings.task)
        ),
    ),
    "token_classification": KindOfTask(
        find_file=lambda task, folder, split: _first_file(
            folder, split, _CONLL_NAMES + (_CONLL_VALID_NAMES if split == "dev" else ())
        ),
        read_file=lambda task, path, split, on_bad, on_skip: (
            (sentence,) for sentence in ner.read_sentences(path, on_bad=on_bad)
        ),
        schema=lambda settings: token_classification_features(settings.max_seq_length),
        make_features=_tagged_features,
        test_is_labelled=True,
        line_per_example=False,
    ),
    "span": KindOfTask(
        find_file=lambda task, folder, split: _first_file(folder, split, _SQUAD_NAMES[task.name]),
        read_file=lambda task, path, split, on_bad, on_skip: squad.read_squad(
            path,
            version_2_with_negative=task.name == "squad2.0",
            is_training=split == "train",
            on_bad=on_bad,
            on_skip=on_skip,
        ),
        schema=lambda settings: span_features(settings.max_seq_length),
        make_features=_span_features,
        line_per_example=False,
    ),
}


def kind_of(task: Task) -> KindOfTask:
    """Looks a task's kind up.

    Args:
      task: any.

    Raises:
      ValueError: KINDS has no such entry.
    """
    if task.kind not in KINDS:
        raise ValueError(
            f"task {task.name}: no reader for kind {task.kind}; there are {', '.join(KINDS)}"
        )
    return KINDS[task.kind]


# --------------------------------------------------------------------------------------------------
# Sources


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
    """Names a file in the official format of a task as a source.

    Args:
      task: of TASKS.
      path: the file.
      split: the split it holds; those called "test" or "test_..." have no labels in most tasks.
    """
    kind, path = kind_of(task), os.fspath(path)

    def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[Any]:
        return kind.read_file(task, path, split, on_bad, on_skip)

    settings = {"reader": task.kind, "task": task.name}
    labelled = kind.test_is_labelled or not glue.is_test_split(split)
    return Source(split, (path,), read, settings, labelled, kind.line_per_example)


def folder_source(task: Task, data_dir: str | os.PathLike[str], split: str) -> Source:
    """Names the official file of a split in a folder as a source.

    Args:
      task: of TASKS.
      data_dir: the task's own folder, as the original's --data_dir.
      split: such as "train", "dev", "dev_matched", "test".

    Raises:
      FileNotFoundError: there is no such file.
    """
    return file_source(task, kind_of(task).find_file(task, os.fspath(data_dir), split), split)


def tagged_source(
    path: str | os.PathLike[str],
    split: str,
    *,
    document_context: bool = False,
    token_column: int = 0,
    tag_column: int | None = -1,
    tag_scheme: str = "original",
    labels: Sequence[str] | None = None,
) -> Source:
    """Names a file of tagged words as a source.

    Args:
      path: see `ner.read_sentences`.
      split: the split it holds.
      document_context: whether documents are kept together, to be shown around each sentence; the
        task's settings must say so too.
      token_column: as for `ner.read_sentences`.
      tag_column: as for `ner.read_sentences`.
      tag_scheme: key of `ner.TAG_SCHEMES`.
      labels: where given, tags that are not among them become O in the records. No model of these
        labels predicts them, so `bert_tf.metrics.entity_scores`, of the tags of the file, counts
        them as missed.
    """
    path = os.fspath(path)
    known = None if labels is None else frozenset(labels)

    def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[Any]:
        sentences = read_tagged(path, token_column, tag_column, tag_scheme, on_bad)
        if known is not None:
            sentences = (
                dataclasses.replace(
                    s, tags=tuple(tag if tag in known else ner.OUTSIDE for tag in s.tags)
                )
                for s in sentences
            )
        return ner.documents(sentences) if document_context else ((s,) for s in sentences)

    settings = {
        "reader": "token_classification",
        "document_context": document_context,
        "token_column": token_column,
        "tag_column": tag_column,
        "tag_scheme": tag_scheme,
    }
    if known is not None:
        settings["other_tags"] = ner.OUTSIDE  # the labels themselves are the task's
    labelled = tag_column is not None
    return Source(split, (path,), read, settings, labelled, line_per_example=False)


def read_tagged(
    path: str, token_column: int, tag_column: int | None, tag_scheme: str, on_bad: OnBad = None
) -> Iterator[ner.Sentence]:
    """Reads sentences, their tags in a scheme; arguments as of `tagged_source`."""
    convert = ner.TAG_SCHEMES[tag_scheme]
    for sentence in ner.read_sentences(
        path, on_bad=on_bad, token_column=token_column, tag_column=tag_column
    ):
        yield dataclasses.replace(sentence, tags=tuple(convert(sentence.tags)))


def tfds_source(task: Task, data_dir: str | os.PathLike[str], split: str) -> Source:
    """Names a split that TensorFlow Datasets has prepared as a source.

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
    """Names a table of one's own as a source.

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
    kind: Any,
    columns: tables.Columns,
    train_file: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    name: str = "custom",
    skip_bad_examples: bool = False,
) -> Task:
    """Makes the task of one's own tables.

    Args:
      kind: "classification", "regression" or "multi_label".
      columns: which columns mean what.
      train_file: where the labels are found if they are not given.
      labels: the labels in the order of their ids; None to find them.
      name: of the task.
      skip_bad_examples: leave bad rows out in finding the labels.

    Raises:
      ValueError: neither labels nor a training file, or see `tabular.infer_labels`.
    """
    found = tuple(labels) if labels else None
    if len(columns.label) > 1 and found is not None and found != columns.label:
        raise ValueError("labels: where each label has a column, they are the columns' names")
    if found is None and kind != "regression":
        if train_file is None:
            raise ValueError(f"labels: {kind} needs a training file, or the labels themselves")
        ignore = (lambda message: None) if skip_bad_examples else None
        found = tables.infer_labels(train_file, columns, kind, ignore)
    return custom_task(kind, found, columns.text_b is not None, name)


def available_splits(task: Task, data_dir: str | os.PathLike[str], tfds: bool = False) -> list[str]:
    """Names the splits of a task that a folder has.

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
    found = []
    for split in filter(None, (task.train_split, *task.eval_splits, *task.test_splits)):
        with contextlib.suppress(FileNotFoundError):
            kind_of(task).find_file(task, os.fspath(data_dir), split)
            found.append(split)
    return found


# --------------------------------------------------------------------------------------------------
# Records


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """How text becomes ids.

    Attributes:
      vocab_file: vocabulary of the model, one piece a line.
      do_lower_case: True for uncased models.
    """

    vocab_file: str
    do_lower_case: bool = True


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Records that are ready to be trained on.

    Attributes:
      record_file: the TFRecord file.
      lengths_file: int32 [num_records], tokens of each record that are not padding (of multiple
        choice those of the longest sequence); a .npy file.
      num_examples: examples in the input, without those left out.
      num_records: records in the file; more than examples where one gives several.
      labels: names of the labels in the order of their ids, or None.
      manifest: all that is known of the records.
      features: schema of the records.
      from_cache: whether they were there already.
    """

    record_file: str
    lengths_file: str
    num_examples: int
    num_records: int
    labels: tuple[str, ...] | None
    manifest: Mapping[str, Any]
    features: tuple[FeatureSpec, ...]
    from_cache: bool


class _RecordMaker:
    """What a worker process does: examples to the bytes of records."""

    def __init__(self, tokenizer: TokenizerSettings, settings: FeatureSettings):
        self._tokenizer = FullTokenizer(tokenizer.vocab_file, tokenizer.do_lower_case)
        self._kind = kind_of(settings.task)
        self._settings = settings
        self._schema = self._kind.schema(settings)
        self._unknown_id = self._tokenizer.vocab[UNK_TOKEN]

    def make(self, examples: Sequence[Any], first: int) -> tuple[bytes, np.ndarray, int, int]:
        """Makes the records of a chunk.

        Args:
          examples: the chunk.
          first: index of its first example in the input.

        Returns:
          Framed records, int32 [M] lengths, number of tokens, number of unknown ones.
        """
        arrays = self._kind.make_features(examples, self._tokenizer, self._settings, first)
        mask = np.asarray(arrays["input_mask"])
        # A record of multiple choice has several sequences; others have one.
        # Documents without text give no rows, of which reshape could not tell the second axis.
        sequences = self._settings.task.num_choices or 1
        of_sequences = mask.reshape(len(mask), sequences, self._settings.max_seq_length).sum(
            axis=2, dtype=np.int32
        )
        lengths = of_sequences.max(axis=1, initial=0)
        unknown = int(np.count_nonzero(np.asarray(arrays["input_ids"]) == self._unknown_id))
        framed = encode_framed_examples(self._schema, arrays)
        return framed, lengths, int(of_sequences.sum()), unknown


def prepare(
    task: Task,
    source: Source,
    tokenizer: TokenizerSettings,
    max_seq_length: int,
    cache_dir: str | os.PathLike[str],
    num_workers: int | None = None,
    on_bad: OnBad = None,
    *,
    extra: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> PreparedData:
    """Makes the records of a split, or finds them made.

    They lie in <cache_dir>/<task>-<fingerprint>, so other input, vocabulary or settings never meet.

    Args:
      task: the task, with its labels.
      source: where the examples come from.
      tokenizer: vocabulary and casing.
      max_seq_length: L.
      cache_dir: folder for prepared records; made if need be.
      num_workers: processes; None for one per core, or none beside this one if the input is small.
        The bytes do not depend on it.
      on_bad: what to do with the message of a bad example, which is then left out; None to raise
        it. Of records found made, the messages come again.
      extra: settings of the task's kind; see FeatureSettings.
      show_progress: report on standard error.

    Returns:
      The records.

    Raises:
      ValueError: bad input, naming file and line; no records are left behind.
      OSError: a file cannot be read or written.
      RuntimeError: a worker process died, or the input changed while it was read.
    """
    plan = _Plan.make(task, source, tokenizer, max_seq_length, extra, on_bad is not None)
    name = f"{re.sub('[^A-Za-z0-9._-]', '_', task.name)}-{plan.fingerprint[:16]}"
    folder = os.path.join(cache_dir, name)
    return _prepare(plan, folder, num_workers, on_bad, show_progress)


def write_split(
    task: Task,
    source: Source,
    tokenizer: TokenizerSettings,
    max_seq_length: int,
    output_dir: str | os.PathLike[str],
    num_workers: int | None = None,
    on_bad: OnBad = None,
    *,
    extra: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> PreparedData:
    """As `prepare`, but into output_dir itself, where they replace older records of the split."""
    plan = _Plan.make(task, source, tokenizer, max_seq_length, extra, on_bad is not None)
    return _prepare(plan, os.fspath(output_dir), num_workers, on_bad, show_progress)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to be made of what, and the digest of it."""

    source: Source
    tokenizer: TokenizerSettings
    settings: FeatureSettings
    vocab: dict[str, int]
    what: dict[str, Any]
    input_bytes: int
    input_lines: int
    stats: list[tuple[int, int]]

    @classmethod
    def make(
        cls,
        task: Task,
        source: Source,
        tokenizer: TokenizerSettings,
        max_seq_length: int,
        extra: Mapping[str, Any] | None,
        skip_bad: bool,
    ) -> "_Plan":
        if max_seq_length < 3:
            raise ValueError(f"max_seq_length must be at least 3, got {max_seq_length}")
        settings = FeatureSettings(task, max_seq_length, dict(extra or {}))
        kind_of(task).schema(settings)  # complains of what is missing
        vocab = load_vocab(tokenizer.vocab_file)
        check_special_tokens(vocab, tokenizer.vocab_file)
        stats = _stats(source.files)
        inputs, lines = [], 0
        for path in source.files:
            digest, count = _digest(path)
            inputs.append(digest)
            lines += count
        what = {
            "format_version": FORMAT_VERSION,
            "task": task.name,
            "kind": task.kind,
            "labels": None if task.labels is None else list(task.labels),
            "num_choices": task.num_choices,
            "split": source.split,
            "labelled": source.labelled,
            "input_sha256": inputs,
            "source": source.settings,
            "skip_bad_examples": skip_bad,
            "vocab_sha256": _digest(tokenizer.vocab_file)[0],
            "do_lower_case": tokenizer.do_lower_case,
            "max_seq_length": max_seq_length,
            "extra": settings.extra,
            "unicode": unicodedata.unidata_version,
        }
        what = json.loads(json.dumps(what))  # as it comes back out of a manifest
        return cls(source, tokenizer, settings, vocab, what, sum(s for s, _ in stats), lines, stats)

    @functools.cached_property
    def fingerprint(self) -> str:
        text = json.dumps(self.what, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _stats(files: Sequence[str]) -> list[tuple[int, int]]:
    found = [os.stat(path) for path in files]
    return [(stat.st_size, stat.st_mtime_ns) for stat in found]


def _digest(path: str) -> tuple[str, int]:
    """SHA-256 of a file, and its line ends."""
    digest, lines = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
            lines += block.count(b"\n")
    return digest.hexdigest(), lines


@dataclasses.dataclass(frozen=True)
class _Paths:
    record: str
    lengths: str
    bad: str
    manifest: str

    @classmethod
    def of(cls, folder: str, split: str) -> "_Paths":
        base = os.path.join(folder, split)
        record = base + ".tfrecord"
        return cls(
            record,
            base + ".lengths.npy",
            base + ".bad_examples.txt",
            # Not records.manifest_path: a split may be called like a shard.
            base + ".manifest.json",
        )


def _prepare(
    plan: _Plan, folder: str, num_workers: int | None, on_bad: OnBad, show: bool
) -> PreparedData:
    os.makedirs(folder, exist_ok=True)
    paths = _Paths.of(folder, plan.source.split)
    manifest = _valid_manifest(paths, plan.fingerprint)
    if manifest is not None:
        if on_bad is not None and os.path.exists(paths.bad):
            with open(paths.bad, encoding="utf-8") as stream:
                for line in stream:
                    on_bad(line.rstrip("\n"))
        return _prepared(plan, paths, manifest, from_cache=True)
    if num_workers is None:
        num_workers = available_cores() if plan.input_bytes >= WORKERS_PAY_BYTES else 1
    # From here on the old files are not whole, so they must not look so.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.manifest)
    manifest = _write(plan, paths, num_workers, on_bad, show)
    with _replacing(paths.manifest) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=1, sort_keys=True, ensure_ascii=False)
        stream.write("\n")
    return _prepared(plan, paths, manifest, from_cache=False)


def _prepared(
    plan: _Plan, paths: _Paths, manifest: Mapping[str, Any], from_cache: bool
) -> PreparedData:
    counts = manifest["counts"]
    return PreparedData(
        paths.record,
        paths.lengths,
        counts["examples"],
        counts["records"],
        plan.settings.task.labels,
        manifest,
        kind_of(plan.settings.task).schema(plan.settings),
        from_cache,
    )


def _valid_manifest(paths: _Paths, fingerprint: str) -> dict[str, Any] | None:
    """The manifest, if it is of these records and they are as it says."""
    try:
        with open(paths.manifest, encoding="utf-8") as stream:
            manifest = json.load(stream)
        if (
            manifest["fingerprint"] == fingerprint
            and manifest["record_bytes"] == os.path.getsize(paths.record)
            and manifest["lengths_sha256"] == _digest(paths.lengths)[0]
            and manifest["counts"]["bad_examples"] == _count_lines(paths.bad)
        ):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass  # whatever lies there is not a whole set of records
    return None


def _count_lines(path: str) -> int:
    return _digest(path)[1] if os.path.exists(path) else 0


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Gives a name to write to; the file gets its own name when it is whole."""
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def _main_not_run_again() -> Iterator[None]:
    """Keeps new processes from running the caller's script, which may well import TensorFlow.

    A spawned process imports the main module of its parent, if that has a file. Nothing that is
    sent to the workers here is defined in it.
    """
    main = sys.modules["__main__"]
    kept = {name: main.__dict__[name] for name in ("__file__", "__spec__") if hasattr(main, name)}
    main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(kept)


def _write(
    plan: _Plan, paths: _Paths, num_workers: int, on_bad: OnBad, show: bool
) -> dict[str, Any]:
    """Writes all but the manifest, and returns that."""
    source, settings = plan.source, plan.settings
    bad_messages = skipped = 0
    lengths: list[np.ndarray] = []
    counts = {"examples": 0, "tokens": 0, "unknown_tokens": 0}
    with contextlib.ExitStack() as stack:
        # Names are given in the reverse order, after all has been written.
        bad = stack.enter_context(
            open(stack.enter_context(_replacing(paths.bad)), "w", encoding="utf-8")
        )
        lengths_file = stack.enter_context(_replacing(paths.lengths))

        def refuse(message: str) -> None:
            nonlocal bad_messages
            bad_messages += 1
            message = " ".join(message.splitlines())
            bad.write(message + "\n")
            if on_bad is not None:
                on_bad(message)

        def skip(message: str) -> None:
            nonlocal skipped
            skipped += 1

        def chunks() -> Iterator[tuple[list[Any], int]]:
            examples = source.read(refuse if on_bad is not None else None, skip)
            first = 0
            while chunk := list(itertools.islice(examples, CHUNK_EXAMPLES)):
                sizes.append(len(chunk))
                yield chunk, first
                first += len(chunk)

        sizes: list[int] = []
        writer = stack.enter_context(RecordWriter(paths.record))
        pool = stack.enter_context(WorkerPool(num_workers, _RecordMaker, plan.tokenizer, settings))
        what = f"{settings.task.name} {source.split}"
        expected = plan.input_lines if source.line_per_example else 0
        progress = stack.enter_context(Progress(what, expected, "example", show=show))
        with _main_not_run_again() if num_workers > 1 else contextlib.nullcontext():
            for number, made in enumerate(pool.map("make", chunks())):
                framed, of_records, tokens, unknown = made
                writer.write_framed(framed)
                lengths.append(of_records)
                counts["examples"] += sizes[number]
                counts["tokens"] += tokens
                counts["unknown_tokens"] += unknown
                progress.update(sizes[number])
        if not counts["examples"]:
            raise ValueError(
                f"{', '.join(source.files)}: no examples are left: {bad_messages} were bad, "
                f"{skipped} without a gold label"
            )
        if _stats(source.files) != plan.stats:
            raise RuntimeError(f"{', '.join(source.files)}: changed while being read; start again")
        all_lengths = np.concatenate(lengths)
        with open(lengths_file, "wb") as stream:
            np.save(stream, all_lengths)
        lengths_sha256 = _digest(lengths_file)[0]
        bad.flush()
        # Closing the stack renames: records, lengths, bad examples.
    if not bad_messages:
        with contextlib.suppress(FileNotFoundError):  # another run with the same input was faster
            os.unlink(paths.bad)
    manifest = _manifest(plan, paths, counts, all_lengths)
    manifest["counts"]["bad_examples"] = bad_messages
    manifest["counts"]["without_gold_label"] = skipped
    manifest["lengths_sha256"] = lengths_sha256
    return manifest


def _manifest(
    plan: _Plan, paths: _Paths, counts: dict[str, int], lengths: np.ndarray
) -> dict[str, Any]:
    settings = plan.settings
    sequences = len(lengths) * (settings.task.num_choices or 1)
    unknown_rate = counts["unknown_tokens"] / max(counts["tokens"], 1)
    if unknown_rate > UNKNOWN_RATE_TO_WARN:
        _warn(
            f"{', '.join(plan.source.files)}: {unknown_rate:.1%} of tokens are [UNK]; check that "
            f"{plan.tokenizer.vocab_file} is of the text's language, and "
            f"do_lower_case={plan.tokenizer.do_lower_case} right for it"
        )
    elif not plan.tokenizer.do_lower_case and token_store.is_uncased_vocabulary(plan.vocab):
        _warn(
            f"vocabulary {plan.tokenizer.vocab_file} has no upper-case letters and do_lower_case "
            "is not set: every word with a capital becomes [UNK]"
        )
    return {
        **{name: value for name, value in plan.what.items() if name != "input_sha256"},
        "fingerprint": plan.fingerprint,
        "files": [os.path.basename(paths.record)],
        "lengths_file": os.path.basename(paths.lengths),
        "input_files": [
            {"path": path, "sha256": digest}
            for path, digest in zip(plan.source.files, plan.what["input_sha256"], strict=True)
        ],
        "vocab_file": plan.tokenizer.vocab_file,
        "vocab_size": max(plan.vocab.values()) + 1,
        "record_bytes": os.path.getsize(paths.record),
        "counts": {
            "examples": counts["examples"],
            "records": len(lengths),
            "tokens": counts["tokens"],
            "unknown_token_rate": unknown_rate,
            "padding_fraction": 1 - counts["tokens"] / max(sequences * settings.max_seq_length, 1),
            # These are of max_seq_length or were cut to it.
            "full_length_records": int((lengths == settings.max_seq_length).sum()),
        },
    }


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
