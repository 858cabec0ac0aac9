"""Texts to words inside the TensorFlow graph, as `tokenization.BasicTokenizer`, with raw positions.

Texts become code points, and tables (see `character_tables`) say of each what it turns into. What
a table cannot say of one character alone is done where a batch has such characters: decomposition
into several that stay, the order of combining characters that are no marks, and the final sigma.

Shape legend: B texts, N raw characters of all texts, M characters of all words, W words, P parts.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bert_tf.tokenization import unicode_tables
from bert_tf.tokenization.vocabulary import MASK_TOKEN

# What stands for the mask among the characters of words, which are never this one.
MASK_CHARACTER = 0


class Words(NamedTuple):
    """The words of texts, and the raw characters that they came from.

    The characters of all texts count as one sequence here, with a space before each text, which
    parts it from the one before. So do the words and their characters.

    Attributes:
        strings: string [W], the words.
        splits: int64 [B + 1], where the words of each text begin among the W.
        char_splits: int64 [W + 1], where the characters of each word begin among the M.
        chars: int32 [M], code points of the words.
        raw_starts: int64 [M], for each of them the raw character that it came from.
        raw_ends: int64 [M], one past the last raw character that belongs to it; None without
            offsets.
        is_in_order: bool, whether neither raw_starts nor raw_ends ever fall.
        raw_splits: int64 [B + 1], where each text's space stands among the N.
        raw_chars: int32 [N], code points of the texts and their spaces.
        raw_bytes: int64 [N], bytes before each in its text and its space; None without offsets.
        space_words: int32 [N], how many words of `span_decoding.split_words` have begun; None
            without offsets.
    """

    strings: tf.Tensor
    splits: tf.Tensor
    char_splits: tf.Tensor
    chars: tf.Tensor
    raw_starts: tf.Tensor
    raw_ends: tf.Tensor | None
    is_in_order: tf.Tensor
    raw_splits: tf.Tensor
    raw_chars: tf.Tensor
    raw_bytes: tf.Tensor | None
    space_words: tf.Tensor | None


class _Characters(NamedTuple):
    """Characters of words before they are parted into words; see `Words`."""

    packed: tf.Tensor  # int32 [M], two times the code point, and 1 more if it is a word by itself
    is_parted: tf.Tensor  # bool [M - 1], whether white space stands before it
    raw_starts: tf.Tensor
    raw_ends: tf.Tensor
    is_in_order: tf.Tensor


def segment_ids(splits: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Return to which row each element of a ragged tensor belongs.

    `RaggedTensor.value_rowids` needs memory for the rows times the longest of them.

    Args:
        splits: int64 [rows + 1].
        size: int64, number of elements, which is splits[-1].

    Returns:
        int64 [size].
    """
    starts = splits[1:-1]
    counts = tf.scatter_nd(
        _column(starts), tf.ones_like(starts, tf.int32), tf.reshape(size + 1, [1])
    )  # rows that begin at each element
    return tf.cast(tf.cumsum(counts)[:-1], tf.int64)


def _has(values: tf.Tensor, bits: int) -> tf.Tensor:
    """Tell whether any of some bits is set: int32 to bool of the same shape."""
    return tf.bitwise.bitwise_and(values, bits) != 0


def _lacks(values: tf.Tensor, bits: int) -> tf.Tensor:
    """Tell whether none of some bits is set: int32 to bool of the same shape."""
    return tf.bitwise.bitwise_and(values, bits) == 0


def _positions(condition: tf.Tensor) -> tf.Tensor:
    """Where a condition holds: bool [n] to int64 [number of those]."""
    return tf.reshape(tf.where(condition), [-1])


def _where(values: tf.Tensor, condition: tf.Tensor) -> tf.Tensor:
    """Keep elements where a condition holds; `tf.boolean_mask` takes three times the operations."""
    return tf.gather(values, _positions(condition))


def _column(indices: tf.Tensor) -> tf.Tensor:
    """Return the indices as the scattering operations want them: [n] to [n, 1]."""
    return tf.expand_dims(indices, 1)


def _rank(values: tf.Tensor, elements: tf.Tensor) -> tf.Tensor:
    """Count how many of ascending values lie below each element: int64 [n] and [k] to int64 [k]."""
    return tf.searchsorted(values, elements, out_type=tf.int64)


class WordSplitter(tf.Module):
    """Texts to words, as `tokenization.BasicTokenizer` does it.

    Args:
        do_lower_case: lower-case the words.
        parse_mask: take the literal text `[MASK]` for one word, MASK_CHARACTER.
        strip_accents: decompose the words and strip their accents; None where they are lower-cased.
    """

    def __init__(
        self, do_lower_case: bool, parse_mask: bool = False, strip_accents: bool | None = None
    ):
        super().__init__(name="word_splitter")
        self.do_lower_case = do_lower_case
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents
        self.parse_mask = parse_mask
        self._changes = self.do_lower_case or self.strip_accents
        tables = unicode_tables.character_tables(do_lower_case, self.strip_accents)
        self._values = self._constants(tables.values)
        if self._changes:
            self._part_starts = self._constants(tables.part_starts)
            self._parts = tf.constant(tables.parts)

    def __call__(self, texts: tf.Tensor, with_offsets: bool = False) -> Words:
        """Split texts into words.

        Args:
            texts: string [B], UTF-8; bytes that are not UTF-8 are dropped.
            with_offsets: whether to find what only offsets need.
        """
        texts = tf.strings.join([" ", texts])
        raw_bytes = None
        if with_offsets:
            decoded, raw_bytes = tf.strings.unicode_decode_with_offsets(
                texts, "UTF-8", errors="ignore"
            )
            raw_bytes = raw_bytes.flat_values
        else:
            decoded = tf.strings.unicode_decode(texts, "UTF-8", errors="ignore")
        raw_chars, raw_splits = decoded.flat_values, decoded.row_splits
        values = self._look_up(self._values, raw_chars)  # [N]
        if self.parse_mask:
            values = self._parse_masks(raw_chars, values)
        chars = raw_chars + tf.bitwise.right_shift(values, unicode_tables.DIFFERENCE_SHIFT)  # [N]
        if self.do_lower_case:
            chars = self._final_sigmas(raw_chars, chars, values)
        packed = 2 * chars + tf.bitwise.bitwise_and(values, unicode_tables.ALONE)
        if self._changes:
            kept = tf.cond(
                tf.reduce_any(_has(values, unicode_tables.GENERAL)),
                lambda: self._any_characters(raw_chars, packed, values, with_offsets),
                lambda: self._plain_characters(packed, values, with_offsets),
            )
        else:
            kept = self._plain_characters(packed, values, with_offsets)
        packed, is_parted, raw_starts, raw_ends, is_in_order = kept

        chars = tf.bitwise.right_shift(packed, 1)  # [M]
        is_alone = _has(packed, 1)
        is_first = is_parted | is_alone[1:] | is_alone[:-1]  # [M - 1], of a word
        size = tf.size(chars, tf.int64)
        firsts = tf.concat([tf.range(tf.minimum(size, 1)), _positions(is_first) + 1], axis=0)  # [W]
        char_splits = tf.concat([firsts, [size]], axis=0)
        by_word = tf.RaggedTensor.from_row_splits(chars, char_splits, validate=False)
        if with_offsets and self.parse_mask:
            raw_ends = tf.where(chars == MASK_CHARACTER, raw_starts + len(MASK_TOKEN), raw_ends)
        return Words(
            strings=tf.strings.unicode_encode(by_word, "UTF-8"),
            splits=_rank(tf.gather(raw_starts, firsts), raw_splits),
            char_splits=char_splits,
            chars=chars,
            raw_starts=raw_starts,
            raw_ends=raw_ends if with_offsets else None,
            is_in_order=is_in_order,
            raw_splits=raw_splits,
            raw_chars=raw_chars,
            raw_bytes=raw_bytes,
            space_words=self._space_words(values) if with_offsets else None,
        )

    @staticmethod
    def _constants(table: unicode_tables.PagedTable) -> tuple[tf.Tensor, tf.Tensor]:
        """First index of the page of each 256 code points, and the pages."""
        return tf.constant(table.pages_of << 8), tf.constant(table.pages)

    @staticmethod
    def _look_up(table: tuple[tf.Tensor, tf.Tensor], codepoints: tf.Tensor) -> tf.Tensor:
        """Return what a table says of code points: int32 [N] to int32 [N]."""
        pages_of, pages = table
        page = tf.gather(pages_of, tf.bitwise.right_shift(codepoints, 8))
        return tf.gather(pages, page + tf.bitwise.bitwise_and(codepoints, 255))

    @staticmethod
    def _parse_masks(raw_chars: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """Make each `[MASK]` a word of MASK_CHARACTER: its first character, and then space."""
        token = np.array([ord(char) for char in MASK_TOKEN], np.int32)
        starts = _positions(raw_chars == token[0])
        starts = _where(starts, starts + len(token) <= tf.size(raw_chars, tf.int64))
        places = _column(starts) + np.arange(len(token))  # [candidates, len(token)]
        is_mask = tf.reduce_all(tf.gather(raw_chars, places) == token, axis=1)
        places = _where(places, is_mask)
        difference = (MASK_CHARACTER - int(token[0])) * (1 << unicode_tables.DIFFERENCE_SHIFT)
        mask_values = np.full(len(token), unicode_tables.SPACE, np.int32)
        mask_values[0] = difference | unicode_tables.KEPT | unicode_tables.ALONE
        return tf.tensor_scatter_nd_update(
            values, tf.expand_dims(places, 2), tf.broadcast_to(mask_values, tf.shape(places))
        )

    @staticmethod
    def _final_sigmas(raw_chars: tf.Tensor, chars: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """Lower-case the capital sigmas that end a word, as str.lower() sees it: int32 [N]."""

        def lower() -> tf.Tensor:
            relevant = _positions(_lacks(values, unicode_tables.PASSED))  # [n]
            is_cased = _has(tf.gather(values, relevant), unicode_tables.CASED)
            # The first is a text's space.
            before, after = is_cased[:-1], tf.concat([is_cased[2:], [False]], axis=0)
            is_sigma = tf.gather(raw_chars, relevant[1:]) == unicode_tables.CAPITAL_SIGMA
            finals = _where(relevant[1:], is_sigma & before & tf.logical_not(after))
            final = tf.fill(tf.shape(finals), unicode_tables.FINAL_SIGMA)
            return tf.tensor_scatter_nd_update(chars, _column(finals), final)

        has_sigma = tf.reduce_any(raw_chars == unicode_tables.CAPITAL_SIGMA)
        return tf.cond(has_sigma, lower, lambda: chars)

    def _plain_characters(
        self, packed: tf.Tensor, values: tf.Tensor, with_offsets: bool
    ) -> _Characters:
        """Make characters of words where each raw one becomes one at most."""
        kept = _positions(_has(values, unicode_tables.KEPT))  # [M]
        passed = _positions(
            _lacks(values, unicode_tables.KEPT | unicode_tables.SPACE)
        )  # neither stays nor parts

        def is_joined(first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
            return last - first - 1 == _rank(passed, last) - _rank(passed, first)

        # Where a distance is more than 1, white space stands between, or what is passed alone.
        is_parted = kept[1:] - kept[:-1] > 1
        after = _rank(kept, passed)  # the next that stays
        after = _where(after, (after > 0) & (after < tf.size(kept, tf.int64)))
        joined = _where(after, is_joined(tf.gather(kept, after - 1), tf.gather(kept, after)))
        is_parted = tf.tensor_scatter_nd_update(
            is_parted, _column(joined - 1), tf.zeros_like(joined, tf.bool)
        )
        raw_ends = kept
        if with_offsets:
            marks = _positions(_has(values, unicode_tables.MARK))
            raw_ends = self._raw_ends(kept, kept, marks, marks, values, is_joined)
        return _Characters(tf.gather(packed, kept), is_parted, kept, raw_ends, tf.constant(True))

    def _any_characters(
        self, raw_chars: tf.Tensor, packed: tf.Tensor, values: tf.Tensor, with_offsets: bool
    ) -> _Characters:
        """Make characters of words: raw ones decomposed, ordered as NFD does, marks stripped."""
        gaps = tf.cumsum(tf.cast(_has(values, unicode_tables.SPACE), tf.int32))  # [N]
        part_starts = self._look_up(self._part_starts, raw_chars)  # [N]
        is_listed = part_starts > 0
        counts = tf.where(
            is_listed,
            tf.gather(self._parts, part_starts),
            tf.cast(_has(values, unicode_tables.KEPT), tf.int32),
        )
        splits = tf.cumsum(tf.cast(counts, tf.int64), exclusive=True)  # [N]
        size = tf.reduce_sum(tf.cast(counts, tf.int64))
        raw = segment_ids(tf.concat([splits, [size]], axis=0), size)  # [P]
        number = tf.cast(tf.range(size) - tf.gather(splits, raw), tf.int32)
        parts = tf.where(
            tf.gather(is_listed, raw),
            tf.gather(self._parts, tf.gather(part_starts, raw) + 1 + number),
            tf.bitwise.left_shift(tf.gather(packed, raw), unicode_tables.PART_ALONE_SHIFT),
        )
        is_kept = _lacks(parts, unicode_tables.PART_MARK)
        classes = tf.bitwise.bitwise_and(
            tf.bitwise.right_shift(parts, unicode_tables.PART_CLASS_SHIFT), 255
        )

        def in_order() -> tuple[tf.Tensor, tf.Tensor]:
            # Combining characters are ordered by class, stably, between two of class 0.
            starters = tf.cumsum(tf.cast(classes == 0, tf.int64))
            starters += tf.cast(tf.gather(gaps, raw), tf.int64)
            order = tf.argsort(starters * 256 + tf.cast(classes, tf.int64), stable=True)
            return tf.gather(parts, order), tf.gather(raw, order)

        # The order of marks alone is of no consequence.
        is_reordered = tf.reduce_any(is_kept & (classes > 0))
        parts, raw = tf.cond(is_reordered, in_order, lambda: (parts, raw))
        is_kept = _lacks(parts, unicode_tables.PART_MARK)
        kept, marks = _positions(is_kept), _positions(tf.logical_not(is_kept))
        raw_starts, raw_marks = tf.gather(raw, kept), tf.gather(raw, marks)
        raw_ends = raw_starts
        if with_offsets:
            raw_ends = self._raw_ends(
                kept,
                raw_starts,
                marks,
                raw_marks,
                values,
                lambda owner, mark: tf.gather(gaps, owner) == tf.gather(gaps, mark),
            )
        gaps = tf.gather(gaps, raw_starts)
        packed = tf.bitwise.right_shift(tf.gather(parts, kept), unicode_tables.PART_ALONE_SHIFT)
        return _Characters(
            packed, gaps[1:] != gaps[:-1], raw_starts, raw_ends, tf.logical_not(is_reordered)
        )

    @staticmethod
    def _raw_ends(
        kept: tf.Tensor,
        raw_kept: tf.Tensor,
        marks: tf.Tensor,
        raw_marks: tf.Tensor,
        values: tf.Tensor,
        is_one_token: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> tf.Tensor:
        """Return the ends of characters; a stripped mark belongs to the one before it in its token.

        Args:
            kept: int64 [M], places of the characters that stay.
            raw_kept: int64 [M], the raw characters that they came from.
            marks: int64 [marks], places of the marks, counted alike.
            raw_marks: int64 [marks], the raw characters that they came from.
            values: int32 [N].
            is_one_token: whether no white space stands between raw characters.

        Returns:
            int64 [M].
        """
        owners = _rank(kept, marks) - 1
        has_owner = _positions(owners >= 0)
        owners, raw_marks = tf.gather(owners, has_owner), tf.gather(raw_marks, has_owner)
        raw_owners = tf.gather(raw_kept, owners)
        is_owned = is_one_token(raw_owners, raw_marks)
        is_owned &= _lacks(tf.gather(values, raw_owners), unicode_tables.IDEOGRAPH)
        return tf.tensor_scatter_nd_max(
            raw_kept + 1, _column(_where(owners, is_owned)), _where(raw_marks, is_owned) + 1
        )

    @staticmethod
    def _space_words(values: tf.Tensor) -> tf.Tensor:
        """See `Words.space_words`."""
        is_word = _lacks(values, unicode_tables.DOCUMENT_SPACE)
        begins = is_word[1:] & tf.logical_not(is_word[:-1])  # the first is a text's space
        count = tf.cumsum(tf.cast(begins, tf.int32))
        return tf.concat([tf.zeros([tf.minimum(tf.size(values), 1)], tf.int32), count], axis=0)
