"""The stages of data preparation as functions that any runner calls."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from bert_tf.records.encoding import encode_framed_examples
from bert_tf.records.files import gzip_stream
from bert_tf.tokenization.vocabulary import check_special_tokens
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus import text_files
from data_prep.pretraining import instances, token_store, units
from data_prep.pretraining.listed_words import WordMarker, read_word_list
from data_prep.pretraining.manifest import Statistics
from data_prep.pretraining.options import (
    PAIRS_STAGE,
    PLAN_STAGE,
    RECORDS_STAGE,
    Options,
    generator,
    instances_of_files,
    warn_about_flags,
    warn_about_word_list,
    warn_user,
)


def open_tokenizer(options: Options) -> FullTokenizer:
    """Load the tokenizer, and see before any work that the input can be opened.

    Raises:
        ValueError: the vocabulary lacks a special token, or a file is no text in lines.
        OSError: a file cannot be read.
    """
    tokenizer = FullTokenizer(
        options.vocab_file, options.do_lower_case, strip_accents=options.strip_accents
    )
    check_special_tokens(tokenizer.vocab, options.vocab_file)
    warn_about_flags(options, tokenizer)
    if marker := word_marker(options, tokenizer):
        warn_about_word_list(options, marker)
    for path in options.input_files:
        text_files.check_text(path)
    return tokenizer


def worker_tokenizer(options: Options, vocab_file: str) -> FullTokenizer:
    """Load the tokenizer of a worker, which remembers more, from a file with the vocabulary."""
    return FullTokenizer(
        vocab_file,
        options.do_lower_case,
        strip_accents=options.strip_accents,
        max_memo_bytes=units.TOKENIZER_MEMO_BYTES,
    )


def word_marker(
    options: Options, tokenizer: FullTokenizer, word_list: str | None = None
) -> WordMarker | None:
    """Make what marks the words of the list; None where there is none.

    Args:
        options: for the list.
        tokenizer: that cuts the text.
        word_list: a copy of the list, where a worker has its own.

    Raises:
        ValueError: a line of the list is not UTF-8.
        OSError: it cannot be read.
    """
    if options.word_list is None:
        return None
    return WordMarker(tokenizer, read_word_list(word_list or options.word_list))


def block_bounds(store: token_store.TokenStore, options: Options) -> list[tuple[int, int]]:
    """Cut the corpus into blocks of documents whose pairs are drawn together.

    Args:
        store: the corpus; its tokens are not looked at.
        options: for dupe_factor.

    Returns:
        First document and end of each block.
    """
    step = max(1, units.BLOCK_SENTENCES // options.dupe_factor)
    starts = np.searchsorted(store.document_offsets, np.arange(0, store.counts["sentences"], step))
    bounds = [*np.unique(starts).tolist(), store.counts["documents"]]
    return [(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a < b]


def block_pairs(
    store: token_store.TokenStore, options: Options, block: int, documents: range
) -> Iterator[np.ndarray]:
    """Draw the pairs of a block of documents, shuffled.

    Args:
        store: the corpus; its tokens are not looked at.
        options: for the rule of pairs and dupe_factor.
        block: number of the block, for the seed.
        documents: of the block.

    Yields:
        PAIR_DTYPE arrays of about SHUFFLED_PAIRS pairs, each in random order.
    """
    waiting: list[np.ndarray] = []
    count = 0  # of pairs that wait: of a long document each array has one
    rng = generator(options, PAIRS_STAGE, block)
    lanes = (
        units.LOCKSTEP_DOCUMENTS_OF_LARGE if store.has_large_offsets else units.LOCKSTEP_DOCUMENTS
    )
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
            count += len(pairs)
            store.release()
            if count >= units.SHUFFLED_PAIRS:
                yield rng.permutation(np.concatenate(waiting))
                waiting.clear()
                count = 0
    if waiting:
        yield rng.permutation(np.concatenate(waiting))


def write_chunk_records(
    options: Options,
    vocabulary: instances.VocabularyTable,
    pairs: np.ndarray,
    gather: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    chunk: int,
    raw: BinaryIO,
    compress: bool,
) -> Statistics:
    """Shuffle, pack, mask and encode the pairs of one chunk of the output.

    Args:
        options: for the rule of masks and the lengths.
        vocabulary: of the model.
        pairs: PAIR_DTYPE [B], in the order of the plan.
        gather: pairs -> tokens, and the pairs with their starts in those tokens.
        chunk: its number, for the seed.
        raw: where the framed records are written.
        compress: whether as gzip.

    Returns:
        Counts of what was written, without "bytes".
    """
    rng = generator(options, RECORDS_STAGE, chunk)
    pairs = rng.permutation(pairs)
    statistics = Statistics()
    batch = max(1, units.BATCH_TOKENS // options.max_seq_length)
    opened: Any = gzip_stream(raw) if compress else contextlib.nullcontext(raw)
    with opened as stream:
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


def chunk_sizes(options: Options, total: int) -> tuple[list[int], list[range]]:
    """Cut the output files into chunks.

    Args:
        options: for the output files.
        total: instances there are.

    Returns:
        Instances of each chunk, and the chunks of each output file.
    """
    files = len(options.output_files)
    if total < files:
        warn_user(f"{total} instances for {files} output files: some files will have no record")
    sizes: list[int] = []
    file_chunks = []
    for instances_of_file in instances_of_files(options, total):
        chunks = -(-instances_of_file // units.CHUNK_INSTANCES)
        file_chunks.append(range(len(sizes), len(sizes) + chunks))
        bounds = [instances_of_file * k // max(chunks, 1) for k in range(chunks + 1)]
        sizes.extend(np.diff(bounds).tolist())
    return sizes, file_chunks


def deal_pairs(
    options: Options, part_pairs: Sequence[int], sizes: Sequence[int]
) -> Iterator[np.ndarray]:
    """Deal the pairs out to the chunks: the rows of the plan.

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
    """Draw how many of `count` items go to each chunk: free places, without replacement.

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
