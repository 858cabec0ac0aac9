"""The tokenizer inside the TensorFlow graph: a model that takes plain strings.

`TextToIds` gives the ids of `bert_tf.tokenization.FullTokenizer`, as operations that a SavedModel
carries with it. Which characters vanish, are spaces, marks or punctuation is asked of Python's
`unicodedata` once and written into the graph; lower-casing and NFD are ICU's. The two can follow
different versions of Unicode, so that characters which are new in the later one may differ.

A SavedModel made from it needs the operations of tensorflow_text: a process that loads it must
import tensorflow_text first. No other module of this package uses that library.

Shape legend: B texts, W words, T pieces, L max_seq_length.
"""

import functools
import os
import sys
import unicodedata
from collections.abc import Iterable

import tensorflow as tf
import tensorflow_text as tf_text

from bert_tf import tokenization

_MAX_BYTES_PER_WORD = 2**30  # words are measured in characters here, as the original does


def _regex_class(codepoints: Iterable[int]) -> str:
    """Regular expression for one character of a set, given in ascending order."""
    ranges: list[list[int]] = []
    for codepoint in codepoints:
        if ranges and ranges[-1][1] == codepoint - 1:
            ranges[-1][1] = codepoint
        else:
            ranges.append([codepoint, codepoint])
    return "[" + "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in ranges) + "]"


@functools.cache
def _regexes() -> dict[str, str]:
    """What the tables of the tokenizer say of all of Unicode, as regular expressions."""
    kinds: dict[str, list[int]] = {"drop": [], "space": [], "alone": [], "mark": [], "split": []}
    for codepoint in range(sys.maxunicode + 1):
        if 0xD800 <= codepoint <= 0xDFFF:
            continue  # UTF-8 has no surrogates
        char = chr(codepoint)
        cleaned = tokenization._clean(codepoint)
        if cleaned is None:
            kinds["drop"].append(codepoint)
        elif char.isspace():
            kinds["space"].append(codepoint)
        elif cleaned != codepoint:
            kinds["alone"].append(codepoint)
        if unicodedata.category(char) == "Mn":
            kinds["mark"].append(codepoint)
        if tokenization._is_punctuation(char):
            kinds["split"].append(codepoint)
    regexes = {kind: _regex_class(codepoints) for kind, codepoints in kinds.items()}
    return regexes | {kind: f"({regexes[kind]})" for kind in ("alone", "split")}


class TextToIds(tf.Module):
    """Strings to ids inside the graph, equal to `FullTokenizer`.

    The vocabulary is part of the graph: an exported model needs no file.

    Args:
      vocab_file: path of a vocabulary, one piece a line, with BERT's special tokens.
      do_lower_case: True for uncased models, False for cased and Chinese ones.
      max_seq_length: L, the length that `pack` gives.
      parse_mask: make the literal text `[MASK]` the mask's id. Nothing else is ever parsed.

    Raises:
      FileNotFoundError, ValueError: the vocabulary cannot be read or lacks a special token, or
        max_seq_length is less than 3.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        do_lower_case: bool = True,
        max_seq_length: int = 128,
        parse_mask: bool = False,
    ):
        super().__init__(name="text_to_ids")
        if max_seq_length < 3:
            raise ValueError(f"max_seq_length must be at least 3, got {max_seq_length}")
        vocab = tokenization.load_vocab(vocab_file)
        tokenization.check_special_tokens(vocab, vocab_file)
        self.do_lower_case = do_lower_case
        self.max_seq_length = max_seq_length
        self.parse_mask = parse_mask
        self.cls_id = vocab[tokenization.CLS_TOKEN]
        self.sep_id = vocab[tokenization.SEP_TOKEN]
        self.pad_id = vocab[tokenization.PAD_TOKEN]
        self.mask_id = vocab[tokenization.MASK_TOKEN]
        self.vocab_size = max(vocab.values()) + 1  # lines of the file
        tokens = [""] * self.vocab_size
        for token, number in vocab.items():
            tokens[number] = token
        self._tokens = tf.constant(tokens)
        # No word holds a space: a line that can match nothing (empty, repeated further down, or
        # bare ##) gets a name that the tokenizer takes and never finds.
        self._tokenizer = tf_text.FastWordpieceTokenizer(
            [
                token if token not in ("", "##") else f"[line {number}]"
                for number, token in enumerate(tokens)
            ],
            suffix_indicator="##",
            max_bytes_per_word=_MAX_BYTES_PER_WORD,
            token_out_type=tf.int32,
            unknown_token=tokenization.UNK_TOKEN,
            no_pretokenization=True,
        )

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Return the ids of the texts' pieces, special tokens not added.

        Args:
          texts: string [B], UTF-8; bytes that are not UTF-8 are dropped.

        Returns:
          int32 ragged [B, (T)].
        """
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
        if not self.parse_mask:
            return self._plain_ids(texts)
        parts = tf.strings.split(texts, tokenization.MASK_TOKEN)  # [B, (masks + 1)]
        ids = self._plain_ids(parts.flat_values)
        mask = tf.fill([ids.nrows(), 1], self.mask_id)
        ids = tf.concat([ids, mask], axis=1)  # a mask after each part: one too many in each text
        splits = tf.gather(ids.row_splits, parts.row_splits)
        return tf.RaggedTensor.from_row_splits(ids.flat_values, splits)[:, :-1]  # [B, (T)]

    def pack(self, texts: tf.Tensor, second_texts: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Return the encoder's inputs: [CLS] A [SEP], or [CLS] A [SEP] B [SEP], padded.

        Longer texts are cut as `tokenization.truncate_pair` does. A second text of which no piece
        is left gets no [SEP], as in `tokenization.pack_pair`.

        Args:
          texts: string [B], the first texts.
          second_texts: string [B], if there are any.

        Returns:
          "input_ids", "input_mask" and "segment_ids", int32 [B, L].
        """
        length = self.max_seq_length
        first = self(texts)
        size = tf.cast(first.row_lengths(), tf.int32)  # [B]
        if second_texts is None:
            first = first[:, : length - 2]
            rows = [self._column(first, self.cls_id), first, self._column(first, self.sep_id)]
            segment_lengths = tf.minimum(size, length - 2) + 2
        else:
            second = self(second_texts)
            second_size = tf.cast(second.row_lengths(), tf.int32)  # [B]
            room = length - 2 - tf.cast(second_size > 0, tf.int32)
            # Of the longer the end is cut; when both are, the first keeps the odd piece.
            kept = tf.minimum(size, tf.maximum(room - second_size, (room + 1) // 2))
            second_kept = tf.minimum(second_size, room - kept)
            first = self._cut(first, kept)
            second = self._cut(second, second_kept)
            second_sep = tf.RaggedTensor.from_row_lengths(
                tf.fill([tf.math.count_nonzero(second_kept, dtype=tf.int32)], self.sep_id),
                tf.cast(second_kept > 0, tf.int64),
            )
            rows = [
                self._column(first, self.cls_id),
                first,
                self._column(first, self.sep_id),
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

    def _plain_ids(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Ids of valid UTF-8, in which nothing is parsed: string [B] to int32 [B, (T)]."""
        words = self._words(texts)  # [B, (W)]
        characters = tf.strings.length(words.flat_values, unit="UTF8_CHAR")
        # A word with a space inside is none of the vocabulary's, so the piece is [UNK].
        flat = tf.where(characters > tokenization.MAX_CHARS_PER_WORD, " ", words.flat_values)
        pieces = words.with_flat_values(self._tokenizer.tokenize(flat))  # [B, (W), (T)]
        return pieces.merge_dims(1, 2)

    def _words(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """What BasicTokenizer does: string [B] to string [B, (W)]."""
        replace, regexes = tf.strings.regex_replace, _regexes()
        texts = replace(texts, regexes["drop"], "")
        texts = replace(texts, regexes["space"], " ")
        texts = replace(texts, regexes["alone"], r" \1 ")
        if self.do_lower_case:
            texts = tf.strings.lower(texts, encoding="utf-8")
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = replace(texts, regexes["mark"], "")
        texts = replace(texts, regexes["split"], r" \1 ")
        return tf.strings.split(texts)

    @staticmethod
    def _column(rows: tf.RaggedTensor, value: int) -> tf.Tensor:
        """One value for each row: int32 [B, 1]."""
        return tf.fill([rows.nrows(), 1], value)

    @staticmethod
    def _cut(rows: tf.RaggedTensor, lengths: tf.Tensor) -> tf.RaggedTensor:
        """The first pieces of each row: int32 [B, (T)] and lengths int32 [B]."""
        positions = tf.ragged.range(tf.cast(rows.row_lengths(), tf.int32))  # [B, (T)]
        return tf.ragged.boolean_mask(rows, positions < lengths[:, tf.newaxis])
