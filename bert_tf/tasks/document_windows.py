"""Documents cut into windows of word pieces that overlap."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from bert_tf.tokenization.vocabulary import CLS_TOKEN, SEP_TOKEN
from bert_tf.tokenization.wordpiece import FullTokenizer

# What the original takes for white space between the words of a document; no other space is one.
_WORD = re.compile("[^ \t\r\n\u202f]+")


@dataclasses.dataclass(frozen=True)
class WindowRule:
    """How a question and its document are cut into windows. Defaults are run_squad.py's.

    Attributes:
        max_seq_length: L, tokens of a padded window, with [CLS] and two [SEP].
        doc_stride: pieces between the starts of two windows.
        max_query_length: pieces of the question that are kept.

    Raises:
        ValueError: a value out of range, or no room for the document.
    """

    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64

    def __post_init__(self):
        for name in ("doc_stride", "max_query_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_seq_length <= self.max_query_length + 3:
            raise ValueError(
                f"max_seq_length must be greater than max_query_length + 3 = "
                f"{self.max_query_length + 3}, got {self.max_seq_length}"
            )


@dataclasses.dataclass(frozen=True)
class TextRule:
    """How a text to classify, or the second of a pair, is cut into windows.

    Attributes:
        max_seq_length: L, tokens of a padded window, with [CLS] and [SEP].
        doc_stride: pieces between the starts of two windows.
        max_windows: W, windows of a text at most; what is beyond them is cut.
        has_pairs: whether the first text of a pair stands before each window, as a question does.
        max_query_length: pieces of that first text that are kept.

    Raises:
        ValueError: a value out of range, or windows that would leave pieces out between them.
    """

    max_seq_length: int = 128
    doc_stride: int = 64
    max_windows: int = 8
    has_pairs: bool = False
    max_query_length: int = WindowRule.max_query_length

    def __post_init__(self):
        for name in ("doc_stride", "max_windows", "max_query_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        special, query = (3, self.max_query_length) if self.has_pairs else (2, 0)
        room = self.max_seq_length - special - query
        if self.doc_stride > room:
            parts = f"{special} special tokens" + (
                f" and max_query_length {query}" if self.has_pairs else ""
            )
            raise ValueError(
                f"doc_stride must be at most {max(room, 0)}, the pieces of a window that "
                f"max_seq_length {self.max_seq_length} leaves beside {parts}, got "
                f"{self.doc_stride}"
            )

    def cut(
        self, ids: Sequence[int], query: Sequence[int] | None, *, cls_id: int, sep_id: int
    ) -> tuple[list[tuple[list[int], int]], int]:
        """Cut a text into windows.

        Args:
            ids: pieces of the text.
            query: pieces of the first text of a pair; None for a text alone.
            cls_id: id of [CLS].
            sep_id: id of [SEP].

        Returns:
            Windows from left to right, at least one: the ids of each, [CLS] text [SEP] or [CLS]
            query [SEP] text [SEP], and how many of them are of segment 0. And how many windows more
            the text would have had.
        """
        head = [cls_id] if query is None else [cls_id, *query[: self.max_query_length], sep_id]
        room = self.max_seq_length - len(head) - 1
        spans = window_spans(len(ids), room, self.doc_stride) or [(0, 0)]
        windows = []
        for start, end in spans[: self.max_windows]:
            window = [*head, *ids[start:end], sep_id]
            windows.append((window, len(window) if query is None else len(head)))
        return windows, max(0, len(spans) - self.max_windows)


@dataclasses.dataclass(frozen=True)
class WordPieces:
    """The pieces of a document and the words they came from.

    Attributes:
        ids: ids of all T pieces.
        words: for each piece the index of its word.
        first_piece: for each word the index of its first piece (of the next word's, if it has
            none).
    """

    ids: list[int]
    words: list[int]
    first_piece: list[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """A question and a part of its document, as the model sees them, without padding.

    Attributes:
        example_index: index of the question among those that were given.
        input_ids: [CLS] question [SEP] pieces of the document [SEP].
        doc_offset: position in input_ids of the first piece of the document.
        doc_start: index of that piece among the document's pieces.
        words: for each piece of the document in this window the index of its word.
        is_max_context: bool [len(words)], whether of all windows this one shows most around a
            piece.
    """

    example_index: int
    input_ids: list[int]
    doc_offset: int
    doc_start: int
    words: list[int]
    is_max_context: np.ndarray


# === Windows ===


def split_words(text: str) -> tuple[tuple[str, ...], list[int]]:
    """Cut a document into words, at U+0020, tab, line ends and U+202F only.

    Args:
        text: the document.

    Returns:
        The words, and for each the index of its first character in the text.

    Reference: google-research/bert run_squad.py, read_squad_examples.
    """
    matches = list(_WORD.finditer(text))
    return tuple(match.group() for match in matches), [match.start() for match in matches]


def encode_words(words: Sequence[str], tokenizer: FullTokenizer) -> WordPieces:
    """Cut words into pieces, each word on its own.

    Args:
        words: of a document.
        tokenizer: of the model.

    Raises:
        ValueError: a word is unknown and the vocabulary has no [UNK].
    """
    ids_of = {
        word: tokenizer.encode(word) for word in dict.fromkeys(words)
    }  # most words come again
    encoded = [ids_of[word] for word in words]
    counts = [len(ids) for ids in encoded]
    return WordPieces(
        ids=list(itertools.chain.from_iterable(encoded)),
        words=list(
            itertools.chain.from_iterable(
                itertools.repeat(word, count) for word, count in enumerate(counts)
            )
        ),
        first_piece=list(itertools.accumulate(counts, initial=0))[:-1],
    )


def make_windows(
    question_text: str,
    document: WordPieces,
    tokenizer: FullTokenizer,
    rule: WindowRule,
    example_index: int = 0,
) -> list[Window]:
    """Cut one question's document into windows.

    Args:
        question_text: the question.
        document: pieces of the document.
        tokenizer: what the document was encoded with; its vocabulary has [CLS] and [SEP].
        rule: lengths and stride.
        example_index: of the question.

    Returns:
        The windows from left to right; none if the document has no pieces.

    Raises:
        ValueError: see `encode_words`.
        KeyError: the vocabulary lacks [CLS] or [SEP].

    Reference: google-research/bert run_squad.py, convert_examples_to_features.
    """
    cls_id, sep_id = tokenizer.convert_tokens_to_ids([CLS_TOKEN, SEP_TOKEN])
    query = tokenizer.encode(question_text)[: rule.max_query_length]
    head = [cls_id, *query, sep_id]
    spans = window_spans(len(document.ids), rule.max_seq_length - len(query) - 3, rule.doc_stride)
    return [
        Window(
            example_index=example_index,
            input_ids=[*head, *document.ids[start:end], sep_id],
            doc_offset=len(head),
            doc_start=start,
            words=document.words[start:end],
            is_max_context=is_max_context,
        )
        for (start, end), is_max_context in zip(spans, _max_context(spans), strict=True)
    ]


def window_spans(num_pieces: int, max_pieces: int, stride: int) -> list[tuple[int, int]]:
    """List half-open ranges of a document's pieces, from left to right.

    Args:
        num_pieces: of the document.
        max_pieces: of a window.
        stride: between the starts of two windows.

    Returns:
        (start, end) of each window; none of a document without pieces.
    """
    spans = []
    start = 0
    while start < num_pieces:
        end = min(start + max_pieces, num_pieces)
        spans.append((start, end))
        if end == num_pieces:
            break
        start += min(end - start, stride)
    return spans


def _max_context(spans: list[tuple[int, int]]) -> list[np.ndarray]:
    """Tell for each window, bool [pieces]: no other has more context there, and no earlier as much.

    Reference: google-research/bert run_squad.py, _check_is_max_context.
    """
    if len(spans) == 1:
        return [np.ones(spans[0][1], np.bool_)]
    num_pieces = spans[-1][1] if spans else 0
    best = np.full(num_pieces, -1.0)
    winner = np.zeros(num_pieces, np.int64)
    for number, (start, end) in enumerate(spans):
        left = np.arange(end - start)
        # In float64 as in the original, where the second term decides between equal contexts.
        score = np.minimum(left, left[::-1]) + 0.01 * (end - start)
        better = score > best[start:end]
        best[start:end][better] = score[better]
        winner[start:end][better] = number
    return [winner[start:end] == number for number, (start, end) in enumerate(spans)]


def pack_windows(windows: Sequence[Window], max_seq_length: int) -> dict[str, np.ndarray]:
    """Pad windows into the model's inputs.

    Args:
        windows: N windows.
        max_seq_length: L, at least the length of the longest.

    Returns:
        input_ids, input_mask, segment_ids int32 [N, L]: the mask is 1 on what is not padding;
        segment ids are 1 on the document and its [SEP].

    Raises:
        ValueError: a window is longer than max_seq_length.
    """
    lengths = np.array([len(window.input_ids) for window in windows], np.int64).reshape(-1, 1)
    offsets = np.array([window.doc_offset for window in windows], np.int64).reshape(-1, 1)
    if lengths.max(initial=0) > max_seq_length:
        raise ValueError(
            f"max_seq_length: expected at least {lengths.max()}, the length of window "
            f"{lengths.argmax()}, got {max_seq_length}"
        )
    position = np.arange(max_seq_length)
    used = position < lengths  # [N, L]
    input_ids = np.zeros((len(windows), max_seq_length), np.int32)
    input_ids[used] = np.fromiter(
        itertools.chain.from_iterable(window.input_ids for window in windows),
        np.int32,
        count=int(lengths.sum()),
    )
    return {
        "input_ids": input_ids,
        "input_mask": used.astype(np.int32),
        "segment_ids": (used & (position >= offsets)).astype(np.int32),
    }
