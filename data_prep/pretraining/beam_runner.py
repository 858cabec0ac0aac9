"""create_pretraining_data on Apache Beam: the local runner's records, byte for byte.

All that is drawn is drawn by the functions and generators of `stages.py`, in the
same blocks and chunks. What differs is how work finds its data, since a cluster's workers share no
memory and may share no disk. Three jobs follow each other, with a work folder beside the output:

1. Tokens: pieces of text become files of ids. Of the lengths of their sentences this process makes
   an index of the corpus, 8 bytes a sentence and a document.
2. Pairs: a worker draws those of a block of documents. It needs the index alone, which it maps from
   its own disk: a random next text is any sentence of any other document of the whole corpus, found
   by its number. Neither text nor tokens are read.
3. Records: pairs are cut into ranges of tokens, each is sent to the bundle of text that holds it,
   and from there its tokens go to the chunk of the output that the plan gives the pair to. A chunk
   is shuffled, masked and encoded, and chunks are joined to output files.

Files appear under their names once they are whole, and the output once all of it is: a job that
fails leaves only its work folder, and the same command continues in it. Paths are of any file
system that Beam knows; the work folder must be one that all workers reach.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from bert_tf.records.files import manifest_path, output_base
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus import text_files
from data_prep.pretraining import beam_files, instances, token_store
from data_prep.pretraining.manifest import Statistics, make_manifest
from data_prep.pretraining.options import (
    Options,
    fingerprint,
    refuses_upper_case,
    warn_about_corpus,
    warn_about_records,
)
from data_prep.pretraining.stages import (
    block_bounds,
    block_pairs,
    chunk_sizes,
    deal_pairs,
    open_tokenizer,
    worker_tokenizer,
    write_chunk_records,
)
from data_prep.pretraining.work_folder import work_folder
from data_prep.processes.worker_pool import available_cores

_Saved = TypeVar("_Saved", Statistics, token_store.TokenizedPiece)

PIECE_BYTES = 1 << 23  # larger than the local runner's: on object stores each file costs time
BUNDLE_PIECES = 8  # whose tokens are in memory at once

# A range of tokens on its way to its chunk. `slot` is twice the pair's place in its part's share of
# the chunk, plus 1 for text B; `skip` are the tokens of the text that come before.
_FRAGMENT_DTYPE = np.dtype(
    [
        ("start", "<i8"),
        ("chunk", "<u4"),
        ("part", "<u4"),
        ("slot", "<u4"),
        ("skip", "<u4"),
        ("length", "<u4"),
    ]
)
_END = -1  # in place of the tokens of a piece: the file has so many pieces
_TOKENS = -1  # in place of a part's number: what follows are fragments and their tokens
_LAYOUT = "beam 1"
_TIDYING_SECONDS = 20  # that a runner has whose process was killed
_ERROR_NAME, _VOCABULARY_NAME = "error.txt", "vocab.txt"
# What DirectRunner is, once it has tried to download another runner, Prism. That does not know
# several processes; --runner=PrismRunner asks for it.
_DIRECT_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class _Job:
    """What every worker is told.

    Attributes:
        options: what is made from what.
        work: the work folder.
    """

    options: Options
    work: str

    def path(self, name: str) -> str:
        """Path of a file in the work folder."""
        return f"{self.work}/{name}"


def create_pretraining_data(
    options: Options,
    runner: str,
    num_workers: int = 0,
    beam_arguments: Sequence[str] = (),
    show_progress: bool = True,
) -> dict[str, Any]:
    """Write pre-training records and their manifest, on a runner of Apache Beam.

    Args:
        options: what is made from what; paths of text and records of any file system Beam knows.
        runner: its name, such as DirectRunner or DataflowRunner.
        num_workers: workers; 0 for the runner's default, one per core where it is DirectRunner.
        beam_arguments: options of Beam and its runner, each "--name=value".
        show_progress: report on standard error.

    Returns:
        The manifest, which is also written to `records.manifest_path` of the output files.

    Raises:
        ValueError: bad input, naming file and line; nothing is left behind.
        OSError: a file cannot be read or written.
        RuntimeError: a job failed, or another run is at work on the same output.
    """
    if options.compatible:
        raise ValueError("compatible: the original's records are made in one process; drop runner")
    schemes = {path.rpartition("://")[0] for path in options.output_files}
    if len(schemes) > 1:
        raise ValueError(
            f"output_file: expected files on one file system with runner, got "
            f"{', '.join(options.output_files)}"
        )
    open_tokenizer(options)
    arguments = _pipeline_arguments(runner, num_workers, beam_arguments)
    with _work_folder(options) as work:
        manifest = _run(_Runner(_Job(options, work), arguments, show_progress))
        for path in sorted(set(map(manifest_path, options.output_files))):
            with beam_files.write_whole(path) as stream:
                stream.write((json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    warn_about_records(options, manifest["counts"])
    return manifest


def _pipeline_arguments(runner: str, num_workers: int, more: Sequence[str]) -> list[str]:
    names = {argument.split("=")[0].lstrip("-") for argument in more}
    if runner != "DirectRunner":
        workers = [f"--num_workers={num_workers}"] if num_workers else []
        return [f"--runner={runner}", *workers, *more]
    defaults = []
    num_workers = num_workers or available_cores()
    if num_workers > 1 and not names & {"direct_num_workers", "direct_running_mode"}:
        defaults += ["--direct_running_mode=multi_processing"]
        defaults += [f"--direct_num_workers={num_workers}"]
    if "default_sdk_harness_log_level" not in names:
        defaults.append("--default_sdk_harness_log_level=WARNING")
    return [f"--runner={_DIRECT_RUNNER}", *defaults, *more]


@contextlib.contextmanager
def _work_folder(options: Options) -> Iterator[str]:
    """Give the work folder, on any file system; without a lock where that has none."""
    first = options.output_files[0]
    if not text_files.is_remote(first):
        with work_folder(options, _LAYOUT) as work:
            yield work
        return
    work = f"{output_base(first)}.work-{fingerprint(options, _LAYOUT)}"
    if not beam_files.exists(work):
        FileSystems.mkdirs(work)
    try:
        yield work
    except ValueError:
        FileSystems.delete([work + "/"])
        raise
    FileSystems.delete([work + "/"])


def _vocab_file(job: _Job) -> str:
    return os.path.join(beam_files.local_folder(job.work, [_VOCABULARY_NAME]), _VOCABULARY_NAME)


@functools.lru_cache(maxsize=1)
def _tokenizer(job: _Job) -> FullTokenizer:
    return worker_tokenizer(job.options, _vocab_file(job))


@functools.lru_cache(maxsize=1)
def _vocabulary(job: _Job) -> instances.VocabularyTable:
    return instances.VocabularyTable.from_vocab(load_vocab(_vocab_file(job)))


@functools.lru_cache(maxsize=1)
def _index(job: _Job) -> token_store.TokenStore:
    folder = beam_files.local_folder(job.work, token_store.OFFSET_FILES)
    return token_store.TokenStore(folder, offsets_only=True)


def _pieces(job: _Job) -> list[tuple[int, int, int]]:
    """Return file, number and tokens of every piece."""
    numbered = beam_files.read_json(job.path("tokens.json"))
    return [(file, piece, tokens) for file, piece, tokens in numbered if tokens != _END]


@functools.lru_cache(maxsize=1)
def _bundle_bounds(job: _Job) -> np.ndarray:
    """int64 [bundles + 1], tokens of the corpus before each bundle."""
    sizes = [tokens for _, _, tokens in _pieces(job)]
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return np.append(ends[:-1:BUNDLE_PIECES], ends[-1])


def _tokens_name(file: int, piece: int) -> str:
    return f"tokens-{file:06d}-{piece:07d}"


def _pairs_name(block: int, part: int) -> str:
    return f"pairs-{block:06d}-{part:04d}"


def _save(path: str, content: Statistics | token_store.TokenizedPiece) -> None:
    buffer = io.BytesIO()
    content.write(buffer)
    with beam_files.write_whole(path) as stream:
        stream.write(buffer.getvalue())


def _load(path: str, kind: type[_Saved]) -> _Saved:
    return kind.load(io.BytesIO(beam_files.read(path)))


# === Steps of one worker ===


def _file_pieces(
    file: tuple[int, str], piece_bytes: int
) -> Iterator[tuple[int, int, text_files.TextPiece | None]]:
    """Cut an input file: its number, and each piece's; at the end how many there are, and None."""
    number, path = file
    piece = -1
    for piece, text in enumerate(text_files.text_pieces([path], piece_bytes)):
        yield number, piece, text
    yield number, piece + 1, None


def _tokenize_piece(
    numbered: tuple[int, int, text_files.TextPiece | None], job: _Job
) -> tuple[int, int, int]:
    """Write a piece's tokens, and then the lengths of its sentences; return how many tokens."""
    file, piece, text = numbered
    if text is None:
        return file, piece, _END
    name = _tokens_name(file, piece)
    lengths_path = job.path(f"{name}.lengths.npz")
    if beam_files.exists(lengths_path):
        lengths = _load(lengths_path, token_store.TokenizedPiece).sentence_lengths
        return file, piece, int(lengths.sum())
    with beam_files.lock:
        tokenizer = _tokenizer(job)
    try:
        refuse = refuses_upper_case(job.options, tokenizer.vocab)
        tokenized = token_store.tokenize_piece(text, tokenizer, refuse)
    except ValueError as error:
        # Runners say in ways of their own that a worker failed; this tells the user why.
        with beam_files.write_whole(job.path(_ERROR_NAME)) as stream:
            message = str(error).replace(tokenizer.vocab_file, job.options.vocab_file)
            stream.write(message.encode())
        raise
    with beam_files.write_whole(job.path(name)) as stream:
        stream.write(tokenized.tokens.tobytes())
    _save(lengths_path, dataclasses.replace(tokenized, tokens=tokenized.tokens[:0]))
    return file, piece, tokenized.tokens.size


def _draw_block(block: tuple[int, int, int], job: _Job) -> tuple[int, list[int]]:
    """Write the pairs of a block: its number, first document and end."""
    number, first, end = block
    path = job.path(f"block-{number:06d}.json")
    if not beam_files.exists(path):
        with beam_files.lock:
            index = _index(job)
        counts: list[int] = []
        for pairs in block_pairs(index, job.options, number, range(first, end)):
            with beam_files.write_whole(job.path(_pairs_name(number, len(counts)))) as stream:
                stream.write(pairs.tobytes())
            counts.append(len(pairs))
        beam_files.write_json(path, counts)
    return number, beam_files.read_json(path)


def _part_and_row(part: tuple[int, str], job: _Job) -> tuple[np.ndarray, np.ndarray]:
    """Return a file of pairs, PAIR_DTYPE [B], and its row of the plan, int64 [chunks + 1]."""
    number, name = part
    pairs = np.frombuffer(beam_files.read(job.path(name)), instances.PAIR_DTYPE)
    return pairs, np.frombuffer(beam_files.read(job.path(f"plan-{number:06d}")), "<i8")


def _part_shares(
    part: tuple[int, str], job: _Job
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
    """Send each chunk its share of the pairs of a part."""
    pairs, row = _part_and_row(part, job)
    for chunk in np.flatnonzero(np.diff(row)).tolist():
        yield chunk, (part[0], pairs[row[chunk] : row[chunk + 1]].tobytes(), b"")


def _send(
    bundle: tuple[int, Iterable[bytes]], job: _Job, parts: Sequence[tuple[int, str]]
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
    """Send each chunk what it needs of a bundle, or of the part that a negative number is for."""
    number, received = bundle
    if number < 0:
        return _part_shares(parts[-1 - number], job)
    return _fetch(number, received, job)


def _part_fragments(part: tuple[int, str], job: _Job) -> Iterator[tuple[int, bytes]]:
    """Send each bundle of text the ranges of its tokens that the pairs of a part need.

    The part's own number, as -1 - part, is sent with nothing, and goes the same way. It could go
    to the chunks at once, but Beam's direct runner (2.77) has lost tokens of chunks to which two
    collections were flattened.
    """
    yield -1 - part[0], b""
    pairs, row = _part_and_row(part, job)
    with beam_files.lock:
        bounds = _bundle_bounds(job)
    share = np.diff(row)
    chunk = np.repeat(np.arange(share.size), share)
    place = np.arange(len(pairs)) - row[chunk]
    fragments = np.zeros(2 * len(pairs), _FRAGMENT_DTYPE)
    fragments["part"] = part[0]
    for half, side in enumerate("ab"):
        fragments["chunk"][half::2] = chunk
        fragments["slot"][half::2] = 2 * place + half
        fragments["start"][half::2] = pairs[f"{side}_start"]
        fragments["length"][half::2] = pairs[f"{side}_length"]
    while fragments.size:
        bundle = np.searchsorted(bounds, fragments["start"], side="right") - 1
        here = np.minimum(fragments["length"], bounds[bundle + 1] - fragments["start"])
        order = np.argsort(bundle, kind="stable")
        inside = fragments[order]
        inside["length"] = here[order]
        numbers, starts = np.unique(bundle[order], return_index=True)
        for number, ranges in zip(numbers.tolist(), np.split(inside, starts[1:]), strict=True):
            yield number, ranges.tobytes()
        rest = fragments["length"] > here  # a text that goes on in the next bundle
        fragments, here = fragments[rest], here[rest]
        fragments["start"] += here
        fragments["skip"] += here.astype(np.uint32)
        fragments["length"] -= here.astype(np.uint32)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices of ranges one after another, int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def _fetch(
    number: int, parts: Iterable[bytes], job: _Job
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
    """Send each chunk the tokens that it needs of a bundle."""
    pieces = _pieces(job)
    pieces = pieces[number * BUNDLE_PIECES : (number + 1) * BUNDLE_PIECES]
    with beam_files.lock:
        first, dtype = _bundle_bounds(job)[number], _index(job).tokens.dtype
    paths = [job.path(_tokens_name(file, piece)) for file, piece, _ in pieces]
    data = b"".join(map(beam_files.read, paths))
    tokens = np.frombuffer(data, dtype)
    fragments = np.concatenate([np.frombuffer(part, _FRAGMENT_DTYPE) for part in parts])
    fragments = fragments[np.argsort(fragments["chunk"], kind="stable")]
    chunks, starts = np.unique(fragments["chunk"], return_index=True)
    for chunk, ranges in zip(chunks.tolist(), np.split(fragments, starts[1:]), strict=True):
        places = _ranges(ranges["start"] - first, ranges["length"].astype(np.int64))
        yield chunk, (_TOKENS, ranges.tobytes(), tokens[places].tobytes())


def _chunk_tokens(
    received: Iterable[tuple[int, bytes, bytes]], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Put together what a chunk was sent.

    Returns:
        Tokens, and PAIR_DTYPE [B] with starts in them, in the order of the plan.
    """
    received = list(received)
    shares = sorted((part, data) for part, data, _ in received if part != _TOKENS)
    if not shares:
        raise RuntimeError("a chunk got 0 of its pairs")
    parts = [np.frombuffer(data, instances.PAIR_DTYPE) for _, data in shares]
    pairs = np.concatenate(parts)
    before = np.zeros(shares[-1][0] + 1, np.int64)  # pairs of earlier parts
    before[[part for part, _ in shares]] = np.cumsum([0, *map(len, parts)])[:-1]
    lengths = np.stack([pairs["a_length"], pairs["b_length"]], axis=1).ravel().astype(np.int64)
    ends = np.cumsum(lengths)
    begins = ends - lengths
    tokens = np.empty(int(ends[-1]), dtype)
    filled = 0
    for part, fragment_data, token_data in received:
        if part == _TOKENS:
            ranges = np.frombuffer(fragment_data, _FRAGMENT_DTYPE)
            target = begins[2 * before[ranges["part"]] + ranges["slot"]] + ranges["skip"]
            places = _ranges(target, ranges["length"].astype(np.int64))
            tokens[places] = np.frombuffer(token_data, dtype)
            filled += places.size
    if filled != tokens.size:
        raise RuntimeError(f"a chunk got {filled} of its {tokens.size} tokens")
    pairs["a_start"], pairs["b_start"] = begins[0::2], begins[1::2]
    return tokens, pairs


def _write_chunk(
    chunk: tuple[int, Iterable[tuple[int, bytes, bytes]]], job: _Job, file_chunks: Sequence[range]
) -> tuple[int, int]:
    """Write the records of a chunk; return the number of its output file, and its own."""
    number, received = chunk
    file = next(file for file, chunks in enumerate(file_chunks) if number in chunks)
    path = job.path(f"chunk-{number:07d}")
    if beam_files.exists(path):
        return file, number
    with beam_files.lock:
        index, vocabulary = _index(job), _vocabulary(job)
    received = list(received)
    tokens, pairs = _chunk_tokens(received, index.tokens.dtype)
    if len(pairs) != (size := beam_files.read_json(job.path("sizes.json"))[number]):
        raise RuntimeError(f"a chunk got {len(pairs)} of its {size} pairs")
    buffer = io.BytesIO()
    statistics = write_chunk_records(
        job.options,
        vocabulary,
        pairs,
        lambda batch: (tokens, batch),
        number,
        buffer,
        job.options.output_files[file].endswith(".gz"),
    )
    shares = b"".join(data for part, data, _ in received if part != _TOKENS)
    statistics.hold(np.frombuffer(shares, instances.PAIR_DTYPE), index.counts["tokens"])
    _save(f"{path}.npz", statistics)
    with beam_files.write_whole(path) as stream:
        stream.write(buffer.getvalue())
    return file, number


def _join_file(
    file: tuple[int, Iterable[int]], job: _Job, file_chunks: Sequence[range]
) -> tuple[int, int]:
    """Join the chunks of an output file; return its number and size in bytes."""
    number, received = file
    chunks = sorted(set(received))
    if chunks != list(file_chunks[number]):
        raise RuntimeError(f"a file got {len(chunks)} of its {len(file_chunks[number])} chunks")
    statistics, size = Statistics(), 0
    path = job.path(f"output-{number:05d}")
    with beam_files.write_whole(path) as output:
        for chunk in chunks:
            data = beam_files.read(job.path(f"chunk-{chunk:07d}"))
            output.write(data)
            size += len(data)
            statistics.merge(_load(job.path(f"chunk-{chunk:07d}.npz"), Statistics))
    _save(f"{path}.npz", statistics)
    return number, size


def _write_results(results: list[Any], path: str) -> None:
    beam_files.write_json(path, sorted(results))


# === Jobs ===


@contextlib.contextmanager
def _failing_with_workers() -> Iterator[None]:
    """End a job of the direct runner when one of its processes is killed; it would wait for ever.

    Raises:
        RuntimeError: a thread of the runner failed, which has one for each process.
    """
    messages: list[str] = []
    before = threading.excepthook

    def give_up() -> None:
        # The runner may also wait for ever where it tidies up. All that is whole has its name.
        print(f"create_pretraining_data: a job failed: {messages[0]}", file=sys.stderr, flush=True)
        os._exit(1)

    ending = threading.Timer(_TIDYING_SECONDS, give_up)
    ending.daemon = True

    main_thread = threading.main_thread().ident
    assert main_thread is not None  # noqa: S101  (it has started)

    def stop(arguments: threading.ExceptHookArgs) -> None:
        if not messages:  # once: the workers that are left fail next
            messages.append(str(arguments.exc_value) or arguments.exc_type.__name__)
            ending.start()
            # A real signal: the main thread may wait where nothing else wakes it.
            signal.pthread_kill(main_thread, signal.SIGINT)

    threading.excepthook = stop
    try:
        yield
    except KeyboardInterrupt:
        if not messages:
            raise
        raise RuntimeError(messages[0]) from None
    finally:
        ending.cancel()
        threading.excepthook = before


@dataclasses.dataclass(frozen=True)
class _Runner:
    """Runs jobs on a runner of Beam.

    Attributes:
        job: what every worker is told.
        arguments: of Beam and its runner.
        show: report on standard error.
    """

    job: _Job
    arguments: Sequence[str]
    show: bool

    def run(
        self,
        name: str,
        build: Callable[[beam.Pipeline], beam.PCollection],
        num_results: int | None = None,
    ) -> list[Any]:
        """Run a job, unless an earlier run did, and return its elements in order.

        Raises:
            ValueError: a worker found bad input.
            RuntimeError: the job failed, or lost a result.
        """
        path = self.job.path(f"{name}.json")
        if not beam_files.exists(path):
            begin = time.monotonic()
            options = PipelineOptions(list(self.arguments))
            try:
                with _failing_with_workers(), beam.Pipeline(options=options) as pipeline:
                    results = build(pipeline) | "results" >> beam.combiners.ToList()
                    _ = results | "write results" >> beam.Map(_write_results, path)
            except Exception as error:  # runners raise what they like
                if beam_files.exists(self.job.path(_ERROR_NAME)):
                    message = beam_files.read(self.job.path(_ERROR_NAME)).decode()
                    raise ValueError(message) from error
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise RuntimeError(f"the job of {name} failed: {lines[-1]}") from error
            if self.show:
                seconds = time.monotonic() - begin
                print(f"{name}: done in {seconds:.0f} s", file=sys.stderr, flush=True)
        results = beam_files.read_json(path)
        if num_results is not None and len(results) != num_results:
            FileSystems.delete([path])
            lost = num_results - len(results)
            raise RuntimeError(f"the job of {name} lost {lost} of its results")
        return results


def _write_index(job: _Job, pieces: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    """Make the index of the lengths of sentences; return the store's counts."""
    counts_path = job.path(token_store.OFFSET_FILES[-1])
    if not beam_files.exists(counts_path):
        with tempfile.TemporaryDirectory() as temporary:
            remote = text_files.is_remote(job.work)
            folder = temporary if remote else job.work
            with token_store.StoreWriter(folder) as writer:
                for file, piece, _ in pieces:
                    path = job.path(f"{_tokens_name(file, piece)}.lengths.npz")
                    writer.append(_load(path, token_store.TokenizedPiece))
            for name in token_store.OFFSET_FILES if remote else ():
                with open(os.path.join(folder, name), "rb") as source:
                    with beam_files.write_whole(job.path(name)) as target:
                        shutil.copyfileobj(source, target, 1 << 20)
    counts = beam_files.read_json(counts_path)
    del counts["token_dtype"]
    return counts


def _run(runner: _Runner) -> dict[str, Any]:
    """Run all jobs, each unless an earlier run did; return the manifest."""
    job = runner.job
    finished = job.path("finished.json")
    if not beam_files.exists(finished):
        with text_files.open_input(job.options.vocab_file) as source:
            vocabulary = source.read()
        with beam_files.write_whole(job.path(_VOCABULARY_NAME)) as stream:
            stream.write(vocabulary)
        counts = _tokenize(runner)
        warn_about_corpus(job.options, counts)
        parts = _draw_pairs(runner)
        file_chunks = _plan(job, [pairs for _, pairs in parts])
        statistics, sizes = _write_records(runner, [name for name, _ in parts], file_chunks)
        beam_files.write_json(finished, make_manifest(job.options, counts, statistics, sizes))
    for index, path in enumerate(job.options.output_files):
        part = job.path(f"output-{index:05d}")
        if beam_files.exists(part):
            beam_files.rename(part, path)
    return beam_files.read_json(finished)


def _tokenize(runner: _Runner) -> dict[str, int]:
    """First job: text to files of tokens, and the index; returns the store's counts."""
    job = runner.job
    files = list(enumerate(job.options.input_files))
    pieces = runner.run(
        "tokens",
        lambda pipeline: (
            pipeline
            | "files" >> beam.Create(files)
            | "spread files" >> beam.Reshuffle()
            | "pieces" >> beam.FlatMap(_file_pieces, PIECE_BYTES)
            | "spread pieces" >> beam.Reshuffle()
            | "tokenize" >> beam.Map(_tokenize_piece, job)
        ),
    )
    ends = {file: piece for file, piece, tokens in pieces if tokens == _END}
    pieces = [numbered for numbered in pieces if numbered[2] != _END]
    if [(file, piece) for file, piece, _ in pieces] != [
        (file, piece) for file, _ in files for piece in range(ends.get(file, 1))
    ]:
        FileSystems.delete([job.path("tokens.json")])
        raise RuntimeError("the job of tokens lost some of its results")
    return _write_index(job, pieces)


def _draw_pairs(runner: _Runner) -> list[tuple[str, int]]:
    """Second job: documents to files of pairs; returns their names, and the pairs in each."""
    job = runner.job
    bounds = block_bounds(_index(job), job.options)
    blocks = [(number, first, end) for number, (first, end) in enumerate(bounds)]
    block_parts = runner.run(
        "pairs",
        lambda pipeline: (
            pipeline
            | "blocks" >> beam.Create(blocks)
            | "spread blocks" >> beam.Reshuffle()
            | "draw" >> beam.Map(_draw_block, job)
        ),
        len(blocks),
    )
    return [
        (_pairs_name(block, part), pairs)
        for block, part_pairs in block_parts
        for part, pairs in enumerate(part_pairs)
    ]


def _plan(job: _Job, part_pairs: Sequence[int]) -> list[range]:
    """Write the plan, a file for each file of pairs; return the chunks of each output file."""
    sizes, file_chunks = chunk_sizes(job.options, sum(part_pairs))
    beam_files.write_json(job.path("sizes.json"), sizes)
    for number, row in enumerate(deal_pairs(job.options, part_pairs, sizes)):
        with beam_files.write_whole(job.path(f"plan-{number:06d}")) as stream:
            stream.write(row.astype("<i8").tobytes())
    return file_chunks


def _write_records(
    runner: _Runner, parts: Sequence[str], file_chunks: Sequence[range]
) -> tuple[Statistics, list[int]]:
    """Third job: pairs to output files; returns the counts, and the bytes of each file."""
    job = runner.job
    numbered = list(enumerate(parts))
    joined = runner.run(
        "records",
        lambda pipeline: (
            pipeline
            | "parts" >> beam.Create(numbered)
            | "spread parts" >> beam.Reshuffle()
            | "ranges" >> beam.FlatMap(_part_fragments, job)
            | "to bundles" >> beam.GroupByKey()
            | "send" >> beam.FlatMap(_send, job, numbered)
            | "to chunks" >> beam.GroupByKey()
            | "records" >> beam.Map(_write_chunk, job, file_chunks)
            | "to outputs" >> beam.GroupByKey()
            | "join" >> beam.Map(_join_file, job, file_chunks)
        ),
        sum(map(bool, file_chunks)),
    )
    for file, chunks in enumerate(file_chunks):
        if not chunks:  # there are more files than records
            joined.append(list(_join_file((file, ()), job, file_chunks)))
    statistics = Statistics()
    for file, _ in joined:
        statistics.merge(_load(job.path(f"output-{file:05d}.npz"), Statistics))
    return statistics, [size for _, size in sorted(joined)]
