"""Question answering as a function of strings: windows, model and best spans inside the graph.

The answers are those of `tasks.answer_decoding.decode_answers`, whose rules are the original's. One
thing differs: where there is no span at all the answer is empty, not the word "empty".

Shapes: B questions, N windows of all contexts, L pieces of the longest window, K n_best_size, S
spans that count, A answers of all questions.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from bert_tf.serving.served_model import ServedModel, function, strings
from bert_tf.serving.windows import Windows, run_in_parts, windows_in_graph
from bert_tf.tasks.answer_decoding import NULL_ODDS_WITHOUT_SPAN
from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tokenization.graph_tokenizer import DocumentWords, PiecesWithOffsets, TextToIds

_LOWEST = -1e30  # a logit of padding
# So many spans of a question are turned into text, of which some may be equal; the original goes on
# until it has enough, which a long text that repeats itself can tell.
_TEXTS_PER_ANSWER = 20


class _Spans(NamedTuple):
    """Spans that count, ordered by question and from best to worst.

    Attributes:
        rows: int32 [S], the question of each.
        first: int32 [S], index of the first piece among those of all contexts.
        last: int32 [S], of the last piece.
        scores: float64 [S].
    """

    rows: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor
    scores: tf.Tensor


class QuestionAnswerer(ServedModel):
    """The answer to a question, as a span of a context of any length.

    Args:
        model: as `task_models.bert_span_labeler` makes it.
        text_to_ids: the tokenizer; its max_seq_length is the rule's.
        rule: how contexts are cut into windows.
        n_best_size: K: how many starts, ends and answers are looked at.
        max_answer_length: longest answer, in pieces.
        version_2_with_negative: whether there may be no answer, which then is "".
        null_score_diff_threshold: no answer if the null score is greater.

    Raises:
        ValueError: as for `ServedModel`; or a count is below 1.
    """

    task = "question_answering"
    example = {
        "question": ["Who wrote it?"],
        "context": ["The paper was written by Jacob Devlin and others in 2018."],
    }
    descriptions = {
        "question": "question",
        "context": "text of any length that may hold the answer",
        "answer": "the answer, in the context's own writing; empty for none",
        "byte_start": "where it begins in the UTF-8 of the context",
        "byte_end": "one past its last byte",
        "char_start": "where it begins, in Unicode code points",
        "char_end": "one past its last code point",
        "score": "its probability among the n best",
        "null_score": "score of no answer less that of the best span; greater means less sure",
        "n_best_answers": "the best spans, best first, then empty",
        "n_best_scores": "their probabilities",
        "n_best_char_start": "where each begins, in Unicode code points",
        "n_best_char_end": "one past the last code point of each",
        "n_best_count": "how many there are",
    }

    def __init__(
        self,
        model: keras.Model,
        text_to_ids: TextToIds,
        rule: WindowRule | None = None,
        *,
        n_best_size: int = 20,
        max_answer_length: int = 30,
        version_2_with_negative: bool = False,
        null_score_diff_threshold: float = 0.0,
    ):
        super().__init__(model, text_to_ids)
        self._rule = rule or WindowRule(text_to_ids.max_seq_length)
        if self._rule.max_seq_length != text_to_ids.max_seq_length:
            raise ValueError(
                f"rule: expected max_seq_length {text_to_ids.max_seq_length} as the tokenizer's, "
                f"got {self._rule.max_seq_length}"
            )
        for name, value in (("n_best_size", n_best_size), ("max_answer_length", max_answer_length)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.n_best_size = n_best_size
        self.max_answer_length = max_answer_length
        self.version_2_with_negative = version_2_with_negative
        self.null_score_diff_threshold = null_score_diff_threshold

    @function(input_signature=strings("question", "context"))
    def answer(self, question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answer questions.

        Args:
            question: string [B].
            context: string [B].

        Returns:
            As `descriptions` say: "answer" string [B]; "byte_start", "byte_end", "char_start",
            "char_end" int32 [B]; "score", "null_score" float32 [B]; "n_best_answers" string,
            "n_best_scores" float32, "n_best_char_start", "n_best_char_end" int32 [B, K];
            "n_best_count" int32 [B].
        """
        pieces, words = self.text_to_ids.tokenize_documents(context)
        windows, starts, ends = self._logits(question, pieces)
        spans = self._spans(windows, starts, ends, tf.size(question))
        null = tf.cast(starts[:, 0], tf.float64) + tf.cast(ends[:, 0], tf.float64)
        null = tf.math.segment_min(null, windows.rows)  # [B]
        return self._answers(spans, null, context, pieces, words)

    @function(input_signature=strings("question", "context"))
    def span_pieces(self, question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return how contexts are cut into pieces, and how likely the answer begins and ends there.

        Args:
            question: string [B].
            context: string [B].

        Returns:
            As `pieces`; and "start_scores" and "end_scores" float32 [B, T], probabilities among the
            pieces of a context, of each the logit in the window that shows most around it.
        """
        pieces = self.text_to_ids.tokenize_with_offsets(context)
        windows, starts, ends = self._logits(question, pieces)
        place = tf.boolean_mask(windows.pieces, windows.is_max_context)[:, None]

        def scores(logits: tf.Tensor) -> tf.Tensor:
            counts = tf.boolean_mask(logits, windows.is_max_context)
            of_pieces = tf.scatter_nd(place, counts, [tf.size(pieces.ids.flat_values)])
            table = pieces.ids.with_flat_values(of_pieces).to_tensor(_LOWEST)
            return tf.where(table > _LOWEST, tf.nn.softmax(table), 0.0)

        return {
            **self._shown(pieces),
            "start_scores": scores(starts),
            "end_scores": scores(ends),
        }

    def signatures(self) -> dict[str, Any]:
        """Return the SavedModel's signatures, as for `ServedModel`, and `span_pieces`."""
        return {**super().signatures(), "span_pieces": self.span_pieces}

    def _logits(
        self, question: tf.Tensor, pieces: PiecesWithOffsets
    ) -> tuple[Windows, tf.Tensor, tf.Tensor]:
        """Return the windows, and the logits of their positions as start and as end, [N, L]."""
        windows = self.cut_windows(question, pieces)
        logits = run_in_parts(self.run, windows.inputs, self.output_shapes)
        starts, ends = (
            tf.where(windows.inputs["input_mask"] > 0, logits[f"{name}_logits"], _LOWEST)
            for name in ("start", "end")
        )
        return windows, starts, ends

    def cut_windows(self, question: tf.Tensor, pieces: PiecesWithOffsets) -> Windows:
        """Cut contexts into windows, each behind its question.

        Args:
            question: string [B].
            pieces: of the contexts.
        """
        ids, rule = self.text_to_ids, self._rule
        query = ids(question)[:, : rule.max_query_length]
        cls, sep = (tf.fill([query.nrows(), 1], value) for value in (ids.cls_id, ids.sep_id))
        return windows_in_graph(
            pieces.ids,
            tf.concat([cls, query, sep], axis=1),
            sep_id=ids.sep_id,
            pad_id=ids.pad_id,
            max_seq_length=rule.max_seq_length,
            stride=rule.doc_stride,
            segment=1,
        )

    def _spans(
        self, windows: Windows, starts: tf.Tensor, ends: tf.Tensor, count: tf.Tensor
    ) -> _Spans:
        """Find the best spans of `count` questions in logits [N, L]."""
        k = tf.minimum(self.n_best_size, tf.shape(starts)[1])
        start_logits, start = tf.math.top_k(starts, k)  # [N, k], of equal ones the first first
        end_logits, end = tf.math.top_k(ends, k)
        is_start = tf.gather(windows.is_max_context, start, batch_dims=1)
        is_end = tf.gather(windows.shows, end, batch_dims=1)
        length = 1 + end[:, None, :] - start[:, :, None]  # [N, k, k]
        counts = is_start[:, :, None] & is_end[:, None, :]
        counts &= (length >= 1) & (length <= self.max_answer_length)
        # In float64 as in the original.
        scores = tf.cast(start_logits, tf.float64)[:, :, None]
        scores += tf.cast(end_logits, tf.float64)[:, None, :]
        spans = tf.where(counts)  # [S, 3]: by window, start and end, each best first
        scores = tf.gather_nd(scores, spans)
        order = tf.argsort(scores, direction="DESCENDING", stable=True)
        row = tf.gather(windows.rows, tf.gather(spans[:, 0], order))
        order = tf.gather(order, tf.argsort(row, stable=True))
        spans, scores = tf.gather(spans, order), tf.gather(scores, order)
        window = spans[:, 0]
        row = tf.gather(windows.rows, window)
        is_kept = _rank(row, count) < _TEXTS_PER_ANSWER * self.n_best_size
        window = tf.cast(window, tf.int32)
        first = tf.gather_nd(start, spans[:, :2])
        last = tf.gather_nd(end, tf.stack([spans[:, 0], spans[:, 2]], axis=1))
        first, last = (
            tf.gather_nd(windows.pieces, tf.stack([window, place], axis=1))
            for place in (first, last)
        )
        values = (row, first, last, scores)
        return _Spans(*(tf.boolean_mask(value, is_kept) for value in values))

    def _answers(
        self,
        spans: _Spans,
        null: tf.Tensor,
        context: tf.Tensor,
        pieces: PiecesWithOffsets,
        words: DocumentWords,
    ) -> dict[str, tf.Tensor]:
        count = tf.size(context)
        places = _places(spans, pieces, words, self.text_to_ids.unk_id)
        texts = tf.strings.substr(
            tf.gather(context, spans.rows),
            places["byte_start"],
            places["byte_end"] - places["byte_start"],
        )
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
        # The original joins the words by single spaces.
        texts = tf.strings.regex_replace(texts, "[ \\t\\r\\n\\x{202f}]+", " ")

        firsts, rows, scores = self._best(spans, texts, null, count)
        best_count = tf.math.unsorted_segment_sum(tf.ones_like(rows), rows, count)  # [B]

        def table(values: tf.Tensor, default: Any) -> tf.Tensor:  # [A] to [B, K]
            ragged = tf.RaggedTensor.from_row_lengths(values, best_count)
            return ragged.to_tensor(default, shape=[None, self.n_best_size])

        low = tf.constant(_LOWEST, tf.float64)
        logits = table(scores, low)
        if self.version_2_with_negative:
            logits = tf.concat([logits, null[:, None]], axis=1)
        # A question without any span has nothing to sum over.
        probabilities = tf.where(logits > low, tf.nn.softmax(logits), 0.0)
        best = logits[:, 0]
        null_score = tf.where(best_count > 0, null - best, NULL_ODDS_WITHOUT_SPAN)
        has_answer = best_count > 0
        score = probabilities[:, 0]
        if self.version_2_with_negative:
            has_answer &= null_score <= self.null_score_diff_threshold
            score = tf.where(has_answer, score, probabilities[:, -1])
        n_best = {name: table(tf.gather(value, firsts), 0) for name, value in places.items()}
        answers = table(tf.gather(texts, firsts), "")
        return {
            "answer": tf.where(has_answer, answers[:, 0], ""),
            **{name: tf.where(has_answer, value[:, 0], 0) for name, value in n_best.items()},
            "score": tf.cast(score, tf.float32),
            "null_score": tf.cast(null_score, tf.float32),
            "n_best_answers": answers,
            "n_best_scores": tf.cast(probabilities[:, : self.n_best_size], tf.float32),
            "n_best_char_start": n_best["char_start"],
            "n_best_char_end": n_best["char_end"],
            "n_best_count": best_count,
        }

    def _best(
        self, spans: _Spans, texts: tf.Tensor, null: tf.Tensor, count: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Choose the answers of each question: places among the spans, rows and scores, [A]."""
        # Of equal texts of a question the best counts.
        keys = tf.strings.join([tf.strings.as_string(spans.rows), texts], " ")
        unique, number = tf.unique(keys)
        index = tf.range(tf.size(keys))
        firsts = tf.math.unsorted_segment_min(index, number, tf.size(unique))
        rows = tf.gather(spans.rows, firsts)
        scores = tf.gather(spans.scores, firsts)
        size = self.n_best_size
        if self.version_2_with_negative:  # no answer is one of the best, or comes after them
            above = tf.cast(scores >= tf.gather(null, rows), tf.int32)
            above = tf.math.unsorted_segment_sum(above, rows, count)
            size = tf.gather(tf.where(above >= size, size, size - 1), rows)
        is_kept = _rank(rows, count) < size
        return tuple(tf.boolean_mask(value, is_kept) for value in (firsts, rows, scores))


def _rank(rows: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Place of each among those of its row, int32 [S]; rows ascend."""
    per_row = tf.math.unsorted_segment_sum(tf.ones_like(rows), rows, count)
    return tf.range(tf.size(rows)) - tf.gather(tf.cumsum(per_row, exclusive=True), rows)


def _places(
    spans: _Spans, pieces: PiecesWithOffsets, words: DocumentWords, unk_id: int
) -> dict[str, tf.Tensor]:
    """Where spans lie in their contexts: name -> int32 [S].

    A span is its pieces' characters, if characters of its words and of their pieces correspond one
    to one; else it is the words.

    Reference: google-research/bert run_squad.py, get_final_text.
    """
    starts = tf.cast(words.surplus.row_starts(), tf.int32)
    index = pieces.space_word_index.flat_values
    first_word, last_word = (  # among those of all contexts
        tf.gather(starts, spans.rows) + tf.gather(index, piece)
        for piece in (spans.first, spans.last)
    )
    unknown = _sum_until(tf.cast(pieces.ids.flat_values == unk_id, tf.int32))
    surplus = _sum_until(words.surplus.flat_values)
    differs = tf.gather(surplus, last_word + 1) != tf.gather(surplus, first_word)
    differs |= tf.gather(unknown, spans.last + 1) != tf.gather(unknown, spans.first)
    places = {}
    for unit in ("byte", "char"):
        starts, ends = f"{unit}_starts", f"{unit}_ends"
        places[f"{unit}_start"] = tf.where(
            differs,
            tf.gather(getattr(words, starts).flat_values, first_word),
            tf.gather(getattr(pieces, starts).flat_values, spans.first),
        )
        places[f"{unit}_end"] = tf.where(
            differs,
            tf.gather(getattr(words, ends).flat_values, last_word),
            tf.gather(getattr(pieces, ends).flat_values, spans.last),
        )
    return places


def _sum_until(values: tf.Tensor) -> tf.Tensor:
    """Sum of the values before each place: [n] to [n + 1]."""
    return tf.concat([[0], tf.cumsum(values)], axis=0)
