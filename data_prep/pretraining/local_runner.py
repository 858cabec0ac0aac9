"""From text to pre-training records, in passes over memory-mapped tokens that many processes share.

1. Tokens: the text is tokenized in pieces into one stream of ids (`token_store.py`).
2. Pairs: blocks of documents are cut into sentence pairs, 28 bytes each (`instances.py`), and each
   block's pairs are shuffled.
3. Records: a plan deals every block's pairs out to chunks of the output, so that all orders of all
   pairs are equally likely; each chunk is shuffled, packed, masked and encoded on its own.

Pieces, blocks and chunks are fixed by the input and the flags, each with a generator of its own,
so the bytes do not depend on the number of processes. Each is a file in a work folder beside the
output which is complete once it has its name: a run that was killed is continued by the next one
with the same input and flags. The folder's name holds a digest of both, so nothing stale is ever
used.
"""

import collections
import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import os
import random
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from bert_tf.records.files import (
    FeatureSpec,
    RecordWriter,
    encode_examples,
    encode_framed_examples,
    gzip_stream,
    manifest_path,
    output_base,
    pretraining_features,
    unmasked_pretraining_features,
)
from bert_tf.tokenization.wordpiece import (
    PAD_TOKEN,
    FullTokenizer,
    check_special_tokens,
    load_vocab,
)
from data_prep.pretraining import instances, original_order, token_store
from data_prep.processes.folder_lock import lock_folder
from data_prep.processes.progress import Progress
from data_prep.processes.worker_pool import WorkerPool, available_cores

FORMAT_VERSION = 1  # of what lies in a work folder, and of the order of random draws
BLOCK_SENTENCES = 1 << 19  # times a block's documents are read, counted in sentences
LOCKSTEP_DOCUMENTS = 1 << 13
LOCKSTEP_DOCUMENTS_OF_LARGE = 1 << 7  # where each look-up may map 2 MiB
SHUFFLED_PAIRS = 1 << 20  # pairs shuffled at once in memory
CHUNK_INSTANCES = 1 << 14
BATCH_TOKENS = 1 << 18  # padded tokens masked and encoded at once

TOKENIZER_MEMO_BYTES = 384 << 20  # English needs about 100 MB per 400,000 distinct chunks

UNKNOWN_RATE_TO_WARN = 0.05
PAIRS_STAGE, PLAN_STAGE, RECORDS_STAGE = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """What is made from what. Names and defaults are the original's where it has the flag.

    Attributes:
      input_files: text, one sentence a line, blank lines between documents; .gz is decompressed.
      output_files: TFRecord files; .gz is compressed.
      vocab_file: WordPiece vocabulary.
      do_lower_case: True for uncased models.
      do_whole_word_mask: mask whole words.
      max_seq_length: tokens of a padded sequence.
      max_predictions_per_seq: padded number of masked tokens.
      random_seed: any integer.
      dupe_factor: how often the text is gone through, each time with other pairs and masks.
      masked_lm_prob: fraction of tokens that is predicted.
      short_seq_prob: probability that a document is cut into shorter pairs.
      mask_prob: fraction of predicted tokens replaced by [MASK].
      random_prob: fraction replaced by a random piece.
      keep_prob: fraction left as it is.
      dynamic_masking: write unmasked pairs; masks are drawn while training.
      compatible: exactly the original script's records for this seed, in one process.
    """

    input_files: tuple[str, ...]
    output_files: tuple[str, ...]
    vocab_file: str
    do_lower_case: bool = True
    do_whole_word_mask: bool = False
    max_seq_length: int = 128
    max_predictions_per_seq: int = 20
    random_seed: int = 12345
    dupe_factor: int = 10
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    mask_prob: float = 0.8
    random_prob: float = 0.1
    keep_prob: float = 0.1
    dynamic_masking: bool = False
    compatible: bool = False

    def __post_init__(self):
        for name in ("input_files", "output_files"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one file")
        if len(set(map(os.path.abspath, self.output_files))) != len(self.output_files):
            raise ValueError(f"output_file: names must differ, got {', '.join(self.output_files)}")
        overwritten = set(map(os.path.abspath, self.input_files)) & set(
            map(os.path.abspath, self.output_files)
        )
        if overwritten:
            raise ValueError(f"output_file: {overwritten.pop()} is also an input file")
        if self.dupe_factor < 1:
            raise ValueError(f"dupe_factor must be at least 1, got {self.dupe_factor}")
        if self.compatible and self.dynamic_masking:
            raise ValueError("compatible: the original has no dynamic_masking; choose one")
        _ = self.pair_rule, self.mask_rule  # checks the rest

    @functools.cached_property
    def pair_rule(self) -> instances.PairRule:
        """How pairs are cut."""
        return instances.PairRule(self.max_seq_length, self.short_seq_prob)

    @functools.cached_property
    def mask_rule(self) -> instances.MaskRule:
        """How tokens are masked."""
        return instances.MaskRule(
            self.max_predictions_per_seq,
            self.masked_lm_prob,
            self.do_whole_word_mask,
            self.mask_prob,
            self.random_prob,
            self.keep_prob,
        )

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """Schema of the records."""
        if self.dynamic_masking:
            return unmasked_pretraining_features(self.max_seq_length)
        return pretraining_features(self.max_seq_length, self.max_predictions_per_seq)


def shard_names(output_file: str, num_shards: int) -> tuple[str, ...]:
    """Names of a shard set: `wiki.tfrecord` becomes `wiki-00000-of-00016.tfrecord` and so on.

    Args:
      output_file: name as if there were one file.
      num_shards: how many; with 1 the name stays.

    Returns:
      The names in order.
    """
    if num_shards == 1:
        return (output_file,)
    base = output_base(output_file)
    rest = output_file[len(base) :]
    return tuple(f"{base}-{i:05d}-of-{num_shards:05d}{rest}" for i in range(num_shards))


def create_pretraining_data(
    options: Options, num_workers: int | None = None, show_progress: bool = True
) -> dict[str, Any]:
    """Writes pre-training records and their manifest.

    Args:
      options: what is made from what.
      num_workers: processes; None for one per available core. The bytes do not depend on it.
      show_progress: report on standard error.

    Returns:
      The manifest, which is also written to `records.manifest_path` of the output files.

    Raises:
      ValueError: bad input, naming file and line; nothing is left behind.
      OSError: a file cannot be read or written.
      RuntimeError: a worker process died, or another run is at work on the same output.
    """
    num_workers = available_cores() if num_workers is None else num_workers
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    tokenizer = FullTokenizer(options.vocab_file, options.do_lower_case)
    check_special_tokens(tokenizer.vocab, options.vocab_file)
    warn_about_flags(options, tokenizer)
    for path in options.input_files:
        token_store.open_input(path).close()
    with work_folder(options) as work:
        if options.compatible:
            manifest = _compatible_run(options, tokenizer, work, show_progress)
        else:
            manifest = _run(options, num_workers, work, show_progress)
        for path in sorted(set(map(manifest_path, options.output_files))):
            write_json(path, manifest)
    return manifest


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def warn_about_flags(options: Options, tokenizer: FullTokenizer) -> None:
    """Warns of flags that contradict each other but are not forbidden."""
    vocab = tokenizer.vocab
    uncased = token_store.is_uncased_vocabulary(vocab)
    lengths = options.max_seq_length * options.masked_lm_prob
    if not options.dynamic_masking and options.max_predictions_per_seq < int(lengths):
        _warn(
            f"max_predictions_per_seq {options.max_predictions_per_seq} cuts off predictions: "
            f"max_seq_length * masked_lm_prob is {lengths:g}"
        )
    if options.do_lower_case and any(p[:1].isupper() for p in vocab) and not uncased:
        _warn(
            f"do_lower_case is set, but vocabulary {options.vocab_file} has upper-case pieces, "
            "which the text can then never have; cased models need --do_lower_case=False"
        )
    if vocab[PAD_TOKEN] != 0:
        _warn(
            f"[PAD] is not the first line of {options.vocab_file}; padding is 0 all the same, as "
            "in the original, and input_mask tells it apart"
        )


def warn_about_corpus(options: Options, counts: dict[str, int]) -> None:
    """Complains of a corpus from which no good pairs can come.

    Raises:
      ValueError: there is no document.
    """
    files = ", ".join(options.input_files[:3]) + (", ..." if len(options.input_files) > 3 else "")
    documents, sentences = counts["documents"], counts["sentences"]
    if not documents:
        raise ValueError(f"{files}: no documents: no line has any text")
    if documents == 1:
        _warn(
            f"{files}: one document only, so every 'random next' text comes from the same "
            "document; separate documents by blank lines"
        )
    elif sentences < 2 * documents:
        _warn(
            f"{files}: {sentences / documents:.2f} lines per document on average; a line should "
            "be a sentence, not a paragraph (see extract_corpus.py)"
        )
    unknown = counts["unknown_tokens"] / counts["tokens"]
    if unknown > UNKNOWN_RATE_TO_WARN:
        _warn(
            f"{files}: {unknown:.1%} of tokens are [UNK]; check that {options.vocab_file} is of "
            f"the text's language, and do_lower_case={options.do_lower_case} right for it"
        )


# --------------------------------------------------------------------------------------------------
# Work folder


def write_json(path: str, value: Any) -> None:
    """Writes a value; the file appears under its name once it is whole."""
    temporary = f"{path}.tmp-{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.write("\n")
    os.replace(temporary, path)


def read_json(path: str) -> Any:
    """Reads what `write_json` wrote."""
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def _file_sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def fingerprint(options: Options, layout: str | None = None) -> str:
    """Digest of all that the records' bytes depend on, and how unfinished work is laid out.

    Args:
      options: what is made from what.
      layout: name of another layout than this module's.

    Returns:
      16 hexadecimal digits.
    """
    what = {
        **dataclasses.asdict(options),
        "input_files": [token_store.input_stamp(path) for path in options.input_files],
        "output_files": [os.path.abspath(path) for path in options.output_files],
        "vocab_file": _file_sha256(options.vocab_file),
        "format": FORMAT_VERSION,
        "sizes": [
            token_store.PIECE_BYTES,
            BLOCK_SENTENCES,
            LOCKSTEP_DOCUMENTS,
            LOCKSTEP_DOCUMENTS_OF_LARGE,
            token_store.MAX_RESIDENT_BYTES,
            SHUFFLED_PAIRS,
            CHUNK_INSTANCES,
            BATCH_TOKENS,
        ],
        "numpy": np.__version__,
        "unicode": unicodedata.unidata_version,
    }
    if layout is not None:
        what["layout"] = layout
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def work_folder(options: Options, layout: str | None = None) -> Iterator[str]:
    """Makes sure that the output can be written, and gives the folder for unfinished work.

    The folder goes when all is done, and when the input turns out to be bad; it stays when the run
    is stopped or a disk is full, for the next run to continue.

    Args:
      options: what is made from what; all output on this machine's file system.
      layout: as for `fingerprint`.

    Yields:
      The folder's path.

    Raises:
      ValueError: the output cannot be written.
      RuntimeError: another run has the folder.
    """
    for path in options.output_files:
        if os.path.isdir(path):
            raise ValueError(f"output_file: {path} is a folder, expected a file's name")
        folder = os.path.dirname(os.path.abspath(path))
        probe = os.path.join(folder, f".{os.path.basename(path)}.probe-{os.getpid()}")
        try:
            os.makedirs(folder, exist_ok=True)
            with open(probe, "wb"):
                pass
            os.unlink(probe)
        except OSError as error:
            raise ValueError(
                f"output_file: cannot write to {path}: {error.strerror or error}"
            ) from error
    base = output_base(os.path.abspath(options.output_files[0])) + ".work-"
    work = base + fingerprint(options, layout)
    os.makedirs(work, exist_ok=True)
    lock = lock_folder(work)
    if lock is None:
        raise RuntimeError(f"another run is making the same records; it holds {work}")
    with lock:
        for removed in glob.glob(f"{glob.escape(base)}*.removed"):
            shutil.rmtree(removed, ignore_errors=True)
        for other in set(glob.glob(glob.escape(base) + "?" * 16)) - {work}:
            other_lock = lock_folder(other)
            if other_lock is not None:  # left by a killed run on other input or with other flags
                with other_lock:
                    _remove_folder(other)
        try:
            yield work
        except ValueError:
            _remove_folder(work)
            raise
        _remove_folder(work)


def _remove_folder(work: str) -> None:
    """Removes a work folder so that nobody takes half of it for a whole one."""
    removed = f"{work}-{os.getpid()}.removed"
    os.rename(work, removed)
    shutil.rmtree(removed)


# --------------------------------------------------------------------------------------------------
# Work of one process


class Statistics:
    """Counts over finished instances.

    Attributes:
      counts: instances, sequence_tokens, random_next and masked_tokens; bytes of a chunk.
      labels: int64 [highest label + 1], how often each id was masked.
      max_token_id: highest id of any sequence.
    """

    def __init__(self):
        self.counts = collections.Counter()
        self.labels = np.zeros(0, np.int64)
        self.max_token_id = 0

    def add(self, arrays: dict[str, np.ndarray], length: np.ndarray) -> None:
        """Adds a batch.

        Args:
          arrays: the records' features.
          length: int64 [B], tokens in each sequence.
        """
        self.counts["instances"] += len(length)
        self.counts["sequence_tokens"] += int(length.sum())
        self.counts["random_next"] += int(arrays["next_sentence_labels"].sum())
        self.max_token_id = max(self.max_token_id, int(arrays["input_ids"].max()))
        if "masked_lm_ids" in arrays:
            labels = arrays["masked_lm_ids"][arrays["masked_lm_weights"] > 0]
            self.counts["masked_tokens"] += labels.size
            self._add_labels(np.bincount(labels))

    def _add_labels(self, counts: np.ndarray) -> None:
        if counts.size > self.labels.size:
            counts, self.labels = self.labels, counts.astype(np.int64)
        self.labels[: counts.size] += counts

    def merge(self, other: "Statistics") -> None:
        """Adds another's counts."""
        self.counts.update(other.counts)
        self.max_token_id = max(self.max_token_id, other.max_token_id)
        self._add_labels(other.labels)

    def write(self, stream: BinaryIO) -> None:
        """Writes the counts to a stream."""
        ids = np.flatnonzero(self.labels)
        np.savez(
            stream,
            counts=np.array(json.dumps(self.counts)),
            max_token_id=self.max_token_id,
            label_ids=ids,
            label_counts=self.labels[ids],
        )

    def save(self, path: str) -> None:
        """Writes the counts to a file, which appears once it is whole."""
        temporary = f"{path}.tmp-{os.getpid()}"
        with open(temporary, "wb") as stream:
            self.write(stream)
        os.replace(temporary, path)

    @classmethod
    def load(cls, source: str | BinaryIO) -> "Statistics":
        """Reads what `write` or `save` wrote, from a path or a stream that can seek."""
        result = cls()
        with np.load(source) as loaded:
            result.counts.update(json.loads(str(loaded["counts"])))
            result.max_token_id = int(loaded["max_token_id"])
            if loaded["label_ids"].size:
                result.labels = np.zeros(int(loaded["label_ids"].max()) + 1, np.int64)
                result.labels[loaded["label_ids"]] = loaded["label_counts"]
        return result

    def unigram_entropy_nats(self) -> float | None:
        """Entropy of the predicted tokens: the loss of knowing only how often each comes."""
        counts = self.labels[self.labels > 0]
        if not counts.size:
            return None
        share = counts / counts.sum()
        return float(-(share * np.log(share)).sum())


def generator(options: Options, stage: int, *index: int) -> np.random.Generator:
    """Random numbers of one piece of work, the same wherever and whenever it is done.

    Args:
      options: for the seed.
      stage: PAIRS_STAGE, PLAN_STAGE or RECORDS_STAGE.
      *index: number of the block or chunk.
    """
    seed = np.random.SeedSequence(options.random_seed % (1 << 64), spawn_key=(stage, *index))
    return np.random.Generator(np.random.SFC64(seed))


def refuses_upper_case(options: Options, vocab: Mapping[str, int]) -> bool:
    """Whether a capital letter in the text is an error: no piece could have it."""
    return not options.do_lower_case and token_store.is_uncased_vocabulary(vocab)


def block_bounds(store: token_store.TokenStore, options: Options) -> list[tuple[int, int]]:
    """Cuts the corpus into blocks of documents whose pairs are drawn together.

    Args:
      store: the corpus; its tokens are not looked at.
      options: for dupe_factor.

    Returns:
      First document and end of each block.
    """
    step = max(1, BLOCK_SENTENCES // options.dupe_factor)
    starts = np.searchsorted(store.document_offsets, np.arange(0, store.counts["sentences"], step))
    bounds = [*np.unique(starts).tolist(), store.counts["documents"]]
    return [(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a < b]


def block_pairs(
    store: token_store.TokenStore, options: Options, documents: range, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Draws the pairs of a block of documents, shuffled.

    Args:
      store: the corpus; its tokens are not looked at.
      options: for the rule of pairs and dupe_factor.
      documents: the block.
      rng: `generator` of the block.

    Yields:
      PAIR_DTYPE arrays of about SHUFFLED_PAIRS pairs, each in random order.
    """
    waiting: list[np.ndarray] = []
    lanes = LOCKSTEP_DOCUMENTS_OF_LARGE if store.has_large_offsets else LOCKSTEP_DOCUMENTS
    step = max(1, lanes // options.dupe_factor)
    for start in range(documents.start, documents.stop, step):
        for pairs in instances.sample_pairs(
            store.sentence_offsets,
            store.document_offsets,
            range(start, min(documents.stop, start + step)),
            options.dupe_factor,
            options.pair_rule,
            rng,
        ):
            waiting.append(pairs)
            store.release()
            if sum(map(len, waiting)) >= SHUFFLED_PAIRS:
                yield rng.permutation(np.concatenate(waiting))
                waiting.clear()
    if waiting:
        yield rng.permutation(np.concatenate(waiting))


def write_chunk_records(
    options: Options,
    vocabulary: instances.VocabularyTable,
    pairs: np.ndarray,
    gather: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
    stream: Any,
) -> Statistics:
    """Shuffles, packs, masks and encodes the pairs of one chunk of the output.

    Args:
      options: for the rule of masks and the lengths.
      vocabulary: of the model.
      pairs: PAIR_DTYPE [B], in the order of the plan.
      gather: pairs -> tokens, and the pairs with their starts in those tokens.
      rng: `generator` of the chunk.
      stream: where the framed records are written.

    Returns:
      Counts of what was written, without "bytes".
    """
    pairs = rng.permutation(pairs)
    statistics = Statistics()
    batch = max(1, BATCH_TOKENS // options.max_seq_length)
    for start in range(0, len(pairs), batch):
        tokens, here = gather(pairs[start : start + batch])
        packed = instances.pack_pairs(tokens, here, options.max_seq_length, vocabulary)
        masks = {}
        if not options.dynamic_masking:
            masks = instances.mask_pairs(packed, vocabulary, options.mask_rule, rng)
        arrays = {**packed.features(), **masks}
        statistics.add(arrays, packed.length)
        stream.write(encode_framed_examples(options.features, arrays))
    return statistics


class _Worker:
    """Carries out the parallel steps; each process has one."""

    def __init__(self, options: Options, work: str):
        self.options = options
        self.work = work
        self._tokenizer: FullTokenizer | None = None

    @functools.cached_property
    def _store(self) -> token_store.TokenStore:
        return token_store.TokenStore(self.work)

    @functools.cached_property
    def _vocabulary(self) -> instances.VocabularyTable:
        vocab = load_vocab(self.options.vocab_file)
        return instances.VocabularyTable.from_vocab(vocab)

    def tokenize(self, index: int, piece: token_store.TextPiece) -> None:
        """Tokenizes one piece of text into its file, unless an earlier run did."""
        if os.path.exists(_piece_path(self.work, index)):
            return
        if self._tokenizer is None:
            self._tokenizer = FullTokenizer(
                self.options.vocab_file,
                self.options.do_lower_case,
                max_memo_bytes=TOKENIZER_MEMO_BYTES,
            )
        tokenized = token_store.tokenize_piece(
            piece, self._tokenizer, refuses_upper_case(self.options, self._tokenizer.vocab)
        )
        tokenized.save(_piece_path(self.work, index))

    def draw_pairs(self, block: int, first_document: int, end_document: int) -> None:
        """Draws the pairs of one block of documents into its files, unless an earlier run did."""
        if os.path.exists(_block_path(self.work, block)):
            return
        self._tokenizer = None  # its memo is of no more use
        documents = range(first_document, end_document)
        rng = generator(self.options, PAIRS_STAGE, block)
        counts: list[int] = []
        for pairs in block_pairs(self._store, self.options, documents, rng):
            path = _pairs_path(self.work, block, len(counts))
            pairs.tofile(f"{path}.tmp")
            os.replace(f"{path}.tmp", path)
            counts.append(len(pairs))
        write_json(_block_path(self.work, block), counts)

    def write_chunk(self, chunk: int, compress: bool) -> None:
        """Makes the records of one chunk of the output, unless an earlier run did."""
        path = _chunk_path(self.work, chunk)
        if os.path.exists(path):
            return
        self._tokenizer = None
        rng = generator(self.options, RECORDS_STAGE, chunk)
        # Not a RecordWriter's rename: statistics must be there before the records are.
        with open(f"{path}.tmp", "wb") as raw, contextlib.ExitStack() as stack:
            stream: Any = raw
            if compress:
                stream = stack.enter_context(gzip_stream(raw))
            statistics = write_chunk_records(
                self.options, self._vocabulary, self._chunk_pairs(chunk), self._gather, rng, stream
            )
        statistics.counts["bytes"] = os.path.getsize(f"{path}.tmp")
        statistics.save(_statistics_path(self.work, chunk))
        os.replace(f"{path}.tmp", path)

    def _gather(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds a batch's tokens in the store."""
        starts = np.concatenate([pairs["a_start"], pairs["b_start"]])
        lengths = np.concatenate([pairs["a_length"], pairs["b_length"]])
        tokens, starts = self._store.gather(starts, lengths)
        pairs = pairs.copy()
        pairs["a_start"], pairs["b_start"] = np.split(starts, 2)
        return tokens, pairs

    def _chunk_pairs(self, chunk: int) -> np.ndarray:
        """Collects from every block the pairs that the plan gives to a chunk."""
        plan = np.load(_plan_path(self.work), mmap_mode="r")
        begin, end = np.asarray(plan[:, chunk]), np.asarray(plan[:, chunk + 1])
        files = read_json(_blocks_path(self.work))
        parts = []
        for number in np.flatnonzero(end > begin).tolist():
            parts.append(
                np.fromfile(
                    os.path.join(self.work, files[number][0]),
                    instances.PAIR_DTYPE,
                    int(end[number] - begin[number]),
                    offset=int(begin[number]) * instances.PAIR_DTYPE.itemsize,
                )
            )
        return np.concatenate(parts)


def _piece_path(work: str, index: int) -> str:
    return os.path.join(work, f"piece-{index:07d}.npz")


def _pairs_path(work: str, block: int, part: int) -> str:
    return os.path.join(work, f"pairs-{block:06d}-{part:04d}")


def _block_path(work: str, block: int) -> str:
    return os.path.join(work, f"block-{block:06d}.json")


def _blocks_path(work: str) -> str:
    return os.path.join(work, "blocks.json")


def _plan_path(work: str) -> str:
    return os.path.join(work, "plan.npy")


def _chunk_path(work: str, chunk: int) -> str:
    return os.path.join(work, f"chunk-{chunk:07d}")


def _statistics_path(work: str, chunk: int) -> str:
    return os.path.join(work, f"chunk-{chunk:07d}.npz")


def _output_part_path(work: str, index: int) -> str:
    return os.path.join(work, f"output-{index:05d}")


def _output_bytes(options: Options, work: str) -> list[int]:
    files = range(len(options.output_files))
    return [os.path.getsize(_output_part_path(work, index)) for index in files]


# --------------------------------------------------------------------------------------------------
# Passes


def _run(options: Options, num_workers: int, work: str, show: bool) -> dict[str, Any]:
    """The default mode: all passes, each skipping what an earlier run has done."""
    finished = os.path.join(work, "finished.json")
    if not os.path.exists(finished):
        with WorkerPool(num_workers, _Worker, options, work) as pool:
            counts = _tokenize(options, pool, work, show)
            warn_about_corpus(options, counts)
            _draw_pairs(options, pool, work, counts, show)
            file_chunks = _plan(options, work)
            statistics = _write_records(options, pool, work, file_chunks, show)
        write_json(
            finished, make_manifest(options, counts, statistics, _output_bytes(options, work))
        )
    for index, path in enumerate(options.output_files):
        if os.path.exists(_output_part_path(work, index)):
            os.replace(_output_part_path(work, index), path)
    return read_json(finished)


def _tokenize(options: Options, pool: WorkerPool, work: str, show: bool) -> dict[str, int]:
    """First pass: text to a token store; returns the store's counts."""
    if not token_store.is_complete(work):
        sizes: collections.deque[int] = collections.deque()  # of the pieces under way

        def calls() -> Iterator[tuple[int, token_store.TextPiece]]:
            for index, piece in enumerate(
                token_store.text_pieces(options.input_files, token_store.PIECE_BYTES)
            ):
                sizes.append(piece.file_bytes)
                yield index, piece

        total = sum(map(token_store.input_bytes, options.input_files))
        with (
            Progress("1/3 tokenizing", total, "B", show=show) as progress,
            token_store.StoreWriter(work) as writer,
        ):
            number = 0
            for number, _ in enumerate(pool.map("tokenize", calls()), start=1):
                writer.append(token_store.TokenizedPiece.load(_piece_path(work, number - 1)))
                progress.update(sizes.popleft())
        for index in range(number):
            os.unlink(_piece_path(work, index))
    return token_store.TokenStore(work).counts


def _draw_pairs(
    options: Options, pool: WorkerPool, work: str, counts: dict[str, int], show: bool
) -> None:
    """Second pass: documents to pairs, block by block, and the list of the blocks' files."""
    if os.path.exists(_blocks_path(work)):
        return
    blocks = block_bounds(token_store.TokenStore(work), options)
    parts: list[tuple[str, int]] = []  # file, pairs in it
    with Progress("2/3 drawing pairs", counts["documents"], "document", show=show) as progress:
        calls = ((index, *block) for index, block in enumerate(blocks))
        for index, _ in enumerate(pool.map("draw_pairs", calls)):
            for part, pairs in enumerate(read_json(_block_path(work, index))):
                parts.append((os.path.basename(_pairs_path(work, index, part)), pairs))
            progress.update(blocks[index][1] - blocks[index][0])
    write_json(_blocks_path(work), parts)


def _plan(options: Options, work: str) -> list[range]:
    """Writes the plan, unless an earlier run did, and returns the chunks of each output file."""
    part_pairs = [pairs for _, pairs in read_json(_blocks_path(work))]
    sizes, file_chunks = chunk_sizes(options, sum(part_pairs))
    if not os.path.exists(_plan_path(work)):
        plan = np.lib.format.open_memmap(
            _plan_path(work) + ".tmp", "w+", np.int64, (len(part_pairs), len(sizes) + 1)
        )
        for row, starts in enumerate(deal_pairs(options, part_pairs, sizes)):
            plan[row] = starts
        plan.flush()
        del plan
        os.replace(_plan_path(work) + ".tmp", _plan_path(work))
    return file_chunks


def instances_of_files(options: Options, total: int) -> list[int]:
    """How many instances each output file gets of so many: as even as can be."""
    files = len(options.output_files)
    return [total // files + (index < total % files) for index in range(files)]


def chunk_sizes(options: Options, total: int) -> tuple[list[int], list[range]]:
    """Cuts the output files into chunks.

    Args:
      options: for the output files.
      total: instances there are.

    Returns:
      Instances of each chunk, and the chunks of each output file.
    """
    files = len(options.output_files)
    if total < files:
        _warn(f"{total} instances for {files} output files: some files will have no record")
    sizes: list[int] = []
    file_chunks = []
    for instances_of_file in instances_of_files(options, total):
        chunks = -(-instances_of_file // CHUNK_INSTANCES)
        file_chunks.append(range(len(sizes), len(sizes) + chunks))
        bounds = [instances_of_file * k // max(chunks, 1) for k in range(chunks + 1)]
        sizes.extend(np.diff(bounds).tolist())
    return sizes, file_chunks


def deal_pairs(
    options: Options, part_pairs: Sequence[int], sizes: Sequence[int]
) -> Iterator[np.ndarray]:
    """Deals the pairs out to the chunks: the rows of the plan.

    Row r says where each chunk's share of the r-th file of pairs begins. Shares are drawn as those
    of a uniformly random order of all pairs (multivariate hypergeometric).

    Args:
      options: for the seed.
      part_pairs: pairs in each file of them.
      sizes: instances of each chunk, with the same sum.

    Yields:
      For each file of pairs int64 [chunks + 1], from 0 to its pairs.
    """
    rng = generator(options, PLAN_STAGE)
    left = np.array(sizes, np.int64)
    for pairs in part_pairs:
        share = _deal(rng, left, pairs)
        yield np.concatenate([[0], np.cumsum(share)])
        left -= share


def _deal(rng: np.random.Generator, left: np.ndarray, count: int) -> np.ndarray:
    """How many of `count` items go to each chunk, if free places are drawn without replacement.

    Args:
      rng: source of randomness.
      left: int64 [chunks], free places.
      count: items, at most the sum of `left`.

    Returns:
      int64 [chunks], summing to count.
    """
    places = int(left.sum())
    if places < 900_000_000:  # NumPy's bound for the method is 1e9
        return rng.multivariate_hypergeometric(left, count, method="marginals")
    drawn = rng.choice(places, count, replace=False, shuffle=False)
    chunk = np.searchsorted(np.cumsum(left), drawn, side="right")
    return np.bincount(chunk, minlength=left.size)


def _write_records(
    options: Options, pool: WorkerPool, work: str, file_chunks: Sequence[range], show: bool
) -> Statistics:
    """Third pass: pairs to records, appended to the output files as chunks are finished."""
    compressed = [path.endswith(".gz") for path in options.output_files]
    total = sum(pairs for _, pairs in read_json(_blocks_path(work)))
    statistics = Statistics()
    calls = []
    joined = [_joined_chunks(work, index, chunks) for index, chunks in enumerate(file_chunks)]
    for index, chunks in enumerate(file_chunks):
        for chunk in chunks[: joined[index]]:
            statistics.merge(Statistics.load(_statistics_path(work, chunk)))
        calls += [(chunk, compressed[index]) for chunk in chunks[joined[index] :]]
    done = statistics.counts["instances"]
    with Progress("3/3 writing records", total, "record", done, show=show) as progress:
        results = pool.map("write_chunk", calls)
        for index, chunks in enumerate(file_chunks):
            with open(_output_part_path(work, index), "ab") as output:
                for chunk in chunks[joined[index] :]:
                    next(results)
                    with open(_chunk_path(work, chunk), "rb") as part:
                        shutil.copyfileobj(part, output, 1 << 20)
                    output.flush()
                    os.unlink(_chunk_path(work, chunk))
                    of_chunk = Statistics.load(_statistics_path(work, chunk))
                    statistics.merge(of_chunk)
                    progress.update(of_chunk.counts["instances"])
    return statistics


def _joined_chunks(work: str, index: int, chunks: range) -> int:
    """How many chunks an earlier run appended to an output file; cuts off a half appended one."""
    path = _output_part_path(work, index)
    if not os.path.exists(path):
        return 0
    size, end, count = os.path.getsize(path), 0, 0
    for chunk in chunks:
        if not os.path.exists(_statistics_path(work, chunk)):
            break
        end_of_chunk = end + Statistics.load(_statistics_path(work, chunk)).counts["bytes"]
        if end_of_chunk > size:
            break
        end, count = end_of_chunk, count + 1
    os.truncate(path, end)
    return count


def make_manifest(
    options: Options,
    counts: dict[str, int],
    statistics: Statistics,
    file_bytes: Sequence[int],
) -> dict[str, Any]:
    """What is known of the records, for people and for training.

    Args:
      options: what was made from what.
      counts: documents, sentences, tokens and unknown_tokens of the text.
      statistics: of all records.
      file_bytes: size of each output file.

    Returns:
      The manifest, of types that JSON has.
    """
    vocab = load_vocab(options.vocab_file)
    made = statistics.counts
    flags = dataclasses.asdict(options)
    for name in ("input_files", "output_files"):
        flags[name] = list(flags[name])
    return {
        "kind": "pretraining_unmasked" if options.dynamic_masking else "pretraining",
        "files": [os.path.basename(path) for path in options.output_files],
        "file_instances": instances_of_files(options, made["instances"]),
        "file_bytes": list(file_bytes),
        "counts": {
            "documents": counts["documents"],
            "sentences": counts["sentences"],
            "tokens": counts["tokens"],
            "instances": made["instances"],
            "masked_tokens": made["masked_tokens"],
            "random_next_fraction": made["random_next"] / max(made["instances"], 1),
            "unknown_token_rate": counts["unknown_tokens"] / max(counts["tokens"], 1),
            "padding_fraction": 1
            - made["sequence_tokens"] / max(made["instances"] * options.max_seq_length, 1),
        },
        "max_seq_length": options.max_seq_length,
        "max_predictions_per_seq": options.max_predictions_per_seq,
        "vocab_size": max(vocab.values()) + 1,
        "vocab_sha256": _file_sha256(options.vocab_file),
        "do_lower_case": options.do_lower_case,
        "do_whole_word_mask": options.do_whole_word_mask,
        "max_token_id": statistics.max_token_id,
        # The masked language model's loss, if it knew only how often each token comes.
        "unigram_entropy_nats": statistics.unigram_entropy_nats(),
        "flags": flags,
    }


# --------------------------------------------------------------------------------------------------
# Compatible mode


def _compatible_run(
    options: Options, tokenizer: FullTokenizer, work: str, show: bool
) -> dict[str, Any]:
    """The original's records: everything in memory, one generator for all draws."""
    documents, counts = _read_documents(options, tokenizer, show)
    warn_about_corpus(options, counts)
    rng = random.Random(options.random_seed)
    rng.shuffle(documents)
    maker = original_order.InstanceMaker(
        documents,
        options.pair_rule,
        options.mask_rule,
        instances.VocabularyTable.from_vocab(tokenizer.vocab),
        rng,
    )
    made: list[original_order.Instance] = []
    total = len(documents) * options.dupe_factor
    with Progress("2/3 drawing instances", total, "document", show=show) as progress:
        for _ in range(options.dupe_factor):
            for index in range(len(documents)):
                made.extend(maker.from_document(index))
                progress.update(1)
    rng.shuffle(made)

    statistics = Statistics()
    files = len(options.output_files)
    dtype = token_store.token_dtype(tokenizer.vocab)
    batch = max(1, BATCH_TOKENS // options.max_seq_length)
    with (
        contextlib.ExitStack() as stack,
        Progress("3/3 writing records", len(made), "record", show=show) as progress,
    ):
        writers = [
            stack.enter_context(
                RecordWriter(
                    _output_part_path(work, index), "gzip" if path.endswith(".gz") else None
                )
            )
            for index, path in enumerate(options.output_files)
        ]
        for start in range(0, len(made), batch):
            arrays, length = _instance_arrays(made[start : start + batch], options, dtype)
            statistics.add(arrays, length)
            for row, record in enumerate(encode_examples(options.features, arrays)):
                writers[(start + row) % files].write(record)
            progress.update(len(length))
    manifest = make_manifest(options, counts, statistics, _output_bytes(options, work))
    for index, path in enumerate(options.output_files):
        os.replace(_output_part_path(work, index), path)
    return manifest


def _read_documents(
    options: Options, tokenizer: FullTokenizer, show: bool
) -> tuple[list[list[Any]], dict[str, int]]:
    """Tokenizes all documents into memory; returns them and their counts."""
    if not options.do_lower_case and token_store.is_uncased_vocabulary(tokenizer.vocab):
        _warn(
            f"vocabulary {options.vocab_file} has no upper-case letters and do_lower_case is not "
            "set: every word with a capital becomes [UNK]"
        )
    documents: list[list[Any]] = [[]]
    counts = {"documents": 0, "sentences": 0, "tokens": 0, "unknown_tokens": 0}
    total = sum(map(token_store.input_bytes, options.input_files))
    with Progress("1/3 tokenizing", total, "B", show=show) as progress:
        for piece in token_store.text_pieces(options.input_files, token_store.PIECE_BYTES):
            tokenized = token_store.tokenize_piece(piece, tokenizer, refuse_upper_case=False)
            ends = np.cumsum(tokenized.sentence_lengths)[:-1]
            sentences = np.split(tokenized.tokens, ends) if tokenized.tokens.size else []
            starts = set(tokenized.document_starts.tolist())
            for number, sentence in enumerate(sentences):
                if number in starts:
                    documents.append([])
                documents[-1].append(sentence.tolist())
            if len(sentences) in starts:
                documents.append([])
            counts["sentences"] += len(sentences)
            counts["tokens"] += tokenized.tokens.size
            counts["unknown_tokens"] += tokenized.unknown_tokens
            progress.update(piece.file_bytes)
    documents = [document for document in documents if document]
    counts["documents"] = len(documents)
    return documents, counts


def _instance_arrays(
    made: Sequence[original_order.Instance], options: Options, dtype: np.dtype
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pads instances to the arrays of their records; also returns their lengths, int64 [B]."""
    rows = len(made)
    shape = (rows, options.max_predictions_per_seq)
    input_ids = np.zeros((rows, options.max_seq_length), dtype)
    positions, labels = np.zeros(shape, np.uint32), np.zeros(shape, dtype)
    weights = np.zeros(shape, np.float32)
    for row, instance in enumerate(made):
        input_ids[row, : len(instance.ids)] = instance.ids
        count = len(instance.positions)
        positions[row, :count] = instance.positions
        labels[row, :count] = instance.labels
        weights[row, :count] = 1
    packed = instances.PackedPairs(
        input_ids,
        np.array([instance.a_end for instance in made]),
        np.array([len(instance.ids) for instance in made]),
        np.array([instance.is_random_next for instance in made]),
    )
    arrays = {
        **packed.features(),
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "masked_lm_weights": weights,
    }
    return arrays, packed.length
