"""Question answering by spans: documents cut into windows, and logits read back as answers.

A document is cut into words at white space and the words into pieces; the pieces go, with the
question before them, into windows that overlap. Each window gets a start and an end logit per
token, and the best spans of all windows of a question are projected back onto the document's own
text. Everything here is as in google-research/bert run_squad.py, ties included.

Only NumPy is needed: data preparation and serving use this module without TensorFlow.

Shapes: N windows, L max_seq_length, T pieces of a document, K n_best_size.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bert_tf.files import write_json
from bert_tf.tasks.document_windows import Window
from bert_tf.tokenization.wordpiece import BasicTokenizer, FullTokenizer

# Null odds where no span at all could be an answer: the original's "large and positive".
NULL_ODDS_WITHOUT_SPAN = 1000000.0
_EMPTY_ANSWER = "empty"  # the original's answer where it has no valid span


class Question(Protocol):
    """What decoding must know of a question."""

    @property
    def qas_id(self) -> str:
        """The question's id, distinct among those decoded together."""
        ...

    @property
    def doc_tokens(self) -> Sequence[str]:
        """Words of the document, as from `split_words`."""
        ...


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Answers by question id.

    Attributes:
        answers: the answer; "" for none.
        nbest: the best answers, best first: dicts of text, probability, start_logit, end_logit.
        null_odds: score of no answer less that of the best answer, where no answer is possible;
            else an empty dict. NULL_ODDS_WITHOUT_SPAN where no span could be an answer.
    """

    answers: dict[str, str]
    nbest: dict[str, list[dict[str, Any]]]
    null_odds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class AnswerRule:
    """Which spans can be answers, and when there is none.

    Attributes:
        n_best_size: K, how many starts, ends and answers are kept.
        max_answer_length: longest answer, in pieces.
        version_2_with_negative: whether questions may have no answer.
        null_score_diff_threshold: no answer is predicted if the null odds are greater.

    Raises:
        ValueError: a count below 1.
    """

    n_best_size: int = 20
    max_answer_length: int = 30
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0

    def __post_init__(self):
        for name in ("n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


# === Answers ===


def decode_answers(
    questions: Sequence[Question],
    windows: Sequence[Window],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    tokenizer: FullTokenizer,
    rule: AnswerRule,
) -> Predictions:
    """Find the answers that a model's logits mean.

    Of each window the K best starts and ends are combined. A span counts if it lies in the
    document, is not too long, and starts where its window has the most context. The best spans of
    all windows of a question are projected onto the document's text, and of equal texts only the
    best counts. With version_2_with_negative a question may have no answer: the score of that is
    the lowest that a window gives to its [CLS].

    Args:
        questions: what was asked.
        windows: N windows; example_index refers to `questions`, windows of one question from left
            to right.
        start_logits: [N, L], row i of windows[i]; L may be any length that holds the windows.
        end_logits: [N, L].
        tokenizer: what the windows were made with.
        rule: which spans count, and when there is no answer.

    Returns:
        Answers in the order of the questions. A question of which no span counts is answered with
        "empty", as in the original, and with "" if it may have no answer (where the original
        fails).

    Raises:
        ValueError: logits that do not fit the windows or are not finite; question ids that are not
            distinct.

    Reference: google-research/bert run_squad.py, write_predictions.
    """
    starts = _checked_logits("start_logits", start_logits, windows)
    ends = _checked_logits("end_logits", end_logits, windows)
    if starts.shape != ends.shape:
        raise ValueError(
            f"end_logits: expected shape {list(starts.shape)} as start_logits, "
            f"got {list(ends.shape)}"
        )
    rows_of = _rows_of_questions(questions, windows)
    candidates = _Candidates(windows, starts, ends, rule)
    text_of = _AnswerText(tokenizer)
    predictions = Predictions({}, {}, {})
    for question, rows in zip(questions, rows_of, strict=True):
        null: _Entry | None = None
        if rule.version_2_with_negative:
            null = ("", 0.0, 0.0)
            if rows.size:
                row = rows[np.argmin(starts[rows, 0] + ends[rows, 0])]
                null = ("", float(starts[row, 0]), float(ends[row, 0]))
        spans = (
            (
                text_of(question.doc_tokens, windows[row], start, end),
                float(starts[row, start]),
                float(ends[row, end]),
            )
            for row, start, end in candidates.of(rows)
        )
        nbest = _best_entries(spans, null, rule.n_best_size)
        predictions.nbest[question.qas_id] = _with_probabilities(nbest)
        answer = nbest[0][0]
        if null is not None:
            answer, odds = "", NULL_ODDS_WITHOUT_SPAN
            # The best span is always among them: where only one is kept, no null score is higher.
            best_span = next((entry for entry in nbest if entry[0]), None)
            if best_span is not None:
                odds = null[1] + null[2] - best_span[1] - best_span[2]
                if odds <= rule.null_score_diff_threshold:
                    answer = best_span[0]
            predictions.null_odds[question.qas_id] = odds
        predictions.answers[question.qas_id] = answer
    return predictions


_Entry = tuple[str, float, float]  # text, start logit, end logit


def _best_entries(spans: Iterable[_Entry], null: _Entry | None, n_best_size: int) -> list[_Entry]:
    """Make the entries of the n-best list.

    Args:
        spans: best first.
        null: the entry for no answer; None where there must be one.
        n_best_size: how many entries, to which the null entry is added if it is not among them.
    """
    entries: list[_Entry] = []
    texts = set()
    null_missing = null is not None
    for span in spans:
        text, start_logit, end_logit = span
        if null is not None and null_missing and start_logit + end_logit < null[1] + null[2]:
            entries.append(null)
            null_missing = False
        if len(entries) >= n_best_size:
            break
        if text not in texts:
            texts.add(text)
            entries.append(span)
    if null is not None and null_missing:
        entries.append(null)
    return entries or [(_EMPTY_ANSWER, 0.0, 0.0)]


def _checked_logits(name: str, logits: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Check logits and return them as float64 [N, L], in which the original adds them."""
    logits = np.asarray(logits)
    longest = max((len(window.input_ids) for window in windows), default=0)
    if logits.ndim != 2 or logits.shape[0] != len(windows) or logits.shape[1] < longest:
        raise ValueError(
            f"{name}: expected shape [{len(windows)}, at least {longest}], one row a window, "
            f"got {list(logits.shape)}"
        )
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: row {finite.argmin()} has a value that is not finite")
    return logits.astype(np.float64)


def _rows_of_questions(
    questions: Sequence[Question], windows: Sequence[Window]
) -> list[np.ndarray]:
    """Find for each question the indices of its windows, in order."""
    ids = set()
    for question in questions:
        if question.qas_id in ids:
            raise ValueError(f"questions: id {question.qas_id!r} comes twice, expected once")
        ids.add(question.qas_id)
    rows: list[list[int]] = [[] for _ in questions]
    for row, window in enumerate(windows):
        if not 0 <= window.example_index < len(questions):
            raise ValueError(
                f"windows: window {row} is of question {window.example_index}, expected one of the "
                f"{len(questions)} questions"
            )
        rows[window.example_index].append(row)
    return [np.array(numbers, np.int64) for numbers in rows]


def best_indexes(logits: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the greatest values, greatest first; of equals the first.

    Args:
        logits: [N, L], finite.
        count: how many; all L if there are no more.

    Returns:
        int64 [N, min(count, L)].

    Reference: google-research/bert run_squad.py, _get_best_indexes.
    """
    rows, length = logits.shape
    if count < length:
        least = np.partition(logits, length - count, axis=1)[:, length - count, None]
        above, equal = logits > least, logits == least
        room = count - above.sum(axis=1, keepdims=True)
        kept = above | (equal & (equal.cumsum(axis=1) <= room))
        indexes = np.nonzero(kept)[1].reshape(rows, count)
    else:
        indexes = np.broadcast_to(np.arange(length), (rows, length))
    order = np.argsort(-np.take_along_axis(logits, indexes, axis=1), axis=1, kind="stable")
    return np.take_along_axis(indexes, order, axis=1)


class _Candidates:
    """The spans of a question that count, best first."""

    def __init__(
        self, windows: Sequence[Window], starts: np.ndarray, ends: np.ndarray, rule: AnswerRule
    ):
        self._max_answer_length = rule.max_answer_length
        in_document = np.zeros(starts.shape, np.bool_)  # [N, L]
        max_context = np.zeros(starts.shape, np.bool_)
        for row, window in enumerate(windows):
            end = window.doc_offset + len(window.words)
            in_document[row, window.doc_offset : end] = True
            max_context[row, window.doc_offset : end] = window.is_max_context
        self._start = best_indexes(starts, rule.n_best_size)  # [N, K], as all below
        self._end = best_indexes(ends, rule.n_best_size)
        self._start_logit = np.take_along_axis(starts, self._start, axis=1)
        self._end_logit = np.take_along_axis(ends, self._end, axis=1)
        self._start_counts = np.take_along_axis(max_context, self._start, axis=1)
        self._end_counts = np.take_along_axis(in_document, self._end, axis=1)

    def of(self, rows: np.ndarray) -> list[tuple[int, int, int]]:
        """List rows, starts and ends; of equal scores the earlier window, start, end first."""
        start, end = self._start[rows][:, :, None], self._end[rows][:, None, :]
        counts = self._start_counts[rows][:, :, None] & self._end_counts[rows][:, None, :]
        counts &= (end >= start) & (end - start < self._max_answer_length)  # [rows, K, K]
        scores = self._start_logit[rows][:, :, None] + self._end_logit[rows][:, None, :]
        row, first, last = np.nonzero(counts)
        order = np.argsort(-scores[counts], kind="stable")
        row, first, last = row[order], first[order], last[order]
        return list(
            zip(
                rows[row].tolist(),
                self._start[rows[row], first].tolist(),
                self._end[rows[row], last].tolist(),
                strict=True,
            )
        )


class _AnswerText:
    """The text of a span, in the document's own writing.

    One object serves one call of `decode_answers`: it keeps every word that it has seen.

    Reference: google-research/bert run_squad.py, write_predictions and get_final_text.
    """

    def __init__(self, tokenizer: FullTokenizer):
        self._pieces = tokenizer.inv_vocab
        self._tokenized = _TokenizedWords(tokenizer.basic_tokenizer)

    def __call__(self, words: Sequence[str], window: Window, start: int, end: int) -> str:
        pieces = self._pieces
        text = " ".join([pieces[i] for i in window.input_ids[start : end + 1]])
        text = text.replace(" ##", "").replace("##", "")
        first, last = window.words[start - window.doc_offset], window.words[end - window.doc_offset]
        return self.project(" ".join(text.split()), words[first : last + 1])

    def project(self, text: str, words: Sequence[str]) -> str:
        """Find the part of the words that tokenizes to a text; all of them if that fails.

        Args:
            text: words joined of pieces: lower-cased, without accents, punctuation set apart.
            words: of the document, which the pieces came from.
        """
        original = " ".join(words)
        tokenized = " ".join(filter(None, map(self._tokenized.__getitem__, words)))
        if text == tokenized:
            return original
        start = tokenized.find(text)
        # Without spaces both must be as long: then their characters are taken to correspond.
        if (
            start < 0
            or not text
            or len(original) - original.count(" ") != len(tokenized) - tokenized.count(" ")
        ):
            return original
        first = start - tokenized.count(" ", 0, start)
        last = first + len(text) - text.count(" ") - 1
        return original[_nth_character(words, first) : _nth_character(words, last) + 1]


class _TokenizedWords(dict[str, str]):
    """Words as the tokenizer sees them, by themselves: none of its rules looks beyond a word."""

    def __init__(self, tokenizer: BasicTokenizer):
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> str:
        tokens = self[word] = " ".join(self._tokenizer.tokenize(word))
        return tokens


def _nth_character(words: Sequence[str], number: int) -> int:
    """Find the character with so many others, spaces aside, before it in words joined by spaces."""
    ends = itertools.accumulate(map(len, words))
    return next(number + spaces for spaces, end in enumerate(ends) if number < end)


def _with_probabilities(nbest: list[_Entry]) -> list[dict[str, Any]]:
    """Make the entries of nbest_predictions.json: a softmax over the scores of the entries."""
    scores = [start + end for _, start, end in nbest]
    greatest = max(scores)
    exponentials = [math.exp(score - greatest) for score in scores]
    total = 0.0
    for value in exponentials:  # sum() rounds in another way since Python 3.12
        total += value
    return [
        {"text": text, "probability": value / total, "start_logit": start, "end_logit": end}
        for (text, start, end), value in zip(nbest, exponentials, strict=True)
    ]


def write_predictions(predictions: Predictions, folder: str | os.PathLike[str]) -> list[str]:
    """Write predictions in the files that official evaluation scripts read.

    Args:
        predictions: of `decode_answers`.
        folder: an existing folder, for predictions.json, nbest_predictions.json and, where
            questions may have no answer, null_odds.json.

    Returns:
        Paths of the files written.

    Raises:
        OSError: a file cannot be written.

    Reference: google-research/bert run_squad.py, write_predictions.
    """
    contents: dict[str, Mapping[str, Any]] = {
        "predictions.json": predictions.answers,
        "nbest_predictions.json": predictions.nbest,
    }
    if predictions.null_odds:
        contents["null_odds.json"] = predictions.null_odds
    paths = []
    for name, content in contents.items():
        path = os.path.join(folder, name)
        write_json(path, content, indent=4, sort_keys=False)
        paths.append(path)
    return paths
