"""What a worker of a cluster does, on any runner: the local runner's records, byte for byte.

All that is drawn is drawn by the functions and generators of `stages.py`, in the same blocks and
chunks. What differs is how work finds its data, since a cluster's workers share no memory and may
share no disk; `cluster_jobs.py` says in which order the steps follow each other.
"""

import dataclasses
import functools
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.cluster import files, jobs
from data_prep.corpus import text_files
from data_prep.pretraining import instances, token_store
from data_prep.pretraining.listed_words import WordMarker
from data_prep.pretraining.manifest import Statistics
from data_prep.pretraining.options import Options, refuses_upper_case
from data_prep.pretraining.stages import (
    block_pairs,
    word_marker,
    worker_tokenizer,
    write_chunk_records,
)

_Saved = TypeVar("_Saved", Statistics, token_store.TokenizedPiece)

BUNDLE_PIECES = 8  # whose tokens are in memory at once
END = -1  # in place of the tokens of a piece: the group of files has so many pieces

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
_TOKENS = -1  # in place of a part's number: what follows are fragments and their tokens
VOCABULARY_NAME, WORD_LIST_NAME = "vocab.txt", "word_list.txt"


@dataclasses.dataclass(frozen=True)
class Job(jobs.Job):
    """What every worker is told.

    Attributes:
        options: what is made from what.
    """

    options: Options

    def save(self, name: str, content: Statistics | token_store.TokenizedPiece) -> None:
        """Write a file of the work folder, whole or not at all."""
        buffer = io.BytesIO()
        content.write(buffer)
        with self.files.write_whole(self.path(name)) as stream:
            stream.write(buffer.getvalue())

    def load(self, name: str, kind: type[_Saved]) -> _Saved:
        """Read what `save` wrote."""
        return kind.load(io.BytesIO(self.files.read(self.path(name))))


def _vocab_file(job: Job) -> str:
    return os.path.join(job.files.local_folder(job.work, [VOCABULARY_NAME]), VOCABULARY_NAME)


@functools.lru_cache(maxsize=1)
def _tokenizer(job: Job) -> FullTokenizer:
    return worker_tokenizer(job.options, _vocab_file(job))


@functools.lru_cache(maxsize=1)
def _marker(job: Job) -> WordMarker | None:
    if job.options.word_list is None:
        return None
    folder = job.files.local_folder(job.work, [WORD_LIST_NAME])
    return word_marker(job.options, _tokenizer(job), os.path.join(folder, WORD_LIST_NAME))


@functools.lru_cache(maxsize=1)
def _vocabulary(job: Job) -> instances.VocabularyTable:
    has_marks = job.options.word_list is not None
    return instances.VocabularyTable.from_vocab(load_vocab(_vocab_file(job)), has_marks)


@functools.lru_cache(maxsize=1)
def index_of(job: Job) -> token_store.TokenStore:
    """Return the index of the corpus, on this machine."""
    folder = job.files.local_folder(job.work, token_store.OFFSET_FILES)
    return token_store.TokenStore(folder, offsets_only=True)


def pieces_of(job: Job) -> list[tuple[int, int, int]]:
    """Return group of files, number and tokens of every piece."""
    numbered = job.files.read_json(job.path("tokens.json"))
    return [(group, piece, tokens) for group, piece, tokens in numbered if tokens != END]


@functools.lru_cache(maxsize=1)
def _bundle_bounds(job: Job) -> np.ndarray:
    """int64 [bundles + 1], tokens of the corpus before each bundle."""
    sizes = [tokens for _, _, tokens in pieces_of(job)]
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return np.append(ends[:-1:BUNDLE_PIECES], ends[-1])


def tokens_name(group: int, piece: int) -> str:
    """Return the name of the tokens of a piece of a group of files."""
    return f"tokens-{group:06d}-{piece:07d}"


def pairs_name(block: int, part: int) -> str:
    """Return the name of a file of pairs."""
    return f"pairs-{block:06d}-{part:04d}"


# === Steps of one worker ===


def file_pieces(
    group: tuple[int, Sequence[str]], piece_bytes: int, job: Job
) -> Iterator[tuple[int, int, list[text_files.TextPiece] | None]]:
    """Cut input files, one large or some small: the group's number, each piece's, and its text.

    At the end comes how many there are, and None.
    """
    number, paths = group
    piece, size = 0, 0
    texts: list[text_files.TextPiece] = []
    with job.telling():
        for text in text_files.text_pieces(paths, piece_bytes):
            text_bytes = text.file_bytes if text.data is None else len(text.data)
            if texts and size + text_bytes > piece_bytes:
                yield number, piece, texts
                piece, texts, size = piece + 1, [], 0
            texts.append(text)
            size += text_bytes
    if texts:
        yield number, piece, texts
    yield number, piece + bool(texts), None


def tokenize_piece(
    numbered: tuple[int, int, list[text_files.TextPiece] | None], job: Job
) -> tuple[int, int, int]:
    """Write a piece's tokens, and then the lengths of its sentences; return how many tokens."""
    group, piece, texts = numbered
    if texts is None:
        return group, piece, END
    name = tokens_name(group, piece)
    lengths_name = f"{name}.lengths.npz"
    if job.files.exists(job.path(lengths_name)):
        lengths = job.load(lengths_name, token_store.TokenizedPiece).sentence_lengths
        return group, piece, int(lengths.sum())
    with files.lock:
        tokenizer, marker = _tokenizer(job), _marker(job)
    with job.telling(tokenizer.vocab_file, job.options.vocab_file):
        refuse = refuses_upper_case(job.options, tokenizer.vocab)
        tokenized = token_store.TokenizedPiece.joined(
            [token_store.tokenize_piece(text, tokenizer, refuse, marker) for text in texts]
        )
    with job.files.write_whole(job.path(name)) as stream:
        stream.write(tokenized.tokens.tobytes())
    job.save(lengths_name, dataclasses.replace(tokenized, tokens=tokenized.tokens[:0]))
    return group, piece, tokenized.tokens.size


def draw_block(block: tuple[int, int, int], job: Job) -> tuple[int, list[int]]:
    """Write the pairs of a block: its number, first document and end."""
    number, first, end = block
    path = job.path(f"block-{number:06d}.json")
    if not job.files.exists(path):
        with files.lock:
            index = index_of(job)
        counts: list[int] = []
        for pairs in block_pairs(index, job.options, number, range(first, end)):
            with job.files.write_whole(job.path(pairs_name(number, len(counts)))) as stream:
                stream.write(pairs.tobytes())
            counts.append(len(pairs))
        job.files.write_json(path, counts)
    return number, job.files.read_json(path)


def _part_and_row(part: tuple[int, str], job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Return a file of pairs, PAIR_DTYPE [B], and its row of the plan, int64 [chunks + 1]."""
    number, name = part
    pairs = np.frombuffer(job.files.read(job.path(name)), instances.PAIR_DTYPE)
    return pairs, np.frombuffer(job.files.read(job.path(f"plan-{number:06d}")), "<i8")


def _part_shares(part: tuple[int, str], job: Job) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
    """Send each chunk its share of the pairs of a part."""
    pairs, row = _part_and_row(part, job)
    for chunk in np.flatnonzero(np.diff(row)).tolist():
        yield chunk, (part[0], pairs[row[chunk] : row[chunk + 1]].tobytes(), b"")


def send(
    bundle: tuple[int, Iterable[bytes]], job: Job, parts: Sequence[tuple[int, str]]
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
    """Send each chunk what it needs of a bundle, or of the part that a negative number is for."""
    number, received = bundle
    if number < 0:
        return _part_shares(parts[-1 - number], job)
    return _fetch(number, received, job)


def part_fragments(part: tuple[int, str], job: Job) -> Iterator[tuple[int, bytes]]:
    """Send each bundle of text the ranges of its tokens that the pairs of a part need.

    The part's own number, as -1 - part, is sent with nothing, and goes the same way. It could go
    to the chunks at once, but Beam's direct runner (2.77) has lost tokens of chunks to which two
    collections were flattened.
    """
    yield -1 - part[0], b""
    pairs, row = _part_and_row(part, job)
    with files.lock:
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
    number: int, parts: Iterable[bytes], job: Job
) -> Iterator[tuple[int, tuple[int, bytes, bytes]]]:
    """Send each chunk the tokens that it needs of a bundle."""
    pieces = pieces_of(job)
    pieces = pieces[number * BUNDLE_PIECES : (number + 1) * BUNDLE_PIECES]
    with files.lock:
        first, dtype = _bundle_bounds(job)[number], index_of(job).tokens.dtype
    paths = [job.path(tokens_name(group, piece)) for group, piece, _ in pieces]
    data = b"".join(map(job.files.read, paths))
    tokens = np.frombuffer(data, dtype)
    fragments = np.concatenate([np.frombuffer(part, _FRAGMENT_DTYPE) for part in parts])
    fragments = fragments[np.argsort(fragments["chunk"], kind="stable")]
    chunks, starts = np.unique(fragments["chunk"], return_index=True)
    for chunk, ranges in zip(chunks.tolist(), np.split(fragments, starts[1:]), strict=True):
        places = _ranges(ranges["start"] - first, ranges["length"].astype(np.int64))
        yield chunk, (_TOKENS, ranges.tobytes(), tokens[places].tobytes())


def _chunk_tokens(
    received: Sequence[tuple[int, bytes, bytes]], size: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Put together what a chunk was sent.

    Returns:
        Tokens, and PAIR_DTYPE [B] with starts in them, in the order of the plan.

    Raises:
        RuntimeError: it is less than the plan says, `size` pairs.
    """
    shares = sorted((part, data) for part, data, _ in received if part != _TOKENS)
    parts = [np.frombuffer(data, instances.PAIR_DTYPE) for _, data in shares]
    if (got := sum(map(len, parts))) != size:  # first: tokens are put in place by the pairs
        raise RuntimeError(f"a chunk got {got} of its {size} pairs")
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


def write_chunk(
    chunk: tuple[int, Iterable[tuple[int, bytes, bytes]]], job: Job, file_chunks: Sequence[range]
) -> tuple[int, int]:
    """Write the records of a chunk; return the number of its output file, and its own."""
    number, received = chunk
    file = next(file for file, chunks in enumerate(file_chunks) if number in chunks)
    path = job.path(f"chunk-{number:07d}")
    if job.files.exists(path):
        return file, number
    with files.lock:
        index, vocabulary = index_of(job), _vocabulary(job)
    received = list(received)
    size = job.files.read_json(job.path("sizes.json"))[number]
    tokens, pairs = _chunk_tokens(received, size, index.tokens.dtype)
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
    job.save(f"chunk-{number:07d}.npz", statistics)
    with job.files.write_whole(path) as stream:
        stream.write(buffer.getvalue())
    return file, number


def join_file(
    file: tuple[int, Iterable[int]], job: Job, file_chunks: Sequence[range]
) -> tuple[int, int]:
    """Join the chunks of an output file; return its number and size in bytes."""
    number, received = file
    chunks = sorted(set(received))
    if chunks != list(file_chunks[number]):
        raise RuntimeError(f"a file got {len(chunks)} of its {len(file_chunks[number])} chunks")
    statistics, size = Statistics(), 0
    path = job.path(f"output-{number:05d}")
    with job.files.write_whole(path) as output:
        for chunk in chunks:
            data = job.files.read(job.path(f"chunk-{chunk:07d}"))
            output.write(data)
            size += len(data)
            statistics.merge(job.load(f"chunk-{chunk:07d}.npz", Statistics))
    job.save(f"output-{number:05d}.npz", statistics)
    return number, size
