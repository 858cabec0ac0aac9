"""Sentence pairs and masks of BERT's pre-training, drawn for many documents at once with NumPy.

The corpus is one stream of token ids with sentence and document offsets. A pair is two ranges of
that stream: segments are consecutive sentences, and truncation removes tokens only from the ends.
So pairs are drawn over offsets alone, all documents in lockstep, and tokens are touched only when
records are made. Every draw has the distribution of google-research/bert
create_pretraining_data.py; only the order of the random numbers is another
(`original_order.py` keeps that too).

Shapes: N documents at work, B pairs, L max_seq_length, P max_predictions_per_seq, M masked tokens.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from bert_tf.tasks.masking import (
    KEEP_PROB,
    MASK_PROB,
    MASKED_LM_PROB,
    RANDOM_PROB,
    check_masking,
    num_to_predict,
)
from bert_tf.tokenization.vocabulary import CLS_TOKEN, MASK_TOKEN, SEP_TOKEN
from data_prep.pretraining.listed_words import mark_offset

SPECIAL_TOKENS_PER_PAIR = 3  # [CLS] A [SEP] B [SEP]
MAX_RANDOM_DOCUMENT_TRIES = 10
_CACHED_TOKENS = 1 << 15  # packed at once: their arrays stay in the caches

# One pair: ranges of the token stream, after truncation.
PAIR_DTYPE = np.dtype(
    [
        ("a_start", "<i8"),
        ("b_start", "<i8"),
        ("a_length", "<u4"),
        ("b_length", "<u4"),
        ("is_random_next", "<u4"),
    ]
)


@dataclasses.dataclass(frozen=True)
class PairRule:
    """How sentence pairs are cut from documents.

    Attributes:
        max_seq_length: L, tokens of a padded sequence, specials included.
        short_seq_prob: probability, drawn once per document, of a shorter target length.
    """

    max_seq_length: int = 128
    short_seq_prob: float = 0.1

    def __post_init__(self):
        if self.max_seq_length < SPECIAL_TOKENS_PER_PAIR + 2:
            raise ValueError(
                "max_seq_length must be at least 5 ([CLS], one token, [SEP], one token, [SEP]), "
                f"got {self.max_seq_length}"
            )
        if not 0 <= self.short_seq_prob <= 1:
            raise ValueError(f"short_seq_prob must be within [0, 1], got {self.short_seq_prob}")

    @property
    def max_num_tokens(self) -> int:
        """Tokens of A and B together."""
        return self.max_seq_length - SPECIAL_TOKENS_PER_PAIR


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """How many tokens are predicted, which, and what stands in their place.

    Attributes:
        max_predictions_per_seq: P, most predictions in a sequence.
        masked_lm_prob: fraction of a sequence's tokens (specials counted) that are predicted.
        whole_words: choose whole words; each piece of a word still draws its replacement alone.
        mask_prob: fraction of chosen tokens that become [MASK].
        random_prob: fraction that become a random piece of the whole vocabulary.
        keep_prob: fraction that stay. The three sum to 1. (80/10/10; paper, appendix C.2, table 8.)
    """

    max_predictions_per_seq: int = 20
    masked_lm_prob: float = MASKED_LM_PROB
    whole_words: bool = False
    mask_prob: float = MASK_PROB
    random_prob: float = RANDOM_PROB
    keep_prob: float = KEEP_PROB

    def __post_init__(self):
        if self.max_predictions_per_seq < 1:
            raise ValueError(
                f"max_predictions_per_seq must be at least 1, got {self.max_predictions_per_seq}"
            )
        check_masking(self.masked_lm_prob, self.mask_prob, self.random_prob, self.keep_prob)

    def num_to_predict(self, length: int) -> int:
        """Return how many tokens of a sequence of this length, specials counted, are predicted."""
        return num_to_predict(length, self.masked_lm_prob, self.max_predictions_per_seq)


@dataclasses.dataclass(frozen=True, eq=False)
class VocabularyTable:
    """What masking has to know of a vocabulary.

    Attributes:
        cls_id: id of [CLS].
        sep_id: id of [SEP].
        mask_id: id of [MASK].
        word_ids: int64 [words], ids from which random replacements are drawn, in the vocabulary's
            order.
        is_continuation: bool [ids], whether the piece of an id begins with ##.
        mark_offset: what is added to the ids of pieces that continue a listed word, all below it
            (`listed_words.py`); 0 where there is no list.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    word_ids: np.ndarray
    is_continuation: np.ndarray
    mark_offset: int = 0

    @classmethod
    def from_vocab(cls, vocab: Mapping[str, int], has_marks: bool = False) -> "VocabularyTable":
        """Make the table.

        Args:
            vocab: piece to id, in the order of the file; has [CLS], [SEP] and [MASK].
            has_marks: whether tokens may have the marks of a word list.
        """
        word_ids = np.fromiter(vocab.values(), np.int64, count=len(vocab))
        is_continuation = np.zeros(int(word_ids.max()) + 1, np.bool_)
        is_continuation[[i for piece, i in vocab.items() if piece.startswith("##")]] = True
        specials = (vocab[CLS_TOKEN], vocab[SEP_TOKEN], vocab[MASK_TOKEN])
        offset = mark_offset(word_ids.tolist()) if has_marks else 0
        if has_marks:
            is_continuation = np.append(is_continuation, np.ones(offset, np.bool_))
        return cls(*specials, word_ids, is_continuation, offset)


# === Pairs ===


def _below(rng: np.random.Generator, bounds: np.ndarray) -> np.ndarray:
    """Draw uniform integers in [0, bound), int64, one per bound (each at least 1)."""
    return np.minimum((rng.random(bounds.size) * bounds).astype(np.int64), bounds - 1)


def _fill(
    offsets: np.ndarray, start: np.ndarray, end: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Find where consecutive sentences first hold `target` tokens.

    Bisection by hand, since a sentence has at least one token: the look-ups stay within `target`
    sentences of the start, however large the (memory-mapped) corpus is.

    Args:
        offsets: int64 [sentences + 1], tokens before each sentence.
        start: int64 [N], first sentence.
        end: int64 [N], the document's end, above start.
        target: int64 [N], tokens to reach; what is below 1 counts as 1.

    Returns:
        int64 [N], the first sentence boundary above start with at least `target` tokens, or `end`.
    """
    target = np.maximum(target, 1)
    goal = offsets[start] + target
    low = start + 1  # the answer is in [low, high]
    high = np.minimum(end, start + target)
    span = int((high - low).max(initial=0))
    while span > 0:
        middle = (low + high) >> 1
        enough = offsets[middle] >= goal
        high = np.where(enough, middle, high)
        low = np.where(enough, low, np.minimum(middle + 1, high))
        span >>= 1
    return high


def _truncate(
    rng: np.random.Generator, start: np.ndarray, length: np.ndarray, removed: np.ndarray
) -> None:
    """Remove tokens from ranges in place, each from the front or the back by a fair coin."""
    cut = np.flatnonzero(removed)
    if cut.size:
        start[cut] += rng.binomial(removed[cut], 0.5)
        length[cut] -= removed[cut]


def removed_by_truncation(
    a_length: np.ndarray, b_length: np.ndarray, max_num_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the tokens that are taken, one by one, from the longer of A and B (from B when equal).

    Args:
        a_length: int64 [N].
        b_length: int64 [N].
        max_num_tokens: tokens that may stay in A and B together.

    Returns:
        int64 [N] each: tokens removed from A and from B.
    """
    excess = np.maximum(a_length + b_length - max_num_tokens, 0)
    from_a = np.minimum(excess, np.maximum(a_length - b_length, 0))
    from_b = np.minimum(excess, np.maximum(b_length - a_length, 0))
    rest = excess - from_a - from_b  # equal from here on: B, A, B, ...
    return from_a + rest // 2, from_b + (rest + 1) // 2


def sample_pairs(
    sentence_offsets: np.ndarray,
    document_offsets: np.ndarray,
    documents: range,
    duplicates: int,
    rule: PairRule,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Draw the sentence pairs of some documents, each document `duplicates` times.

    Args:
        sentence_offsets: int64 [sentences + 1], tokens before each sentence of the corpus.
        document_offsets: int64 [all documents + 1], sentences before each document.
        documents: the documents to cut into pairs; random next texts come from all.
        duplicates: how often each is cut.
        rule: lengths.
        rng: source of randomness.

    Yields:
        Arrays of PAIR_DTYPE; in all of them together each document is cut `duplicates` times.

    Reference: google-research/bert create_pretraining_data.py, create_instances_from_document.
    """
    num_documents = len(document_offsets) - 1
    lane = np.repeat(np.arange(documents.start, documents.stop, dtype=np.int64), duplicates)
    position = np.asarray(document_offsets[lane])
    end = np.asarray(document_offsets[lane + 1])
    # Drawn once per document, not once per pair.
    target = np.full(lane.size, rule.max_num_tokens, np.int64)
    short = np.flatnonzero(rng.random(lane.size) < rule.short_seq_prob)
    target[short] = 2 + _below(rng, np.full(short.size, rule.max_num_tokens - 1))

    while lane.size:
        chunk_end = _fill(sentence_offsets, position, end, target)
        num_sentences = chunk_end - position
        a_sentences = 1 + np.where(
            num_sentences > 1, _below(rng, np.maximum(num_sentences - 1, 1)), 0
        )
        a_end = position + a_sentences
        is_random = (rng.random(lane.size) < 0.5) | (num_sentences == 1)
        a_start = sentence_offsets[position]
        b_start = sentence_offsets[a_end]
        a_length = b_start - a_start
        b_length = sentence_offsets[chunk_end] - b_start

        drawn = np.flatnonzero(is_random)
        if drawn.size:
            other = _random_documents(rng, lane[drawn], num_documents)
            first = np.asarray(document_offsets[other])
            last = np.asarray(document_offsets[other + 1])
            first = first + _below(rng, last - first)
            last = _fill(sentence_offsets, first, last, target[drawn] - a_length[drawn])
            b_start[drawn] = sentence_offsets[first]
            b_length[drawn] = sentence_offsets[last] - sentence_offsets[first]

        from_a, from_b = removed_by_truncation(a_length, b_length, rule.max_num_tokens)
        _truncate(rng, a_start, a_length, from_a)
        _truncate(rng, b_start, b_length, from_b)

        pairs = np.empty(lane.size, PAIR_DTYPE)
        pairs["a_start"], pairs["a_length"] = a_start, a_length
        pairs["b_start"], pairs["b_length"] = b_start, b_length
        pairs["is_random_next"] = is_random
        yield pairs

        # Sentences that a random next text displaced are not lost: the next pair begins with them.
        position = np.where(is_random, a_end, chunk_end)
        rest = position < end
        lane, position, end, target = lane[rest], position[rest], end[rest], target[rest]


def _random_documents(
    rng: np.random.Generator, documents: np.ndarray, num_documents: int
) -> np.ndarray:
    """Draw other documents, unless ten tries in a row meet the document itself."""
    other = _below(rng, np.full(documents.size, num_documents))
    for _ in range(MAX_RANDOM_DOCUMENT_TRIES - 1):
        same = np.flatnonzero(other == documents)
        if not same.size:
            break
        other[same] = _below(rng, np.full(same.size, num_documents))
    return other


# === Sequences and masks ===


@dataclasses.dataclass(eq=False)
class PackedPairs:
    """Sequences [CLS] A [SEP] B [SEP], padded with 0.

    Attributes:
        input_ids: unsigned integers [B, L].
        a_end: int64 [B], position of the first [SEP].
        length: int64 [B], tokens in the sequence.
        is_random_next: bool [B].
        is_continuation: bool [B, L], whether a token goes on with the word before it; None where
            its piece tells.
    """

    input_ids: np.ndarray
    a_end: np.ndarray
    length: np.ndarray
    is_random_next: np.ndarray
    is_continuation: np.ndarray | None = None

    def features(self) -> dict[str, np.ndarray]:
        """Return the arrays of the unmasked record, in the types that encode fastest."""
        column = np.arange(self.input_ids.shape[1])
        input_mask = column < self.length[:, None]  # [B, L]
        return {
            "input_ids": self.input_ids,
            "input_mask": input_mask,
            "segment_ids": input_mask & (column > self.a_end[:, None]),
            "next_sentence_labels": self.is_random_next[:, None],
        }


def pack_pairs(
    tokens: np.ndarray, pairs: np.ndarray, max_seq_length: int, vocabulary: VocabularyTable
) -> PackedPairs:
    """Gather the tokens of pairs and set the special tokens around them.

    Args:
        tokens: uint16 or uint32 [tokens of the corpus].
        pairs: PAIR_DTYPE [B].
        max_seq_length: L.
        vocabulary: ids of the special tokens.

    Returns:
        The sequences.
    """
    a_length = pairs["a_length"].astype(np.int64)
    a_end = a_length + 1
    last = a_end + pairs["b_length"] + 1
    # Token of column c: A begins at column 1, B at column a_end + 1.
    a_source = pairs["a_start"] - 1
    b_source = pairs["b_start"] - a_end - 1
    column = np.arange(max_seq_length)
    input_ids = np.empty((len(pairs), max_seq_length), tokens.dtype)  # [B, L]
    step = max(1, _CACHED_TOKENS // max_seq_length)
    for first in range(0, len(pairs), step):
        rows = slice(first, first + step)
        in_a = column <= a_length[rows, None]
        source = np.where(in_a, a_source[rows, None], b_source[rows, None])
        source += column
        # Specials and padding are anything here, and overwritten.
        np.take(tokens, source, out=input_ids[rows], mode="clip")
        input_ids[rows] *= column <= last[rows, None]
    rows = np.arange(len(pairs))
    input_ids[:, 0] = vocabulary.cls_id
    input_ids[rows, a_end] = vocabulary.sep_id
    input_ids[rows, last] = vocabulary.sep_id
    is_continuation = None
    if offset := vocabulary.mark_offset:
        is_continuation = vocabulary.is_continuation[input_ids]
        input_ids = np.where(input_ids >= offset, input_ids - offset, input_ids)
    is_random_next = pairs["is_random_next"].astype(np.bool_)
    return PackedPairs(input_ids, a_end, last + 1, is_random_next, is_continuation)


def mask_pairs(
    packed: PackedPairs, vocabulary: VocabularyTable, rule: MaskRule, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Choose the tokens to predict and replace them in `packed.input_ids`.

    Args:
        packed: the sequences; their ids are changed in place.
        vocabulary: for the replacements and the borders of words.
        rule: how many, which, and by what.
        rng: source of randomness.

    Returns:
        masked_lm_positions, masked_lm_ids unsigned [B, P] and masked_lm_weights float32 [B, P]: in
        order of position, padded with 0.

    Reference: google-research/bert create_pretraining_data.py, create_masked_lm_predictions.
    """
    input_ids = packed.input_ids
    rows, length = input_ids.shape
    table = np.array([rule.num_to_predict(n) for n in range(length + 1)])
    num_masked = table[packed.length]  # [B]
    if rule.whole_words:
        chosen = _choose_words(packed, num_masked, vocabulary, rng)
    else:
        chosen = _choose_tokens(packed, num_masked, rng)  # [B, L]
    flat = np.flatnonzero(chosen)
    row, position = np.divmod(flat, length)  # [M]
    count = np.bincount(row, minlength=rows)
    rank = np.arange(flat.size) - np.repeat(np.cumsum(count) - count, count)

    features = {}
    shape = (rows, rule.max_predictions_per_seq)
    positions = np.zeros(shape, np.uint8 if length <= 256 else np.uint32)
    positions[row, rank] = position
    labels = np.zeros(shape, input_ids.dtype)
    original = input_ids.ravel()[flat]
    labels[row, rank] = original
    weights = np.zeros(shape, np.float32)
    weights[row, rank] = 1
    features["masked_lm_positions"] = positions
    features["masked_lm_ids"] = labels
    features["masked_lm_weights"] = weights

    # Each token draws its own replacement, also within a whole word.
    draw = rng.random(flat.size)
    replaced = np.where(draw < rule.mask_prob, vocabulary.mask_id, original)
    random = np.flatnonzero(draw >= rule.mask_prob + rule.keep_prob)
    words = np.full(random.size, vocabulary.word_ids.size)
    replaced[random] = vocabulary.word_ids[_below(rng, words)]
    input_ids[row, position] = replaced
    return features


def _choose_tokens(
    packed: PackedPairs, num_masked: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Choose `num_masked` tokens of each sequence, not [CLS] or [SEP], every set equally likely.

    Returns:
        bool [B, L].
    """
    rows, length = packed.input_ids.shape
    candidates = packed.length - SPECIAL_TOKENS_PER_PAIR  # [B]
    num_masked = np.minimum(num_masked, candidates)
    # The first steps of a Fisher-Yates shuffle of 0..candidates-1, all sequences at once; what a
    # step has of each sequence lies side by side, [L, B].
    order = np.repeat(np.arange(length, dtype=np.int32), rows).reshape(length, rows)
    flat_order, row = order.reshape(-1), np.arange(rows)
    steps = int(num_masked.max(initial=0))
    draws = rng.random((steps, rows))
    for step in range(steps):
        left = np.maximum(candidates - step, 1)
        swap = np.minimum(step + (draws[step] * left).astype(np.int64), length - 1) * rows + row
        picked = flat_order[swap]
        flat_order[swap] = order[step]
        order[step] = picked
    taken_row, taken_step = np.nonzero(np.arange(steps) < num_masked[:, None])
    candidate = order[taken_step, taken_row]
    position = candidate + 1 + (candidate + 1 >= packed.a_end[taken_row])
    chosen = np.zeros((rows, length), np.bool_)
    chosen[taken_row, position] = True
    return chosen


def _choose_words(
    packed: PackedPairs,
    num_masked: np.ndarray,
    vocabulary: VocabularyTable,
    rng: np.random.Generator,
) -> np.ndarray:
    """Choose whole words in random order; one that exceeds `num_masked` tokens is passed over.

    A piece with ##, or with a mark, belongs to the word before it, also across [SEP] (where
    truncation cut the front of a word of B), except at the very beginning.

    Returns:
        bool [B, L].
    """
    input_ids = packed.input_ids
    rows, length = input_ids.shape
    column = np.arange(length)
    is_candidate = (column > 0) & (column < packed.length[:, None] - 1)  # [B, L]
    row = np.arange(rows)
    is_candidate[row, packed.a_end] = False
    continues = packed.is_continuation
    if continues is None:
        continues = vocabulary.is_continuation[input_ids]
    is_start = is_candidate & ~continues
    is_start[:, 1] = True
    word = np.cumsum(is_start, axis=1, dtype=np.int32) - 1  # [B, L]
    np.maximum(word, 0, out=word)
    num_words = word[:, -1].astype(np.int64) + 1
    flat_word = word + (row * length)[:, None]
    sizes = np.bincount(flat_word[is_candidate], minlength=rows * length).reshape(rows, length)

    chosen_word = np.zeros((rows, length), np.bool_)
    order = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    total = np.zeros(rows, np.int64)
    active = row
    step = 0
    while active.size:
        left = num_words[active] - step
        swap = step + _below(rng, left)
        picked = order[active, swap]
        order[active, swap] = order[active, step]
        size = sizes[active, picked]
        fits = total[active] + size <= num_masked[active]
        taken = active[fits]
        total[taken] += size[fits]
        chosen_word[taken, picked[fits]] = True
        step += 1
        active = active[(total[active] < num_masked[active]) & (num_words[active] > step)]
    return np.take_along_axis(chosen_word, word, axis=1) & is_candidate
