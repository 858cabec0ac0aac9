"""Named entities as a function of strings: words, tags and chunks inside the graph.

Shapes: B texts, N windows of all texts, L pieces of the longest window, K labels, P pieces and W
words of all texts, E entities of the text with most.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from bert_tf.serving.options import WORDS
from bert_tf.serving.served_model import ServedModel, function, strings
from bert_tf.serving.text_models import checked_labels
from bert_tf.serving.windows import Windows, run_in_parts, windows_in_graph
from bert_tf.tasks.tag_schemes import check_tags
from bert_tf.tokenization.characters import is_punctuation
from bert_tf.tokenization.graph_tokenizer import PiecesWithOffsets, TextToIds

# What conlleval asks of a form: whether a chunk always begins there, and whether it always ends.
_BEGINS, _ENDS = "BS", "ES"


class EntityTagger(ServedModel):
    """The named entities of a text of any length.

    A tag is that of the word's first piece, as in training. Words are what white space parts, less
    the punctuation around them, of which each mark is a word: "(Paris)." has four and "Jean-Luc"
    one. For texts whose words stand apart already, as CoNLL's, white space alone can part them.
    Chunks of tags are conlleval's, so that tags need not be well-formed; what a label means follows
    from all of them together (`bert_tf.tasks.tag_schemes`).

    Args:
        model: as `task_models.bert_token_classifier` makes it.
        text_to_ids: the tokenizer; its max_seq_length is that of a window. Windows of a longer text
            begin half a window apart, and a word counts where most of its context shows.
        labels: names of the K labels, such as O, B-PER, I-PER, or O, PER, or NOUN, VERB.
        words: "punctuation" or "white_space": what parts the words.

    Raises:
        ValueError: as for `ServedModel`; or the labels are not as many as the model's, or do not go
            together.
    """

    task = "token_classification"
    example = {"text": ["Jean-Luc lives in Paris."]}
    descriptions = {
        "text": "text of any length",
        "entity_text": "entities in order, in the text's own writing, then empty",
        "entity_type": "their types, such as PER",
        "entity_byte_start": "where each begins in the UTF-8 of the text",
        "entity_byte_end": "one past its last byte",
        "entity_char_start": "where each begins, in Unicode code points",
        "entity_char_end": "one past its last code point",
        "entity_score": "mean probability of its words' tags",
        "entity_count": "how many there are",
    }

    def __init__(
        self,
        model: keras.Model,
        text_to_ids: TextToIds,
        labels: Sequence[str],
        *,
        words: str = "punctuation",
    ):
        super().__init__(model, text_to_ids)
        if words not in WORDS:
            raise ValueError(f"words: expected one of {', '.join(WORDS)}, got {words!r}")
        checked_labels(labels, model)
        self.words = words
        self.label_names = tuple(labels)
        scheme = check_tags(labels, "labels")
        forms, types = zip(*map(scheme.read, labels), strict=True)
        names = sorted(set(types))
        self._types = tf.constant(names)
        # Of each label: its type, and whether it is outside, begins a chunk, ends one.
        self._is_mark = tf.constant(_marks(text_to_ids))
        self._type_of = tf.constant([names.index(name) for name in types])
        self._is_outside = tf.constant([form == "O" for form in forms])
        self._begins = tf.constant([form in _BEGINS for form in forms])
        self._ends = tf.constant([form in _ENDS for form in forms])

    @function(input_signature=strings("text"))
    def answer(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Find the entities.

        Args:
            text: string [B].

        Returns:
            As `descriptions` say: "entity_text" and "entity_type" string [B, E];
            "entity_byte_start", "entity_byte_end", "entity_char_start", "entity_char_end" int32
            [B, E]; "entity_score" float32 [B, E]; "entity_count" int32 [B].
        """
        pieces = self.text_to_ids.tokenize_with_offsets(text)
        probabilities = self._probabilities(pieces)  # [P, K]
        count = tf.size(text)
        piece_rows = tf.cast(pieces.ids.value_rowids(), tf.int32)
        first, last = self.word_bounds(pieces, piece_rows)  # [W]
        label = tf.argmax(tf.gather(probabilities, first), axis=-1, output_type=tf.int32)
        score = tf.reduce_max(tf.gather(probabilities, first), axis=-1)
        rows = tf.gather(piece_rows, first)
        begins, inside = self._chunks(label, rows)

        chunk = tf.cumsum(tf.cast(begins, tf.int32)) - 1  # of each word
        chunk = tf.boolean_mask(chunk, inside)
        words = tf.boolean_mask(tf.range(tf.size(label)), inside)
        total = tf.reduce_sum(tf.cast(begins, tf.int32))
        first_word = tf.math.unsorted_segment_min(words, chunk, total)
        last_word = tf.math.unsorted_segment_max(words, chunk, total)
        first, last = tf.gather(first, first_word), tf.gather(last, last_word)
        rows = tf.gather(rows, first_word)
        start = tf.gather(pieces.byte_starts.flat_values, first)
        end = tf.gather(pieces.byte_ends.flat_values, last)
        columns = {
            "entity_text": tf.strings.substr(tf.gather(text, rows), start, end - start),
            "entity_type": tf.gather(
                self._types, tf.gather(self._type_of, tf.gather(label, first_word))
            ),
            "entity_byte_start": start,
            "entity_byte_end": end,
            "entity_char_start": tf.gather(pieces.char_starts.flat_values, first),
            "entity_char_end": tf.gather(pieces.char_ends.flat_values, last),
            "entity_score": tf.math.unsorted_segment_mean(
                tf.boolean_mask(score, inside), chunk, total
            ),
        }
        counts = tf.math.unsorted_segment_sum(tf.ones_like(rows), rows, count)
        table = {
            name: tf.RaggedTensor.from_row_lengths(column, counts).to_tensor()
            for name, column in columns.items()
        }
        return {**table, "entity_count": counts}

    @function(input_signature=strings("text"))
    def pieces(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return how texts are cut into pieces, as for `ServedModel`, and the label of each.

        Args:
            text: string [B].

        Returns:
            Besides, "labels" string and "scores" float32 [B, T]: the likeliest label of each piece
            and its probability. That of a word's first piece counts.
        """
        pieces = self.text_to_ids.tokenize_with_offsets(text)
        probabilities = self._probabilities(pieces)  # [P, K]
        labels = tf.gather(tf.constant(self.label_names), tf.argmax(probabilities, axis=-1))
        scores = tf.reduce_max(probabilities, axis=-1)
        return {
            **self._shown(pieces),
            "labels": pieces.ids.with_flat_values(labels).to_tensor(""),
            "scores": pieces.ids.with_flat_values(scores).to_tensor(),
        }

    def cut_windows(self, pieces: PiecesWithOffsets) -> Windows:
        """Cut texts into windows, of which each begins half a window after the one before."""
        ids = self.text_to_ids
        return windows_in_graph(
            pieces.ids,
            tf.RaggedTensor.from_tensor(tf.fill([pieces.ids.nrows(), 1], ids.cls_id)),
            sep_id=ids.sep_id,
            pad_id=ids.pad_id,
            max_seq_length=ids.max_seq_length,
            stride=max(1, (ids.max_seq_length - 2) // 2),
            segment=0,
        )

    def _probabilities(self, pieces: PiecesWithOffsets) -> tf.Tensor:
        """Probabilities of the labels of each piece, in the window where most context shows."""
        windows = self.cut_windows(pieces)
        logits = run_in_parts(self.run, windows.inputs, self.output_shapes)["logits"]  # [N, L, K]
        counts = tf.boolean_mask(logits, windows.is_max_context)  # [P, K]
        place = tf.boolean_mask(windows.pieces, windows.is_max_context)
        shape = [tf.size(pieces.ids.flat_values), logits.shape[-1]]
        return tf.nn.softmax(tf.scatter_nd(place[:, None], counts, shape))

    def word_bounds(
        self, pieces: PiecesWithOffsets, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the first and last piece of each word, int32 [W]; rows int32 [P] are its texts."""
        space_word = pieces.space_word_index.flat_values
        begins = _changes(rows) | _changes(space_word)  # [P], of what white space parts
        if self.words == "punctuation":
            # A mark at an edge is a word by itself, and what is left of it or right of it another.
            is_mark = tf.gather(self._is_mark, pieces.ids.flat_values)
            chunk = tf.cumsum(tf.cast(begins, tf.int32)) - 1
            total = tf.reduce_sum(tf.cast(begins, tf.int32))
            place = tf.range(tf.size(rows))
            plain = tf.logical_not(is_mark)
            inner = tf.boolean_mask(place, plain)
            inner_chunk = tf.boolean_mask(chunk, plain)
            low = tf.math.unsorted_segment_min(inner, inner_chunk, total)
            high = tf.math.unsorted_segment_max(inner, inner_chunk, total)
            outside = (place < tf.gather(low, chunk)) | (place > tf.gather(high, chunk))
            after = tf.concat([[False], outside[:-1]], axis=0)[: tf.size(rows)]
            begins |= outside | after
        first = tf.reshape(tf.where(begins), [-1])
        last = tf.concat([first[1:], [tf.size(rows, tf.int64)]], axis=0)[: tf.size(first)] - 1
        return tf.cast(first, tf.int32), tf.cast(last, tf.int32)

    def _chunks(self, label: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Whether each word begins a chunk, and whether it is in one: bool [W].

        Reference: `metrics.chunks`.
        """
        outside = tf.gather(self._is_outside, label)
        kind = tf.gather(self._type_of, label)
        ends = tf.gather(self._ends, label) | outside
        after_end = tf.concat([[True], ends[:-1]], axis=0)[: tf.size(label)]
        begins = after_end | tf.gather(self._begins, label) | _changes(rows) | _changes(kind)
        inside = tf.logical_not(outside)
        return begins & inside, inside


def _marks(text_to_ids: TextToIds) -> np.ndarray:
    """Whether each piece of the vocabulary is a punctuation mark, bool [V]."""
    is_mark = np.zeros(text_to_ids.vocab_size, np.bool_)
    for piece, number in text_to_ids.vocab.items():
        is_mark[number] = len(piece) == 1 and is_punctuation(piece)
    return is_mark


def _changes(values: tf.Tensor) -> tf.Tensor:
    """Where a value differs from the one before, and at the first: int32 [n] to bool [n]."""
    return tf.concat([[True], values[1:] != values[:-1]], axis=0)[: tf.size(values)]
