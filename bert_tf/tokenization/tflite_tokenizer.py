"""The tokenizer of TFLite files that take strings.

TensorFlow's wheel runs a TFLite file with TFLite's own operations and those that tensorflow_text
registers, but no others of TensorFlow (https://github.com/google-ai-edge/LiteRT/issues/6458), which
`preprocessing.TextToIds` is made of. So here tensorflow_text's FastBertTokenizer stands in for it.
It gives the same pieces for ordinary text, and others for

- compatibility characters of uncased models, which it also decomposes: superscripts, fractions,
  ligatures, full-width forms, ß;
- control characters;
- a capital sigma at the end of a word, which the original lower-cases to ς;
- bytes that are not UTF-8, which the original drops;
- words of more than 200 bytes, where the original counts characters.

Shape legend: B texts, T pieces of the longest, L length of the longest packed text.
"""

from __future__ import annotations

import tensorflow as tf
import tensorflow_text as tf_text

from bert_tf.tokenization.graph_tokenizer import TextToIds, wordpiece_lines
from bert_tf.tokenization.vocabulary import UNK_TOKEN
from bert_tf.tokenization.wordpiece import MAX_CHARS_PER_WORD


class LiteTextToIds(tf.Module):
    """Strings to the encoder's inputs, of operations that TFLite has.

    Args:
        text_to_ids: the tokenizer that it stands in for.

    Raises:
        ValueError: it strips accents without lower-casing, or the other way round.
    """

    def __init__(self, text_to_ids: TextToIds):
        if text_to_ids.strip_accents != text_to_ids.do_lower_case:
            raise ValueError(
                "strip_accents: a TFLite file that takes strings does both lower-casing and "
                f"stripping of accents, or neither; got do_lower_case {text_to_ids.do_lower_case} "
                f"and strip_accents {text_to_ids.strip_accents}; export with the inputs as ids"
            )
        super().__init__(name="lite_text_to_ids")
        self._of = text_to_ids
        self._tokenizer = tf_text.FastBertTokenizer(
            wordpiece_lines(text_to_ids.vocab),
            suffix_indicator="##",
            max_bytes_per_word=MAX_CHARS_PER_WORD,
            token_out_type=tf.int32,
            unknown_token=UNK_TOKEN,
            lower_case_nfd_strip_accents=text_to_ids.do_lower_case,
        )

    def pack(self, text: tf.Tensor, text_b: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Return what `TextToIds.pack` does, no longer than the longest needs.

        Args:
            text: string [B].
            text_b: string [B], if there are any.

        Returns:
            "input_ids", "input_mask" and "segment_ids", int32 [B, L].
        """
        ids, length = self._of, self._of.max_seq_length
        first, size = self._pieces(text)  # [B, T], [B, 1]
        if text_b is None:
            size = tf.minimum(size, length - 2)
            longest = tf.reduce_max(size) + 2
            place = tf.expand_dims(tf.range(longest), 0)  # [1, L]
            packed = _at(first, place - 1)
            packed = tf.where(place == 0, ids.cls_id, packed)
            packed = tf.where(place == size + 1, ids.sep_id, packed)
            used = place < size + 2
            segment = tf.zeros_like(packed)
        else:
            second, second_size = self._pieces(text_b)
            has_second = tf.cast(second_size > 0, tf.int32)
            room = length - 2 - has_second
            kept = tf.minimum(size, tf.maximum(room - second_size, (room + 1) // 2))
            second_kept = tf.minimum(second_size, room - kept)
            # A second text of which nothing is left gets no [SEP].
            total = kept + 2 + second_kept + tf.cast(second_kept > 0, tf.int32)
            place = tf.expand_dims(tf.range(tf.reduce_max(total)), 0)
            packed = tf.where(place < kept + 1, _at(first, place - 1), ids.sep_id)
            packed = tf.where(place == 0, ids.cls_id, packed)
            in_second = place - kept - 2
            is_second = (in_second >= 0) & (in_second < second_kept)
            packed = tf.where(is_second, _at(second, in_second), packed)
            used = place < total
            segment = tf.cast(used & (in_second >= 0), tf.int32)
        return {
            "input_ids": tf.where(used, packed, ids.pad_id),
            "input_mask": tf.cast(used, tf.int32),
            "segment_ids": segment,
        }

    def _pieces(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Make ids [B, T] with at least one column, and how many each text has, [B, 1]."""
        pieces = self._tokenizer.tokenize(text).merge_dims(1, -1)
        sizes = tf.cast(tf.expand_dims(pieces.row_lengths(), 1), tf.int32)
        dense = pieces.to_tensor()
        return tf.concat([dense, tf.zeros_like(sizes)], axis=1), sizes


def _at(rows: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Take elements of rows [B, T] at places [B or 1, L], the nearest one where there is none."""
    places = tf.clip_by_value(places, 0, tf.shape(rows)[1] - 1)
    places += tf.zeros_like(rows[:, :1])  # [B, L]
    return tf.gather(rows, places, batch_dims=1)
