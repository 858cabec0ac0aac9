"""The tokenizer inside the TensorFlow graph: a model that takes plain strings.

`TextToIds` gives the ids of `bert_tf.tokenization.FullTokenizer`, as operations that a SavedModel
carries with it, and where in the raw texts each piece came from. What happens to a character is
looked up in tables made by the Python that makes the object. So everything follows one version of
Unicode, that of this Python's `unicodedata` (14.0 for Python 3.11), wherever the SavedModel runs:
characters that are unassigned there stay as they are, and belong to words.

A SavedModel made from it needs the operations of tensorflow_text: a process that loads it must
import tensorflow_text first. Beside this module only `lite_text` uses that library.

Shape legend: B texts, C choices, W words, T pieces, P pieces of all texts, L max_seq_length.
"""

import os
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bert_tf.tokenization import unicode_tables, vocabulary
from bert_tf.tokenization.graph_words import MASK_CHARACTER, Words, WordSplitter, segment_ids
from bert_tf.tokenization.wordpiece import MAX_CHARS_PER_WORD

# Code points that part the words of a document.
_DOCUMENT_SPACE = np.array(list(map(ord, unicode_tables.DOCUMENT_SPACE_CHARACTERS)), np.int32)
# There is nothing in here for AutoGraph to convert, and looking for it takes seconds.
as_written = tf.autograph.experimental.do_not_convert
_MAX_BYTES_PER_WORD = 2**30  # words are measured in characters here, as the original does


class PiecesWithOffsets(NamedTuple):
    """The pieces of texts, and where in the raw texts they came from: each int32 ragged [B, (T)].

    Offsets are those of `FullTokenizer.tokenize_with_offsets`, in the text as it was given: before
    characters vanish, are lower-cased or decomposed. A span covers the accents that are stripped
    from its letters and what vanishes inside of it, not what vanishes around it. [UNK] covers its
    word. Pieces cut from the decomposition of one character (a Hangul syllable) share its span.

    Attributes:
        ids: of the pieces.
        byte_starts: first byte of each piece; bytes that are not UTF-8 are dropped, but counted.
        byte_ends: one past the last byte.
        char_starts: first code point of each piece, in the text without bytes that are not UTF-8.
        char_ends: one past the last code point.
        word_index: which word of `BasicTokenizer` each piece is of: a punctuation mark or an
            ideograph is a word, and so is a [MASK] that is parsed.
        space_word_index: which word of `span_decoding.split_words` each piece is of; white space
            alone parts these.
    """

    ids: tf.RaggedTensor
    byte_starts: tf.RaggedTensor
    byte_ends: tf.RaggedTensor
    char_starts: tf.RaggedTensor
    char_ends: tf.RaggedTensor
    word_index: tf.RaggedTensor
    space_word_index: tf.RaggedTensor


class DocumentWords(NamedTuple):
    """The words of `span_decoding.split_words`, which white space alone parts.

    Attributes:
        byte_starts: first byte of each word, int32 ragged [B, (words)], as all that follow.
        byte_ends: one past the last byte.
        char_starts: first code point.
        char_ends: one past the last code point.
        surplus: how many characters more it has for the tokenizer than in the text.
    """

    byte_starts: tf.RaggedTensor
    byte_ends: tf.RaggedTensor
    char_starts: tf.RaggedTensor
    char_ends: tf.RaggedTensor
    surplus: tf.RaggedTensor


class TextToIds(tf.Module):
    """Strings to ids inside the graph, equal to `FullTokenizer`.

    The vocabulary is part of the graph: an exported model needs no file.

    Args:
        vocab_file: path of a vocabulary, one piece a line, with BERT's special tokens; or the
            pieces themselves, with their ids.
        do_lower_case: True for uncased models, False for cased and Chinese ones.
        max_seq_length: L, the length that `pack` gives.
        parse_mask: make the literal text `[MASK]` the mask's id. Nothing else is ever parsed.
        strip_accents: as for `FullTokenizer`.

    Raises:
        FileNotFoundError, ValueError: the vocabulary cannot be read, is refused by
            `tokenization.check_vocab` or lacks a special token, or max_seq_length is less than 3.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | Mapping[str, int],
        do_lower_case: bool = True,
        max_seq_length: int = 128,
        parse_mask: bool = False,
        strip_accents: bool | None = None,
    ):
        super().__init__(name="text_to_ids")
        if isinstance(vocab_file, str | os.PathLike):
            vocab, source = vocabulary.load_vocab(vocab_file), vocab_file
        else:
            vocab, source = vocab_file, "vocab"
            vocabulary.check_vocab(vocab, source)
        vocabulary.check_special_tokens(vocab, source)
        if max_seq_length < 3:
            raise ValueError(f"max_seq_length must be at least 3, got {max_seq_length}")
        # A proxy, since TensorFlow would make a dictionary part of what is saved.
        self.vocab: Mapping[str, int] = types.MappingProxyType(dict(vocab))
        self.do_lower_case = do_lower_case
        self.max_seq_length = max_seq_length
        self.parse_mask = parse_mask
        self.cls_id = vocab[vocabulary.CLS_TOKEN]
        self.sep_id = vocab[vocabulary.SEP_TOKEN]
        self.pad_id = vocab[vocabulary.PAD_TOKEN]
        self.mask_id = vocab[vocabulary.MASK_TOKEN]
        self.unk_id = vocab[vocabulary.UNK_TOKEN]
        self.vocab_size = max(vocab.values()) + 1  # lines of the file
        self._tokens = tf.constant(_lines(vocab))
        self._splitter = WordSplitter(do_lower_case, parse_mask, strip_accents)
        self.strip_accents = self._splitter.strip_accents
        # It takes a second to load, and Keras' models know this class whether they use it or not.
        import tensorflow_text as tf_text

        self._tokenizer = tf_text.FastWordpieceTokenizer(
            wordpiece_lines(vocab),
            suffix_indicator="##",
            max_bytes_per_word=_MAX_BYTES_PER_WORD,
            token_out_type=tf.int32,
            unknown_token=vocabulary.UNK_TOKEN,
            no_pretokenization=True,
        )

    @classmethod
    def from_vocab(
        cls,
        vocab: Mapping[str, int],
        do_lower_case: bool = True,
        max_seq_length: int = 128,
        parse_mask: bool = False,
        strip_accents: bool | None = None,
    ) -> "TextToIds":
        """Make one of pieces and their ids, without a file.

        Args:
            vocab: piece -> id, with BERT's special tokens.
            do_lower_case: as for the class.
            max_seq_length: as for the class.
            parse_mask: as for the class.
            strip_accents: as for the class.

        Raises:
            ValueError: as for the class.
        """
        return cls(vocab, do_lower_case, max_seq_length, parse_mask, strip_accents)

    @as_written
    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Return the ids of the texts' pieces, special tokens not added.

        Args:
            texts: string [B], UTF-8; bytes that are not UTF-8 are dropped.

        Returns:
            int32 ragged [B, (T)].

        Raises:
            ValueError: texts is of another type or rank.
        """
        words = self._splitter(string_tensor("texts", texts, 1))
        pieces = self._tokenizer.tokenize(_cut_words(words))  # [W, (T)]
        ids = pieces.flat_values  # [P]
        if self.parse_mask:
            ids = self._with_masks(ids, pieces.row_splits[:-1], words)
        splits = tf.gather(pieces.row_splits, words.splits)
        return tf.RaggedTensor.from_row_splits(ids, splits, validate=False)

    @as_written
    def tokenize_with_offsets(self, texts: tf.Tensor) -> PiecesWithOffsets:
        """Return the ids of the texts' pieces, special tokens not added, and where they came from.

        Args:
            texts: string [B], UTF-8; bytes that are not UTF-8 are dropped.

        Raises:
            ValueError: texts is of another type or rank.
        """
        return self._with_offsets(
            self._splitter(string_tensor("texts", texts, 1), with_offsets=True)
        )

    @as_written
    def tokenize_documents(self, texts: tf.Tensor) -> tuple[PiecesWithOffsets, DocumentWords]:
        """Return the pieces of texts, and the words to which `space_word_index` refers.

        Args:
            texts: as for `tokenize_with_offsets`.
        """
        words = self._splitter(string_tensor("texts", texts, 1), with_offsets=True)
        return self._with_offsets(words), _document_words(words)

    def _with_offsets(self, words: Words) -> PiecesWithOffsets:
        strings = _cut_words(words)
        pieces, starts, _ = self._tokenizer.tokenize_with_offsets(strings)  # [W, (T)]
        ids, starts = pieces.flat_values, starts.flat_values  # [P]
        size = tf.size(ids, tf.int64)
        if self.parse_mask:
            ids = self._with_masks(ids, pieces.row_splits[:-1], words)
        word = segment_ids(pieces.row_splits, size)  # [P]
        # Bytes of a word to its characters, for the pieces that do not begin at 0.
        inner = tf.reshape(tf.where(starts > 0), [-1])
        before = tf.strings.substr(
            tf.gather(strings, tf.gather(word, inner)),
            tf.zeros_like(inner),
            tf.gather(starts, inner),
        )
        starts = tf.tensor_scatter_nd_update(
            starts,
            tf.expand_dims(inner, 1),
            tf.cast(tf.strings.length(before, unit="UTF8_CHAR"), tf.int64),
        )
        # The pieces of all words together are all their characters.
        chars = tf.size(words.chars, tf.int64)
        char_splits = tf.concat([tf.gather(words.char_splits, word) + starts, [chars]], axis=0)
        first, last = tf.cond(
            words.is_in_order,
            lambda: (
                tf.gather(words.raw_starts, char_splits[:-1]),
                tf.gather(words.raw_ends, char_splits[1:] - 1) - 1,
            ),
            lambda: _extents(words, segment_ids(char_splits, chars)),
        )  # raw characters, [P]

        splits = tf.gather(pieces.row_splits, words.splits)  # [B + 1]
        text = segment_ids(splits, size)  # [P]
        text_start = tf.gather(words.raw_splits, text)
        columns = {
            "byte_starts": tf.gather(words.raw_bytes, first) - 1,
            "byte_ends": tf.gather(words.raw_bytes, last)
            + _utf8_length(tf.gather(words.raw_chars, last))
            - 1,
            "char_starts": first - text_start - 1,
            "char_ends": last - text_start,
            "word_index": word - tf.gather(words.splits, text),
            "space_word_index": tf.gather(words.space_words, first)
            - tf.gather(words.space_words, text_start)
            - 1,
        }
        ragged = {
            name: tf.RaggedTensor.from_row_splits(tf.cast(column, tf.int32), splits, validate=False)
            for name, column in {"ids": ids, **columns}.items()
        }
        return PiecesWithOffsets(**ragged)

    @as_written
    def pack(self, texts: tf.Tensor, second_texts: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Return the encoder's inputs: [CLS] A [SEP], or [CLS] A [SEP] B [SEP], padded.

        Longer texts are cut as `tokenization.truncate_pair` does. A second text of which no piece
        is left gets no [SEP], as in `tokenization.pack_pair`.

        Args:
            texts: string [B], the first texts.
            second_texts: string [B], if there are any.

        Returns:
            "input_ids", "input_mask" and "segment_ids", int32 [B, L].

        Raises:
            ValueError: an argument is of another type or rank.
        """
        texts = string_tensor("texts", texts, 1)
        if second_texts is None:
            return self._pack(self(texts), None)
        return self._pack(self(texts), self(string_tensor("second_texts", second_texts, 1)))

    @as_written
    def pack_choices(
        self, texts: tf.Tensor, choices: tf.Tensor | tf.RaggedTensor
    ) -> dict[str, tf.Tensor] | dict[str, tf.RaggedTensor]:
        """Return the encoder's inputs for each text with each of its choices, as `pack` does.

        Args:
            texts: string [B].
            choices: string [B, C], or ragged [B, (C)].

        Returns:
            "input_ids", "input_mask" and "segment_ids", int32 [B, C, L]; of ragged choices ragged
            [B, (C), L].

        Raises:
            ValueError: an argument is of another type or rank.
        """
        ids = self(texts)
        choices = string_tensor("choices", choices, 2)
        if isinstance(choices, tf.RaggedTensor):
            flat = choices.flat_values
            row = segment_ids(choices.row_splits, tf.size(flat, tf.int64))
            packed = self._pack(tf.gather(ids, row), self(flat))
            return {name: choices.with_flat_values(value) for name, value in packed.items()}
        shape = tf.shape(choices)
        row = tf.broadcast_to(tf.expand_dims(tf.range(shape[0]), 1), shape)
        flat = tf.reshape(choices, [-1])
        packed = self._pack(tf.gather(ids, tf.reshape(row, [-1])), self(flat))
        static = [*choices.shape, self.max_seq_length]
        return {
            name: tf.ensure_shape(
                tf.reshape(value, tf.concat([shape, [self.max_seq_length]], axis=0)), static
            )
            for name, value in packed.items()
        }

    def _pack(self, first: tf.RaggedTensor, second: tf.RaggedTensor | None) -> dict[str, tf.Tensor]:
        """See `pack`; ids [B, (T)] of the first and second texts."""
        length = self.max_seq_length
        size = tf.cast(first.row_lengths(), tf.int32)  # [B]
        if second is None:
            first = first[:, : length - 2]
            rows = [_column(first, self.cls_id), first, _column(first, self.sep_id)]
            segment_lengths = tf.minimum(size, length - 2) + 2
        else:
            second_size = tf.cast(second.row_lengths(), tf.int32)  # [B]
            room = length - 2 - tf.cast(second_size > 0, tf.int32)
            # Of the longer the end is cut; when both are, the first keeps the odd piece.
            kept = tf.minimum(size, tf.maximum(room - second_size, (room + 1) // 2))
            second_kept = tf.minimum(second_size, room - kept)
            first = _cut(first, kept)
            second = _cut(second, second_kept)
            second_sep = tf.RaggedTensor.from_row_lengths(
                tf.fill([tf.math.count_nonzero(second_kept, dtype=tf.int32)], self.sep_id),
                tf.cast(second_kept > 0, tf.int64),
            )
            rows = [
                _column(first, self.cls_id),
                first,
                _column(first, self.sep_id),
                second,
                second_sep,
            ]
            segment_lengths = kept + 2
        ids = tf.concat(rows, axis=1)  # [B, (T)]
        used = tf.sequence_mask(ids.row_lengths(), length, tf.int32)  # [B, L]
        first_used = tf.sequence_mask(segment_lengths, length, tf.int32)  # [B, L]
        return {
            "input_ids": ids.to_tensor(default_value=self.pad_id, shape=[None, length]),  # [B, L]
            "input_mask": used,
            "segment_ids": used - first_used,
        }

    def ids_to_tokens(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the pieces of ids: int [...] to string [...]; "" for what is no line's piece."""
        return tf.gather(self._tokens, ids)

    def _with_masks(self, ids: tf.Tensor, firsts: tf.Tensor, words: Words) -> tf.Tensor:
        """Put the mask's id where words are a parsed mask; firsts [W] are their first pieces."""
        is_mask = tf.gather(words.chars, words.char_splits[:-1]) == MASK_CHARACTER  # [W]
        places = tf.boolean_mask(firsts, is_mask)
        masks = tf.fill(tf.shape(places), self.mask_id)
        return tf.tensor_scatter_nd_update(ids, tf.expand_dims(places, 1), masks)


def _document_words(words: Words) -> DocumentWords:
    assert words.space_words is not None and words.raw_bytes is not None  # noqa: S101
    begun = tf.cast(words.space_words, tf.int64)  # [N]
    # Of a text's space no word has begun; of another white space the word before has.
    is_space = tf.reduce_any(words.raw_chars[:, None] == _DOCUMENT_SPACE, axis=1)
    chars = tf.reshape(tf.where(tf.logical_not(is_space)), [-1])
    word = tf.gather(begun, chars) - 1  # of each character
    count = tf.reduce_max(tf.concat([begun, [0]], 0))
    first = tf.math.unsorted_segment_min(chars, word, count)  # [words]
    last = tf.math.unsorted_segment_max(chars, word, count)
    kept = tf.math.unsorted_segment_sum(
        tf.ones_like(words.raw_starts), tf.gather(begun, words.raw_starts) - 1, count
    )
    splits = tf.concat([tf.gather(begun, words.raw_splits[:-1]), [count]], 0)
    text_start = tf.gather(words.raw_splits, segment_ids(splits, count))
    columns = {
        "byte_starts": tf.gather(words.raw_bytes, first) - 1,
        "byte_ends": tf.gather(words.raw_bytes, last)
        + _utf8_length(tf.gather(words.raw_chars, last))
        - 1,
        "char_starts": first - text_start - 1,
        "char_ends": last - text_start,
        "surplus": kept - (last + 1 - first),
    }
    ragged = {
        name: tf.RaggedTensor.from_row_splits(tf.cast(column, tf.int32), splits, validate=False)
        for name, column in columns.items()
    }
    return DocumentWords(**ragged)


def _cut_words(words: Words) -> tf.Tensor:
    """Return the words, those that are too long made into what is none of the vocabulary's."""
    lengths = words.char_splits[1:] - words.char_splits[:-1]
    return tf.where(lengths > MAX_CHARS_PER_WORD, " ", words.strings)


def _extents(words: Words, piece: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the first and last raw characters of pieces, [P], where marks are not in order.

    Args:
        words: with offsets.
        piece: int64 [M], the piece of each character.
    """
    return (
        tf.math.segment_min(words.raw_starts, piece),
        tf.math.segment_max(words.raw_ends, piece) - 1,
    )


def _column(rows: tf.RaggedTensor, value: int) -> tf.Tensor:
    """Return one value for each row: int32 [B, 1]."""
    return tf.fill([rows.nrows(), 1], value)


def _cut(rows: tf.RaggedTensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """Return the first pieces of each row: int32 [B, (T)] and lengths int32 [B]."""
    starts = rows.row_starts()
    kept = tf.ragged.range(starts, starts + tf.cast(lengths, starts.dtype))
    return kept.with_flat_values(tf.gather(rows.flat_values, kept.flat_values))


def _lines(vocab: Mapping[str, int]) -> list[str]:
    """List pieces by their ids, "" for what has none."""
    lines = [""] * (max(vocab.values()) + 1)
    for token, number in vocab.items():
        lines[number] = token
    return lines


def wordpiece_lines(vocab: Mapping[str, int]) -> list[str]:
    """Return the lines of a vocabulary as tensorflow_text's tokenizers take them.

    No word holds a space: a line that can match nothing (empty, repeated further down, or bare ##)
    gets a name that a tokenizer takes and never finds.

    Args:
        vocab: piece -> id.
    """
    return [
        token if token not in ("", "##") else f"[line {number}]"
        for number, token in enumerate(_lines(vocab))
    ]


def string_tensor(name: str, value: Any, rank: int) -> Any:
    """Make a tensor of strings of an argument and check its type and rank."""
    if not tf.is_tensor(value):
        value = tf.convert_to_tensor(value)
    expected = ("a string", "strings [B]", "strings [B, C]")[rank]
    if value.dtype != tf.string:
        raise ValueError(f"{name}: expected {expected}, got {value.dtype.name}")
    if value.shape.rank not in (rank, None):
        raise ValueError(f"{name}: expected {expected}, got the shape {value.shape}")
    return value


def _utf8_length(codepoints: tf.Tensor) -> tf.Tensor:
    """Count the bytes that code points take: int32 [n] to int64 [n]."""
    bounds = tf.constant([0x80, 0x800, 0x10000])
    return 1 + tf.searchsorted(bounds, codepoints, "right", out_type=tf.int64)
