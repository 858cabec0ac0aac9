"""From the examples of any task to records, in order, on all cores; an earlier run's are found.

READERS says for each kind of task how its files are found and read and how its records are made,
`tasks.KINDS` what they look like; all else here is the same for every kind. What is written beside
the records:

    <split>.tfrecord          the records, in the order of the input
    <split>.lengths.npy       int32 [N], tokens of each record that are not padding
    <split>.bad_examples.txt  messages on the examples that were left out, if there are any
    <split>.manifest.json     counts, labels, settings and the fingerprint; written last

The fingerprint is a digest of all that the records depend on: content of the input, vocabulary,
settings. Records are used again only if their manifest has the fingerprint that is expected.
"""

import collections
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
from typing import IO, Any

import numpy as np

from bert_tf.files import (
    check_output,
    is_file,
    open_file,
    original_names,
    read_json,
    read_text,
    remove,
    replacing,
    sha256,
    size_of,
    write_text,
    write_whole,
)
from bert_tf.records.encoding import encode_framed_examples
from bert_tf.records.files import RecordWriter
from bert_tf.records.schema import FeatureSpec
from bert_tf.tokenization import vocabulary
from bert_tf.tokenization.wordpiece import MAX_CHARS_PER_WORD, FullTokenizer
from data_prep.finetuning.glue import OnBad
from data_prep.finetuning.kinds import FeatureSettings, features_of, reader_of, text_rule
from data_prep.finetuning.sources import Source
from data_prep.processes.progress import Progress
from data_prep.processes.worker_pool import WorkerPool, available_cores

FORMAT_VERSION = 1  # of the records and what lies beside them
CHUNK_EXAMPLES = 256  # made into records at once
WORKERS_PAY_BYTES = 8 << 20  # of input, about 5 s of work; less is done before processes are up
UNKNOWN_RATE_TO_WARN = 0.05
LONG_WORD_RATE_TO_WARN = 0.01
ELSEWHERE_RATE_TO_WARN = 0.01
_BLOCK_BYTES = 1 << 20


# === Records ===


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """How text becomes ids.

    Attributes:
        vocab_file: vocabulary of the model, one piece a line.
        do_lower_case: True for uncased models.
        strip_accents: as for `FullTokenizer`.
    """

    vocab_file: str
    do_lower_case: bool = True
    strip_accents: bool | None = None

    def open(self) -> FullTokenizer:
        """Make the tokenizer."""
        return FullTokenizer(self.vocab_file, self.do_lower_case, strip_accents=self.strip_accents)


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Records that are ready to be trained on.

    Attributes:
        record_file: the TFRecord file.
        lengths_file: int32 [num_records], tokens of each record that are not padding (of multiple
            choice those of the longest sequence; of a document in windows where its last token
            stands among them); a .npy file.
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
        self._tokenizer = tokenizer.open()
        self._reader = reader_of(settings.task)
        self._settings = settings
        self._schema, self._rule = features_of(settings), text_rule(settings)
        self._unknown_id = self._tokenizer.vocab[vocabulary.UNK_TOKEN]

    def make(self, examples: Sequence[Any], first: int) -> tuple[bytes, np.ndarray, dict[str, int]]:
        """Make the records of a chunk.

        Args:
            examples: the chunk.
            first: index of its first example in the input.

        Returns:
            Framed records, int32 [M] lengths, and counts: tokens, unknown ones, the characters of
            the texts, those in words too long for any vocabulary, and what the reader counts.
        """
        made = self._reader.make_features(examples, self._tokenizer, self._settings, first)
        arrays = {feature.name: made.pop(feature.name) for feature in self._schema}
        mask = np.asarray(arrays["input_mask"])
        unknown = int(np.count_nonzero(np.asarray(arrays["input_ids"]) == self._unknown_id))
        framed = encode_framed_examples(self._schema, arrays)
        counts = {"tokens": int(mask.sum(dtype=np.int64)), "unknown_tokens": unknown}
        for name, values in made.items():
            counts |= {name: int(values.sum()), f"records_with_{name}": int((values != 0).sum())}
        counts |= self._count_characters(examples, unknown > 0)
        lengths = self._lengths(mask)
        return framed, lengths, {**counts, **self._reader.count(examples, self._tokenizer)}

    def _lengths(self, mask: np.ndarray) -> np.ndarray:
        """Return the length of each record, int32 [M]; see `PreparedData.lengths_file`."""
        if self._rule is not None:
            ends = np.arange(1, mask.shape[1] + 1, dtype=np.int32)
            return (mask * ends).max(axis=1, initial=0)
        # A record of multiple choice has several sequences; others have one.
        # Documents without text give no rows, of which reshape could not tell the second axis.
        sequences = self._settings.task.num_choices or 1
        of_sequences = mask.reshape(len(mask), sequences, self._settings.max_seq_length)
        return of_sequences.sum(axis=2, dtype=np.int32).max(axis=1, initial=0)

    def _count_characters(self, examples: Sequence[Any], has_unknown: bool) -> dict[str, int]:
        # Each text once: a document stands in an example for each of its questions.
        texts = collections.Counter(x for example in examples for x in self._reader.texts(example))
        characters = in_long_words = 0
        for text, times in texts.items():
            characters += times * len("".join(text.split()))
            if has_unknown:
                in_long_words += times * self._tokenizer.count_unknown(text)[1]
        return {"characters": characters, "long_word_characters": in_long_words}


def prepare(
    source: Source,
    settings: FeatureSettings,
    tokenizer: TokenizerSettings,
    cache_dir: str | os.PathLike[str],
    num_workers: int | None = None,
    on_bad: OnBad = None,
    *,
    show_progress: bool = True,
) -> PreparedData:
    """Make the records of a split, or find those of an earlier run.

    They lie in <cache_dir>/<task>-<fingerprint>, so other input, vocabulary or settings never meet.

    Args:
        source: where the examples come from.
        settings: the task with its labels, the length of sequences, and what is of its kind only.
        tokenizer: vocabulary and casing.
        cache_dir: folder for prepared records; made if need be.
        num_workers: processes; None for one per core, or none beside this one if the input is
            small. The bytes do not depend on it.
        on_bad: what to do with the message of a bad example, which is then left out; None to raise
            it. Where the records are there already, the messages come again.
        show_progress: report on standard error.

    Returns:
        The records.

    Raises:
        ValueError: bad input, naming file and line; no records are left behind.
        OSError: a file cannot be read or written.
        RuntimeError: a worker process died, or the input changed while it was read.
    """
    plan = _Plan.make(source, settings, tokenizer, on_bad is not None)
    name = f"{re.sub('[^A-Za-z0-9._-]', '_', settings.task.name)}-{plan.fingerprint[:16]}"
    folder = os.path.join(cache_dir, name)
    return _prepare(plan, folder, num_workers, on_bad, show_progress)


def write_split(
    source: Source,
    settings: FeatureSettings,
    tokenizer: TokenizerSettings,
    output_dir: str | os.PathLike[str],
    num_workers: int | None = None,
    on_bad: OnBad = None,
    *,
    show_progress: bool = True,
) -> PreparedData:
    """As `prepare`, but into output_dir itself, where they replace older records of the split."""
    plan = _Plan.make(source, settings, tokenizer, on_bad is not None)
    return _prepare(plan, os.fspath(output_dir), num_workers, on_bad, show_progress)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a split's records depend on, and the digest of it."""

    source: Source
    tokenizer: TokenizerSettings
    settings: FeatureSettings
    vocab: dict[str, int]
    dependencies: dict[str, Any]  # all that the records depend on
    input_bytes: int
    input_lines: int
    stats: list[tuple[int, int]]

    @classmethod
    def make(
        cls, source: Source, settings: FeatureSettings, tokenizer: TokenizerSettings, skip_bad: bool
    ) -> "_Plan":
        task = settings.task
        if settings.max_seq_length < 3:
            raise ValueError(f"max_seq_length must be at least 3, got {settings.max_seq_length}")
        reader_of(task)  # raises where there is none
        features_of(settings)
        vocab = vocabulary.load_vocab(tokenizer.vocab_file)
        vocabulary.check_special_tokens(vocab, tokenizer.vocab_file)
        stats = _stats(source.files)
        dependencies = {
            "format_version": FORMAT_VERSION,
            "task": task.name,
            "kind": task.kind,
            "labels": None if task.labels is None else list(task.labels),
            "num_choices": task.num_choices,
            "split": source.split,
            "labelled": source.labelled,
            "input_sha256": list(map(sha256, source.files)),
            "source": source.settings,
            "skip_bad_examples": skip_bad,
            "vocab_sha256": sha256(tokenizer.vocab_file),
            "do_lower_case": tokenizer.do_lower_case,
            "max_seq_length": settings.max_seq_length,
            "extra": dict(settings.extra),
            "unicode": unicodedata.unidata_version,
        }
        if tokenizer.strip_accents is not None:  # a later setting
            dependencies["strip_accents"] = tokenizer.strip_accents
        dependencies = json.loads(json.dumps(dependencies))  # as it comes back out of a manifest
        lines = sum(map(_count_lines, source.files)) if source.line_per_example else 0
        size = sum(file_bytes for file_bytes, _ in stats)
        return cls(source, tokenizer, settings, vocab, dependencies, size, lines, stats)

    @functools.cached_property
    def fingerprint(self) -> str:
        text = json.dumps(self.dependencies, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _stats(files: Sequence[str]) -> list[tuple[int, int]]:
    return [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files)]


def _count_lines(path: str) -> int:
    if not is_file(path):
        return 0
    with open_file(path) as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK_BYTES), b""))


class _Paths:
    """The files of a split."""

    def __init__(self, folder: str, split: str):
        base = os.path.join(folder, split)
        self.record, self.lengths = f"{base}.tfrecord", f"{base}.lengths.npy"
        self.bad = f"{base}.bad_examples.txt"
        # Not records.manifest_path: a split may be called like a shard.
        self.manifest = f"{base}.manifest.json"


def _prepare(
    plan: _Plan, folder: str, num_workers: int | None, on_bad: OnBad, show: bool
) -> PreparedData:
    paths = _Paths(folder, plan.source.split)
    manifest = _valid_manifest(paths, plan.fingerprint)
    if manifest is not None:
        if on_bad is not None and is_file(paths.bad):
            for line in read_text(paths.bad).splitlines():
                on_bad(line)
        return _prepared(plan, paths, manifest, from_cache=True)
    if num_workers is None:
        num_workers = available_cores() if plan.input_bytes >= WORKERS_PAY_BYTES else 1
    check_output(paths.manifest, "output_dir")
    # From here on the old files are not whole, so they must not look so.
    remove(paths.manifest)
    manifest = _write(plan, paths, num_workers, on_bad, show)
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
    write_text(paths.manifest, f"{text}\n")
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
        features_of(plan.settings),
        from_cache,
    )


def _valid_manifest(paths: _Paths, fingerprint: str) -> dict[str, Any] | None:
    """Return the manifest, if it is of these records and they are as it says."""
    try:
        manifest = read_json(paths.manifest)
        if (
            manifest["fingerprint"] == fingerprint
            and manifest["record_bytes"] == size_of(paths.record)
            and manifest["lengths_sha256"] == sha256(paths.lengths)
            and manifest["counts"]["bad_examples"] == _count_lines(paths.bad)
        ):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass  # whatever lies there is not a whole set of records
    return None


@contextlib.contextmanager
def _main_not_run_again() -> Iterator[None]:
    """Keep new processes from running the caller's script, which may well import TensorFlow.

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


class _LeftOut:
    """The examples that are left out: how many, and the file of messages on the bad ones."""

    def __init__(self, stream: IO[str]):
        self._stream = stream
        self.bad = self.without_gold_label = 0

    def refuse(self, on_bad: Callable[[str], None], message: str) -> None:
        self.bad += 1
        message = " ".join(message.splitlines())
        self._stream.write(message + "\n")
        on_bad(message)

    def skip(self, message: str) -> None:
        self.without_gold_label += 1


def _chunks(examples: Iterator[Any], sizes: list[int]) -> Iterator[tuple[list[Any], int]]:
    """Cut examples into chunks, each with the index of its first example; append their sizes."""
    first = 0
    while chunk := list(itertools.islice(examples, CHUNK_EXAMPLES)):
        sizes.append(len(chunk))
        yield chunk, first
        first += len(chunk)


def _write(
    plan: _Plan, paths: _Paths, num_workers: int, on_bad: OnBad, show: bool
) -> dict[str, Any]:
    """Write all but the manifest, and return that."""
    source, settings = plan.source, plan.settings
    sizes: list[int] = []  # examples of each chunk
    lengths: list[np.ndarray] = []
    counts: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        # Names are given in the reverse order, after all has been written.
        left_out = _LeftOut(stack.enter_context(write_whole(paths.bad, "w")))
        lengths_file = stack.enter_context(replacing(paths.lengths))
        writer = stack.enter_context(RecordWriter(paths.record))
        pool = stack.enter_context(WorkerPool(num_workers, _RecordMaker, plan.tokenizer, settings))
        name = f"{settings.task.name} {source.split}"
        progress = stack.enter_context(Progress(name, plan.input_lines, "example", show=show))
        refuse = None if on_bad is None else functools.partial(left_out.refuse, on_bad)
        examples = source.read(refuse, left_out.skip)
        with _main_not_run_again() if num_workers > 1 else contextlib.nullcontext():
            for number, result in enumerate(pool.map("make", _chunks(examples, sizes))):
                framed, chunk_lengths, chunk_counts = result
                writer.write_framed(framed)
                lengths.append(chunk_lengths)
                counts["examples"] += sizes[number]
                counts.update(chunk_counts)
                progress.update(sizes[number])
        progress.finish()  # lines are no examples where there is a header, or a row has several
        if not counts["examples"]:
            raise ValueError(
                f"{', '.join(source.files)}: no examples are left: {left_out.bad} were bad, "
                f"{left_out.without_gold_label} without a gold label"
            )
        if _stats(source.files) != plan.stats:
            raise RuntimeError(f"{', '.join(source.files)}: changed while being read; start again")
        all_lengths = np.concatenate(lengths)
        with open(lengths_file, "wb") as stream:
            np.save(stream, all_lengths)
        lengths_sha256 = sha256(lengths_file)
        # Closing the stack renames: records, lengths, bad examples.
    if not left_out.bad:
        remove(paths.bad)  # which another run with the same input may have done
    manifest = _manifest(plan, paths, counts, all_lengths)
    manifest["counts"]["bad_examples"] = left_out.bad
    manifest["counts"]["without_gold_label"] = left_out.without_gold_label
    manifest["lengths_sha256"] = lengths_sha256
    return manifest


def _manifest(
    plan: _Plan, paths: _Paths, counts: Mapping[str, int], lengths: np.ndarray
) -> dict[str, Any]:
    settings, digests = plan.settings, plan.dependencies["input_sha256"]
    sequences = len(lengths) * (settings.task.num_choices or 1)
    longest, of_windows, rule = settings.max_seq_length, {}, text_rule(settings)
    if rule is not None:
        longest *= rule.max_windows
        sequences = int(np.maximum(1, -(-lengths // settings.max_seq_length)).sum())
        left_out = ("windows_left_out", "records_with_windows_left_out")
        of_windows = {"windows": sequences, **{name: counts[name] for name in left_out}}
    unknown_rate = counts["unknown_tokens"] / max(counts["tokens"], 1)
    long_rate = counts["long_word_characters"] / max(counts["characters"], 1)
    _warn_of_text(plan, counts, unknown_rate, long_rate)
    return {
        **{name: value for name, value in plan.dependencies.items() if name != "input_sha256"},
        "fingerprint": plan.fingerprint,
        "files": [os.path.basename(paths.record)],
        "lengths_file": os.path.basename(paths.lengths),
        "input_files": [
            {"path": original_names(path), "sha256": digest}
            for path, digest in zip(plan.source.files, digests, strict=True)
        ],
        "vocab_file": plan.tokenizer.vocab_file,
        "vocab_size": max(plan.vocab.values()) + 1,
        "record_bytes": size_of(paths.record),
        "counts": {
            "examples": counts["examples"],
            "records": len(lengths),
            "tokens": counts["tokens"],
            "unknown_token_rate": unknown_rate,
            "padding_fraction": 1 - counts["tokens"] / max(sequences * settings.max_seq_length, 1),
            # These are of max_seq_length or were cut to it.
            "full_length_records": int((lengths == longest).sum()),
            **of_windows,
            **{name: counts[name] for name in ("answers", "answers_elsewhere") if name in counts},
            **({"long_word_character_rate": long_rate} if long_rate else {}),
        },
    }


def _warn_of_text(
    plan: _Plan, counts: Mapping[str, int], unknown_rate: float, long_rate: float
) -> None:
    """Warn of what the vocabulary or the text lets a model not see."""
    if long_rate > LONG_WORD_RATE_TO_WARN:
        _warn(
            f"{', '.join(plan.source.files)}: {long_rate:.1%} of the characters stand in runs of "
            f"more than {MAX_CHARS_PER_WORD} without a space, each of which becomes a single "
            "[UNK]; set spaces between the words"
        )
    elif unknown_rate > UNKNOWN_RATE_TO_WARN:
        _warn(
            f"{', '.join(plan.source.files)}: {unknown_rate:.1%} of tokens are [UNK]; check that "
            f"{plan.tokenizer.vocab_file} is of the text's language, and "
            f"do_lower_case={plan.tokenizer.do_lower_case} right for it"
        )
    else:
        for doubt in vocabulary.vocabulary_doubts(plan.vocab, plan.tokenizer.do_lower_case):
            _warn(f"{plan.tokenizer.vocab_file}: {doubt}")
    strips = plan.tokenizer.strip_accents
    strips = plan.tokenizer.do_lower_case if strips is None else strips
    if strips and vocabulary.keeps_accents(plan.vocab):
        _warn(
            f"vocabulary {plan.tokenizer.vocab_file} has pieces with accents or vowel signs, which "
            "the text then never has, for they are stripped; --strip_accents=False keeps them"
        )
    if counts.get("answers_elsewhere") and not plan.settings.extra.get("answers_at_start"):
        share = counts["answers_elsewhere"] / counts["answers"]
        print(
            f"{'warning: ' if share > ELSEWHERE_RATE_TO_WARN else ''}"
            f"{', '.join(plan.source.files)}: of {counts['answers_elsewhere']:,} of "
            f"{counts['answers']:,} answers other text is learned than that at answer_start: the "
            "same words before it, or more of them, as in the original; --answers_at_start learns "
            "the right text",
            file=sys.stderr,
            flush=True,
        )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
