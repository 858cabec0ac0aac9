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
import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bert_tf.files import move, read_json, replacing, write_json
from bert_tf.records.files import manifest_path
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus import text_files
from data_prep.pretraining import instances, token_store
from data_prep.pretraining.listed_words import WordMarker
from data_prep.pretraining.manifest import Statistics, make_manifest
from data_prep.pretraining.options import (
    Options,
    refuses_upper_case,
    warn_about_corpus,
    warn_about_records,
)
from data_prep.pretraining.original_order import compatible_run
from data_prep.pretraining.stages import (
    block_bounds,
    block_pairs,
    chunk_sizes,
    deal_pairs,
    open_tokenizer,
    word_marker,
    worker_tokenizer,
    write_chunk_records,
)
from data_prep.pretraining.work_folder import (
    block_path,
    blocks_path,
    chunk_path,
    output_bytes,
    output_part_path,
    pairs_path,
    piece_path,
    plan_path,
    statistics_path,
    work_folder,
)
from data_prep.processes.progress import Progress
from data_prep.processes.worker_pool import WorkerPool, available_cores


def create_pretraining_data(
    options: Options, num_workers: int | None = None, show_progress: bool = True
) -> dict[str, Any]:
    """Write pre-training records and their manifest.

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
    tokenizer = open_tokenizer(options)
    with work_folder(options) as work:
        if options.compatible:
            manifest = compatible_run(options, tokenizer, work, show_progress)
        else:
            manifest = _run(options, num_workers, work, show_progress)
        for path in sorted(set(map(manifest_path, options.output_files))):
            write_json(path, manifest, indent=1)
    warn_about_records(options, manifest["counts"])
    return manifest


class _Worker:
    """Carries out the parallel steps; each process has one."""

    def __init__(self, options: Options, work: str):
        self.options = options
        self.work = work
        self._tokenizer: FullTokenizer | None = None
        self._marker: WordMarker | None = None

    @functools.cached_property
    def _store(self) -> token_store.TokenStore:
        return token_store.TokenStore(self.work)

    @functools.cached_property
    def _vocabulary(self) -> instances.VocabularyTable:
        vocab = load_vocab(self.options.vocab_file)
        return instances.VocabularyTable.from_vocab(vocab, self.options.word_list is not None)

    def tokenize(self, index: int, piece: text_files.TextPiece) -> None:
        """Tokenize one piece of text into its file, unless an earlier run did."""
        if os.path.exists(piece_path(self.work, index)):
            return
        if self._tokenizer is None:
            self._tokenizer = worker_tokenizer(self.options, self.options.vocab_file)
            self._marker = word_marker(self.options, self._tokenizer)
        refuse = refuses_upper_case(self.options, self._tokenizer.vocab)
        tokenized = token_store.tokenize_piece(piece, self._tokenizer, refuse, self._marker)
        tokenized.save(piece_path(self.work, index))

    def draw_pairs(self, block: int, first_document: int, end_document: int) -> None:
        """Draw the pairs of one block of documents into its files, unless an earlier run did."""
        if os.path.exists(block_path(self.work, block)):
            return
        self._tokenizer = self._marker = None  # the memo is of no more use
        documents = range(first_document, end_document)
        counts: list[int] = []
        for pairs in block_pairs(self._store, self.options, block, documents):
            with replacing(pairs_path(self.work, block, len(counts))) as temporary:
                pairs.tofile(temporary)
            counts.append(len(pairs))
        write_json(block_path(self.work, block), counts)

    def write_chunk(self, chunk: int, compress: bool) -> None:
        """Make the records of one chunk of the output, unless an earlier run did."""
        path = chunk_path(self.work, chunk)
        if os.path.exists(path):
            return
        self._tokenizer = self._marker = None
        pairs = self._chunk_pairs(chunk)
        with replacing(path) as temporary:
            with open(temporary, "wb") as raw:
                statistics = write_chunk_records(
                    self.options, self._vocabulary, pairs, self._gather, chunk, raw, compress
                )
            statistics.hold(pairs, self._store.counts["tokens"])
            statistics.counts["bytes"] = os.path.getsize(temporary)
            # Before the records get their name, which says that the chunk is whole.
            statistics.save(statistics_path(self.work, chunk))

    def _gather(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find a batch's tokens in the store."""
        starts = np.concatenate([pairs["a_start"], pairs["b_start"]])
        lengths = np.concatenate([pairs["a_length"], pairs["b_length"]])
        tokens, starts = self._store.gather(starts, lengths)
        pairs = pairs.copy()
        pairs["a_start"], pairs["b_start"] = np.split(starts, 2)
        return tokens, pairs

    def _chunk_pairs(self, chunk: int) -> np.ndarray:
        """Collect from every block the pairs that the plan gives to a chunk."""
        plan = np.load(plan_path(self.work), mmap_mode="r")
        begin, end = np.asarray(plan[:, chunk]), np.asarray(plan[:, chunk + 1])
        files = read_json(blocks_path(self.work))
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


# === Passes ===


def _run(options: Options, num_workers: int, work: str, show: bool) -> dict[str, Any]:
    """Run the default mode: all passes, each skipping what an earlier run has done."""
    finished = os.path.join(work, "finished.json")
    if not os.path.exists(finished):
        with WorkerPool(num_workers, _Worker, options, work) as pool:
            counts = _tokenize(options, pool, work, show)
            warn_about_corpus(options, counts)
            _draw_pairs(options, pool, work, counts, show)
            file_chunks = _plan(options, work)
            statistics = _write_records(options, pool, work, file_chunks, show)
        write_json(
            finished, make_manifest(options, counts, statistics, output_bytes(options, work))
        )
    for index, path in enumerate(options.output_files):
        if os.path.exists(output_part_path(work, index)):
            move(output_part_path(work, index), path)
    return read_json(finished)


def _tokenize(options: Options, pool: WorkerPool, work: str, show: bool) -> dict[str, int]:
    """First pass: text to a token store; returns the store's counts."""
    if not token_store.is_complete(work):
        sizes: collections.deque[int] = collections.deque()  # of the pieces under way

        def calls() -> Iterator[tuple[int, text_files.TextPiece]]:
            for index, piece in enumerate(
                text_files.text_pieces(options.input_files, text_files.PIECE_BYTES)
            ):
                sizes.append(piece.file_bytes)
                yield index, piece

        total = sum(map(text_files.input_bytes, options.input_files))
        with (
            Progress("1/3 tokenizing", total, "B", show=show) as progress,
            token_store.StoreWriter(work) as writer,
        ):
            number = 0
            for number, _ in enumerate(pool.map("tokenize", calls()), start=1):
                writer.append(token_store.TokenizedPiece.load(piece_path(work, number - 1)))
                progress.update(sizes.popleft())
        for index in range(number):
            os.unlink(piece_path(work, index))
    return token_store.TokenStore(work).counts


def _draw_pairs(
    options: Options, pool: WorkerPool, work: str, counts: dict[str, int], show: bool
) -> None:
    """Second pass: documents to pairs, block by block, and the list of the blocks' files."""
    if os.path.exists(blocks_path(work)):
        return
    blocks = block_bounds(token_store.TokenStore(work), options)
    parts: list[tuple[str, int]] = []  # file, pairs in it
    with Progress("2/3 drawing pairs", counts["documents"], "document", show=show) as progress:
        calls = ((index, *block) for index, block in enumerate(blocks))
        for index, _ in enumerate(pool.map("draw_pairs", calls)):
            for part, pairs in enumerate(read_json(block_path(work, index))):
                parts.append((os.path.basename(pairs_path(work, index, part)), pairs))
            progress.update(blocks[index][1] - blocks[index][0])
    write_json(blocks_path(work), parts)


def _plan(options: Options, work: str) -> list[range]:
    """Write the plan, unless an earlier run did, and return the chunks of each output file."""
    part_pairs = [pairs for _, pairs in read_json(blocks_path(work))]
    sizes, file_chunks = chunk_sizes(options, sum(part_pairs))
    if not os.path.exists(plan_path(work)):
        with replacing(plan_path(work)) as temporary:
            shape = (len(part_pairs), len(sizes) + 1)
            plan = np.lib.format.open_memmap(temporary, "w+", np.int64, shape)
            for row, starts in enumerate(deal_pairs(options, part_pairs, sizes)):
                plan[row] = starts
            plan.flush()
            del plan
    return file_chunks


def _write_records(
    options: Options, pool: WorkerPool, work: str, file_chunks: Sequence[range], show: bool
) -> Statistics:
    """Third pass: pairs to records, appended to the output files as chunks are finished."""
    compressed = [path.endswith(".gz") for path in options.output_files]
    total = sum(pairs for _, pairs in read_json(blocks_path(work)))
    statistics = Statistics()
    calls = []
    joined = [_joined_chunks(work, index, chunks) for index, chunks in enumerate(file_chunks)]
    for index, chunks in enumerate(file_chunks):
        for chunk in chunks[: joined[index]]:
            statistics.merge(Statistics.load(statistics_path(work, chunk)))
        calls += [(chunk, compressed[index]) for chunk in chunks[joined[index] :]]
    done = statistics.counts["instances"]
    with Progress("3/3 writing records", total, "record", done, show=show) as progress:
        results = pool.map("write_chunk", calls)
        for index, chunks in enumerate(file_chunks):
            with open(output_part_path(work, index), "ab") as output:
                for chunk in chunks[joined[index] :]:
                    next(results)
                    with open(chunk_path(work, chunk), "rb") as part:
                        shutil.copyfileobj(part, output, 1 << 20)
                    output.flush()
                    os.unlink(chunk_path(work, chunk))
                    of_chunk = Statistics.load(statistics_path(work, chunk))
                    statistics.merge(of_chunk)
                    progress.update(of_chunk.counts["instances"])
    return statistics


def _joined_chunks(work: str, index: int, chunks: range) -> int:
    """Count the chunks that an earlier run appended to an output file; cut off half a one."""
    path = output_part_path(work, index)
    if not os.path.exists(path):
        return 0
    size, end, count = os.path.getsize(path), 0, 0
    for chunk in chunks:
        if not os.path.exists(statistics_path(work, chunk)):
            break
        end_of_chunk = end + Statistics.load(statistics_path(work, chunk)).counts["bytes"]
        if end_of_chunk > size:
            break
        end, count = end_of_chunk, count + 1
    os.truncate(path, end)
    return count
