"""create_pretraining_data on Apache Beam: the local runner's records, byte for byte.

All that is drawn is drawn by the functions and generators of `pretraining_pipeline.py`, in the
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

import atexit
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
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from bert_tf.records.files import gzip_stream, manifest_path, output_base
from bert_tf.tokenization.vocabulary import check_special_tokens, load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus import text_files
from data_prep.pretraining import instances, token_store, units
from data_prep.pretraining.manifest import Statistics, make_manifest
from data_prep.pretraining.options import (
    PAIRS_STAGE,
    RECORDS_STAGE,
    Options,
    fingerprint,
    generator,
    refuses_upper_case,
    warn_about_corpus,
    warn_about_flags,
)
from data_prep.pretraining.stages import (
    block_bounds,
    block_pairs,
    chunk_sizes,
    deal_pairs,
    write_chunk_records,
)
from data_prep.pretraining.work_folder import work_folder
from data_prep.processes.worker_pool import available_cores

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
# several processes; where it is wanted it can be named.
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
    tokenizer = FullTokenizer(options.vocab_file, options.do_lower_case)
    check_special_tokens(tokenizer.vocab, options.vocab_file)
    warn_about_flags(options, tokenizer)
    for path in options.input_files:
        text_files.open_input(path).close()
    arguments = _pipeline_arguments(runner, num_workers, beam_arguments)
    with _work_folder(options) as work:
        job = _Job(options, work)
        manifest = _run(job, arguments, show_progress)
        for path in sorted(set(map(manifest_path, options.output_files))):
            with _written(path) as stream:
                stream.write((json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    return manifest


def _pipeline_arguments(runner: str, num_workers: int, more: Sequence[str]) -> list[str]:
    given = {argument.split("=")[0].lstrip("-") for argument in more}
    if runner != "DirectRunner":
        wanted = [f"--num_workers={num_workers}"] if num_workers else []
        return [f"--runner={runner}", *wanted, *more]
    wanted = []
    num_workers = num_workers or available_cores()
    if num_workers > 1 and not given & {"direct_num_workers", "direct_running_mode"}:
        wanted += ["--direct_running_mode=multi_processing"]
        wanted += [f"--direct_num_workers={num_workers}"]
    if "default_sdk_harness_log_level" not in given:
        wanted.append("--default_sdk_harness_log_level=WARNING")
    return [f"--runner={_DIRECT_RUNNER}", *wanted, *more]


# === Files ===


def _open(path: str) -> BinaryIO:
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _read(path: str) -> bytes:
    with _open(path) as stream:
        return stream.read()


def _read_json(path: str) -> Any:
    return json.loads(_read(path))


@contextlib.contextmanager
def _written(path: str) -> Iterator[BinaryIO]:
    """Yield a stream to a file that appears under its name once it is whole."""
    temporary = f"{path}.tmp-{uuid.uuid4().hex}"
    with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        yield stream
    _rename(temporary, path)


def _rename(source: str, target: str) -> None:
    # Local files are replaced at once; not every other file system renames onto a file.
    if text_files.is_remote(target) and FileSystems.exists(target):
        FileSystems.delete([target])
    FileSystems.rename([source], [target])


def _write_json(path: str, value: Any) -> None:
    with _written(path) as stream:
        stream.write(json.dumps(value).encode())


@contextlib.contextmanager
def _work_folder(options: Options) -> Iterator[str]:
    """As `local.work_folder`, on any file system; without a lock where it has none."""
    first = options.output_files[0]
    if not text_files.is_remote(first):
        with work_folder(options, _LAYOUT) as work:
            yield work
        return
    work = f"{output_base(first)}.work-{fingerprint(options, _LAYOUT)}"
    if not FileSystems.exists(work):
        FileSystems.mkdirs(work)
    try:
        yield work
    except ValueError:
        FileSystems.delete([work + "/"])
        raise
    FileSystems.delete([work + "/"])


_lock = threading.RLock()  # some runners have several threads in a worker
_copies: dict[tuple[str, ...], str] = {}


def _local_folder(folder: str, names: Sequence[str]) -> str:
    """Yield the folder, or where its files are elsewhere, one on this machine with copies."""
    if not text_files.is_remote(folder):
        return folder
    with _lock:
        if (folder, *names) not in _copies:
            copy = tempfile.mkdtemp(prefix="pretraining-data-")
            atexit.register(shutil.rmtree, copy, ignore_errors=True)
            for name in names:
                with _open(f"{folder}/{name}") as source:
                    with open(os.path.join(copy, name), "wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
            _copies[folder, *names] = copy
    return _copies[folder, *names]


@functools.lru_cache(maxsize=1)
def _tokenizer(job: _Job) -> FullTokenizer:
    return FullTokenizer(
        os.path.join(_local_folder(job.work, [_VOCABULARY_NAME]), _VOCABULARY_NAME),
        job.options.do_lower_case,
        max_memo_bytes=units.TOKENIZER_MEMO_BYTES,
    )


@functools.lru_cache(maxsize=1)
def _vocabulary(job: _Job) -> instances.VocabularyTable:
    folder = _local_folder(job.work, [_VOCABULARY_NAME])
    vocab = load_vocab(os.path.join(folder, _VOCABULARY_NAME))
    return instances.VocabularyTable.from_vocab(vocab)


@functools.lru_cache(maxsize=1)
def _index(job: _Job) -> token_store.TokenStore:
    folder = _local_folder(job.work, token_store.OFFSET_FILES)
    return token_store.TokenStore(folder, offsets_only=True)


def _pieces(job: _Job) -> list[tuple[int, int, int]]:
    """File, number and tokens of every piece."""
    return [numbered for numbered in _read_json(job.path("tokens.json")) if numbered[2] != _END]


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
    if FileSystems.exists(lengths_path):
        found = token_store.TokenizedPiece.load(io.BytesIO(_read(lengths_path)))
        return file, piece, int(found.sentence_lengths.sum())
    with _lock:
        tokenizer = _tokenizer(job)
    try:
        refuse = refuses_upper_case(job.options, tokenizer.vocab)
        tokenized = token_store.tokenize_piece(text, tokenizer, refuse)
    except ValueError as error:
        # Runners say in ways of their own that a worker failed; this tells the user why.
        with _written(job.path(_ERROR_NAME)) as stream:
            said = str(error).replace(tokenizer.vocab_file, job.options.vocab_file)
            stream.write(said.encode())
        raise
    with _written(job.path(name)) as stream:
        stream.write(tokenized.tokens.tobytes())
    with _written(lengths_path) as stream:
        buffer = io.BytesIO()
        dataclasses.replace(tokenized, tokens=tokenized.tokens[:0]).write(buffer)
        stream.write(buffer.getvalue())
    return file, piece, tokenized.tokens.size


def _draw_block(block: tuple[int, int, int], job: _Job) -> tuple[int, list[int]]:
    """Write the pairs of a block: its number, first document and end."""
    number, first, end = block
    path = job.path(f"block-{number:06d}.json")
    if not FileSystems.exists(path):
        with _lock:
            index = _index(job)
        rng = generator(job.options, PAIRS_STAGE, number)
        counts: list[int] = []
        for pairs in block_pairs(index, job.options, range(first, end), rng):
            with _written(job.path(_pairs_name(number, len(counts)))) as stream:
                stream.write(pairs.tobytes())
            counts.append(len(pairs))
        _write_json(path, counts)
    return number, _read_json(path)


def _part_and_row(part: tuple[int, str], job: _Job) -> tuple[np.ndarray, np.ndarray]:
    """Return a file of pairs, PAIR_DTYPE [B], and its row of the plan, int64 [chunks + 1]."""
    number, name = part
    pairs = np.frombuffer(_read(job.path(name)), instances.PAIR_DTYPE)
    return pairs, np.frombuffer(_read(job.path(f"plan-{number:06d}")), "<i8")


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
    with _lock:
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
        for number, found in zip(numbers.tolist(), np.split(inside, starts[1:]), strict=True):
            yield number, found.tobytes()
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
    with _lock:
        first, dtype = _bundle_bounds(job)[number], _index(job).tokens.dtype
    data = b"".join(_read(job.path(_tokens_name(file, piece))) for file, piece, _ in pieces)
    tokens = np.frombuffer(data, dtype)
    fragments = np.concatenate([np.frombuffer(part, _FRAGMENT_DTYPE) for part in parts])
    fragments = fragments[np.argsort(fragments["chunk"], kind="stable")]
    chunks, starts = np.unique(fragments["chunk"], return_index=True)
    for chunk, found in zip(chunks.tolist(), np.split(fragments, starts[1:]), strict=True):
        wanted = tokens[_ranges(found["start"] - first, found["length"].astype(np.int64))]
        yield chunk, (_TOKENS, found.tobytes(), wanted.tobytes())


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
            found = np.frombuffer(fragment_data, _FRAGMENT_DTYPE)
            target = begins[2 * before[found["part"]] + found["slot"]] + found["skip"]
            places = _ranges(target, found["length"].astype(np.int64))
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
    if FileSystems.exists(path):
        return file, number
    with _lock:
        dtype, vocabulary = _index(job).tokens.dtype, _vocabulary(job)
    tokens, pairs = _chunk_tokens(received, dtype)
    if len(pairs) != (size := _read_json(job.path("sizes.json"))[number]):
        raise RuntimeError(f"a chunk got {len(pairs)} of its {size} pairs")
    buffer = io.BytesIO()
    with contextlib.ExitStack() as stack:
        stream: Any = buffer
        if job.options.output_files[file].endswith(".gz"):
            stream = stack.enter_context(gzip_stream(buffer))
        statistics = write_chunk_records(
            job.options,
            vocabulary,
            pairs,
            lambda batch: (tokens, batch),
            generator(job.options, RECORDS_STAGE, number),
            stream,
        )
    with _written(f"{path}.npz") as stream:
        found = io.BytesIO()
        statistics.write(found)
        stream.write(found.getvalue())
    with _written(path) as stream:
        stream.write(buffer.getvalue())
    return file, number


def _join_file(
    file: tuple[int, Iterable[int]], job: _Job, file_chunks: Sequence[range]
) -> tuple[int, int]:
    """Join the chunks of an output file; return its number and size in bytes."""
    number, found = file
    chunks = sorted(set(found))
    if chunks != list(file_chunks[number]):
        raise RuntimeError(f"a file got {len(chunks)} of its {len(file_chunks[number])} chunks")
    statistics, size = Statistics(), 0
    path = job.path(f"output-{number:05d}")
    with _written(path) as output:
        for chunk in chunks:
            data = _read(job.path(f"chunk-{chunk:07d}"))
            output.write(data)
            size += len(data)
            found = _read(job.path(f"chunk-{chunk:07d}.npz"))
            statistics.merge(Statistics.load(io.BytesIO(found)))
    with _written(f"{path}.npz") as stream:
        buffer = io.BytesIO()
        statistics.write(buffer)
        stream.write(buffer.getvalue())
    return number, size


def _write_results(results: list[Any], path: str) -> None:
    _write_json(path, sorted(results))


# === Jobs ===


@contextlib.contextmanager
def _failing_with_workers() -> Iterator[None]:
    """End a job of the direct runner when one of its processes is killed; it would wait for ever.

    Raises:
        RuntimeError: a thread of the runner failed, which has one for each process.
    """
    said: list[str] = []
    before = threading.excepthook

    def give_up() -> None:
        # The runner may also wait for ever where it tidies up. All that is whole has its name.
        print(f"create_pretraining_data: a job failed: {said[0]}", file=sys.stderr, flush=True)
        os._exit(1)

    ending = threading.Timer(_TIDYING_SECONDS, give_up)
    ending.daemon = True

    main_thread = threading.main_thread().ident
    assert main_thread is not None  # noqa: S101  (it has started)

    def stop(arguments: Any) -> None:
        if not said:  # once: the workers that are left fail next
            said.append(str(arguments.exc_value) or arguments.exc_type.__name__)
            ending.start()
            # A real signal: the main thread may wait where nothing else wakes it.
            signal.pthread_kill(main_thread, signal.SIGINT)

    threading.excepthook = stop
    try:
        yield
    except KeyboardInterrupt:
        if not said:
            raise
        raise RuntimeError(said[0]) from None
    finally:
        ending.cancel()
        threading.excepthook = before


def _stage(
    job: _Job,
    name: str,
    arguments: Sequence[str],
    show: bool,
    build: Callable[[beam.Pipeline], beam.PCollection],
    num_results: int | None = None,
) -> list[Any]:
    """Run a job, unless an earlier run did, and return its elements in order.

    Raises:
        ValueError: a worker found bad input.
        RuntimeError: the job failed, or lost a result.
    """
    path = job.path(f"{name}.json")
    if not FileSystems.exists(path):
        begin = time.monotonic()
        try:
            with (
                _failing_with_workers(),
                beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline,
            ):
                results = build(pipeline) | "results" >> beam.combiners.ToList()
                _ = results | "write results" >> beam.Map(_write_results, path)
        except Exception as error:  # runners raise what they like
            if FileSystems.exists(job.path(_ERROR_NAME)):
                raise ValueError(_read(job.path(_ERROR_NAME)).decode()) from error
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RuntimeError(f"the job of {name} failed: {lines[-1]}") from error
        if show:
            seconds = time.monotonic() - begin
            print(f"{name}: done in {seconds:.0f} s", file=sys.stderr, flush=True)
    results = _read_json(path)
    if num_results is not None and len(results) != num_results:
        FileSystems.delete([path])
        raise RuntimeError(f"the job of {name} lost {num_results - len(results)} of its results")
    return results


def _write_index(job: _Job, pieces: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    """Make the index of the lengths of sentences; return the store's counts."""
    counts_path = job.path(token_store.OFFSET_FILES[-1])
    if not FileSystems.exists(counts_path):
        with tempfile.TemporaryDirectory() as temporary:
            remote = text_files.is_remote(job.work)
            folder = temporary if remote else job.work
            with token_store.StoreWriter(folder) as writer:
                for file, piece, _ in pieces:
                    data = _read(job.path(f"{_tokens_name(file, piece)}.lengths.npz"))
                    writer.append(token_store.TokenizedPiece.load(io.BytesIO(data)))
            for name in token_store.OFFSET_FILES if remote else ():
                with open(os.path.join(folder, name), "rb") as source:
                    with _written(job.path(name)) as target:
                        shutil.copyfileobj(source, target, 1 << 20)
    counts = _read_json(counts_path)
    del counts["token_dtype"]
    return counts


def _run(job: _Job, arguments: Sequence[str], show: bool) -> dict[str, Any]:
    options = job.options
    finished = job.path("finished.json")
    if not FileSystems.exists(finished):
        manifest = _make_records(job, arguments, show)
        _write_json(finished, manifest)
    for index, path in enumerate(options.output_files):
        part = job.path(f"output-{index:05d}")
        if FileSystems.exists(part):
            _rename(part, path)
    return _read_json(finished)


def _make_records(job: _Job, arguments: Sequence[str], show: bool) -> dict[str, Any]:
    """All jobs, and what lies between them; returns the manifest."""
    options = job.options
    with open(options.vocab_file, "rb") as source, _written(job.path(_VOCABULARY_NAME)) as target:
        shutil.copyfileobj(source, target)
    files = list(enumerate(options.input_files))
    pieces = _stage(
        job,
        "tokens",
        arguments,
        show,
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
    counts = _write_index(job, pieces)
    warn_about_corpus(options, counts)

    bounds = block_bounds(_index(job), options)
    blocks = [(number, first, end) for number, (first, end) in enumerate(bounds)]
    drawn = _stage(
        job,
        "pairs",
        arguments,
        show,
        lambda pipeline: (
            pipeline
            | "blocks" >> beam.Create(blocks)
            | "spread blocks" >> beam.Reshuffle()
            | "draw" >> beam.Map(_draw_block, job)
        ),
        len(blocks),
    )
    parts = [
        (_pairs_name(block, part), pairs)
        for block, of_block in drawn
        for part, pairs in enumerate(of_block)
    ]
    sizes, file_chunks = chunk_sizes(options, sum(pairs for _, pairs in parts))
    _write_json(job.path("sizes.json"), sizes)
    rows = deal_pairs(options, [pairs for _, pairs in parts], sizes)
    for number, row in enumerate(rows):
        with _written(job.path(f"plan-{number:06d}")) as stream:
            stream.write(row.astype("<i8").tobytes())

    numbered = [(number, name) for number, (name, _) in enumerate(parts)]

    joined = _stage(
        job,
        "records",
        arguments,
        show,
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
        found = _read(job.path(f"output-{file:05d}.npz"))
        statistics.merge(Statistics.load(io.BytesIO(found)))
    return make_manifest(options, counts, statistics, [size for _, size in sorted(joined)])
