"""Questions of SQuAD 1.1 and 2.0: the official JSON, and the records that a span model learns from.

Reading, windows and positions are those of google-research/bert run_squad.py. What it answers with
a traceback, and what it would train on although no answer stands there, is named and left out.
"""

import dataclasses
import functools
import itertools
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bert_tf.files import parse_json
from bert_tf.tasks import document_windows
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning.glue import OnBad, refuse

FIRST_UNIQUE_ID = 1000000000  # the original's id of the first window of a file

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SquadExample:
    """One question and its document.

    Attributes:
        qas_id: the question's id.
        question_text: the question.
        doc_tokens: words of the document, one tuple for all questions of a paragraph.
        orig_answer_text: the answer to learn; None when not training, "" if there is none.
        start_position: index of the answer's first word; None when not training, -1 if there is no
            answer.
        end_position: index of its last word, likewise.
        is_impossible: whether there is no answer; False when not training, as in the original.
        answers: texts of all annotators, for evaluation; empty if there are none.
        path: the file.
        article: index of the article in the file's `data`.
        paragraph: index of the paragraph in the article's `paragraphs`.
        answer_offsets: characters of the first word before the answer, and of the last word up to
            its end; None where there is no answer.
    """

    qas_id: str
    question_text: str
    doc_tokens: tuple[str, ...]
    orig_answer_text: str | None
    start_position: int | None
    end_position: int | None
    is_impossible: bool
    answers: tuple[str, ...]
    path: str
    article: int
    paragraph: int
    answer_offsets: tuple[int, int] | None = None

    @property
    def location(self) -> str:
        """Where the question lies, for messages."""
        return _location(self.path, self.article, self.paragraph, self.qas_id)


def _location(
    path: str, article: int, paragraph: int | None = None, qas_id: object | None = None
) -> str:
    location = f"{path}: data[{article}]"
    if paragraph is not None:
        location += f".paragraphs[{paragraph}]"
    return location if qas_id is None else f"{location}, question {qas_id!r}"


# === Reading ===


def read_squad(
    path: str | os.PathLike[str],
    *,
    version_2_with_negative: bool,
    is_training: bool,
    on_bad: OnBad = None,
    on_skip: OnBad = None,
) -> Iterator[SquadExample]:
    """Read the questions of an official JSON file, in its order.

    Args:
        path: file of version 1.1 or 2.0.
        version_2_with_negative: whether questions may have no answer; read only when training.
        is_training: whether each question comes with the one answer to learn.
        on_bad: told of each article, paragraph or question that is not as SQuAD has them, which is
            then left out; None to raise instead.
        on_skip: told of each question to train on whose answer does not stand where the file says,
            which is then left out; None to log a warning. Training never stops for these: the
            original leaves them out too.

    Yields:
        The questions.

    Raises:
        ValueError: a file that is not the JSON of SQuAD or has no questions; questions that all
            lack a key; without on_bad, the first bad one.
        OSError: the file cannot be read.

    Reference: google-research/bert run_squad.py, read_squad_examples. It fails on answers beyond
    their document and learns a neighbouring word for answers of white space; both are skipped here.
    """
    path = os.fspath(path)
    articles = _load_articles(path)
    _check_keys(path, articles, version_2_with_negative, is_training)
    if on_skip is None:
        on_skip = functools.partial(_log.warning, "%s")

    bad = functools.partial(refuse, on_bad)
    for article, index, paragraph in _paragraphs(path, articles, bad):
        text = paragraph["context"]
        words, starts = document_windows.split_words(text)
        for qa in paragraph["qas"]:
            qas_id = qa.get("id") if isinstance(qa, dict) else None
            location = _location(path, article, index, qas_id)
            try:
                answers = _checked_question(qa, version_2_with_negative, is_training)
            except ValueError as error:
                bad(f"{location}: {error}")
                continue
            is_impossible = bool(is_training and version_2_with_negative and qa["is_impossible"])
            answer: str | None = None
            first: int | None = None
            last: int | None = None
            offsets: tuple[int, int] | None = None
            if is_impossible:
                answer, first, last = "", -1, -1
            elif is_training:
                answer = str(qa["answers"][0]["text"])
                start = qa["answers"][0]["answer_start"]
                try:
                    first, last = _answer_words(text, words, starts, answer, start)
                except ValueError as error:
                    on_skip(f"{location}: skipped: {error}")
                    continue
                offsets = start - starts[first], start + len(answer) - starts[last]
            yield SquadExample(
                qas_id=qa["id"],
                question_text=qa["question"],
                doc_tokens=words,
                orig_answer_text=answer,
                start_position=first,
                end_position=last,
                is_impossible=is_impossible,
                answers=answers,
                path=path,
                article=article,
                paragraph=index,
                answer_offsets=offsets,
            )


def _paragraphs(
    path: str, articles: Sequence[Any], bad: Callable[[str], None]
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the good paragraphs, each after the numbers of its article and its own."""
    for article_index, article in enumerate(articles):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            bad(f"{_location(path, article_index)}: expected a list of paragraphs")
            continue
        for index, paragraph in enumerate(paragraphs):
            match paragraph:
                case {"context": str(), "qas": list()}:
                    yield article_index, index, paragraph
                case _:
                    bad(
                        f"{_location(path, article_index, index)}: expected a paragraph with text "
                        "as context and a list as qas"
                    )


def _load_articles(path: str) -> list:
    """Return the file's `data`."""
    try:
        with open(path, encoding="utf-8-sig") as reader:
            content = parse_json(reader.read())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected JSON in UTF-8, got {error}") from error
    except ValueError as error:
        got = error if os.path.getsize(path) else "an empty file"
        raise ValueError(f"{path}: expected the JSON of SQuAD, got {got}") from error
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list) or not articles:
        raise ValueError(
            f"{path}: expected the JSON of SQuAD, an object whose `data` is a list of articles"
        )
    return articles


def _check_keys(
    path: str, articles: list, version_2_with_negative: bool, is_training: bool
) -> None:
    """Refuse a file that has no questions, or whose questions all lack a key."""
    paragraphs = [part for article in articles for part in _list_in(article, "paragraphs")]
    questions = [qa for paragraph in paragraphs for qa in _list_in(paragraph, "qas")]
    keys = {key for qa in questions if isinstance(qa, dict) for key in qa}
    if not questions:
        raise ValueError(f"{path}: expected questions in data[].paragraphs[].qas, got none")
    needed = {"id", "question"}
    if is_training:
        needed |= {"answers"}
        if version_2_with_negative:
            needed |= {"is_impossible"}
    missing = sorted(needed - keys)
    if missing:
        hint = ": version 1.1 has none" if missing == ["is_impossible"] else ""
        raise ValueError(f"{path}: no question has {' or '.join(missing)}{hint}")


def _list_in(container: object, key: str) -> list:
    value = container.get(key) if isinstance(container, dict) else None
    return value if isinstance(value, list) else []


def _checked_question(qa: Any, version_2_with_negative: bool, is_training: bool) -> tuple[str, ...]:
    """Return the texts of a question's answers; ValueError says what is wrong with it."""
    if not isinstance(qa, dict):
        raise ValueError(f"expected a question with id and question, got {str(qa)[:80]!r}")
    for key in ("id", "question"):
        if not isinstance(qa.get(key), str):
            raise ValueError(f"expected text as {key}, got {qa.get(key)!r}")
    answers = qa.get("answers", [] if not is_training else None)
    if not isinstance(answers, list):
        raise ValueError(f"expected a list as answers, got {answers!r}")
    for answer in answers:
        if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
            raise ValueError(f"expected answers with text, got {answer!r}")
    if is_training:
        impossible = qa.get("is_impossible", False) if version_2_with_negative else False
        if version_2_with_negative and not isinstance(qa.get("is_impossible"), bool):
            raise ValueError(
                f"expected true or false as is_impossible, got {qa.get('is_impossible')!r}"
            )
        if not impossible and len(answers) != 1:
            hint = "" if answers else "; questions without one need version_2_with_negative"
            raise ValueError(f"expected exactly 1 answer for training, got {len(answers)}{hint}")
        start = None if impossible else answers[0].get("answer_start")
        if not impossible and (not isinstance(start, int) or isinstance(start, bool)):
            raise ValueError(f"expected a number as answer_start, got {start!r}")
    return tuple(answer["text"] for answer in answers)


def _answer_words(
    text: str, words: Sequence[str], starts: Sequence[int], answer: str, answer_start: int
) -> tuple[int, int]:
    """Return indices of an answer's first and last word; ValueError if it does not stand there."""
    plain = " ".join(answer.split())
    if not plain:
        raise ValueError(f"the answer {answer!r} has no text")
    end = answer_start + len(answer)
    if answer_start < 0 or end > len(text):
        raise ValueError(
            f"the answer {answer!r} at characters {answer_start} to {end} is not within its "
            f"context of {len(text)}"
        )
    # A space belongs to the word before it.
    first = bisect_right(starts, answer_start) - 1
    last = bisect_right(starts, end - 1) - 1
    there = " ".join(words[first : last + 1])
    if plain not in there:
        raise ValueError(f"the answer {plain!r} is not in the words {there!r} at its place")
    return first, last


# === Features ===


def question_windows(
    examples: Sequence[SquadExample], tokenizer: FullTokenizer, rule: document_windows.WindowRule
) -> list[document_windows.Window]:
    """Cut the documents of questions into windows, for prediction.

    Args:
        examples: questions.
        tokenizer: of the model.
        rule: lengths and stride.

    Returns:
        The windows, in the order of the rows of `make_features`; example_index counts from the
        first of these examples.

    Raises:
        ValueError, KeyError: the vocabulary lacks a special token.
    """
    return [window for _, _, windows in _cut(examples, tokenizer, rule) for window in windows]


def make_features(
    examples: Sequence[SquadExample],
    tokenizer: FullTokenizer,
    rule: document_windows.WindowRule,
    *,
    is_training: bool,
    first_unique_id: int = FIRST_UNIQUE_ID,
    answers_at_start: bool = False,
) -> dict[str, np.ndarray]:
    """Make the rows of records.span_features.

    Args:
        examples: questions; read with is_training if that is set here.
        tokenizer: of the model.
        rule: lengths and stride; L is its max_seq_length.
        is_training: whether to find the answers' positions; else they are 0.
        first_unique_id: unique id of the first row; the others follow.
        answers_at_start: learn the pieces at an answer's place; as the original does, its first
            occurrence among the words there, or all of these.

    Returns:
        unique_ids int64 [N, 1]; input_ids, input_mask, segment_ids int32 [N, L]; start_positions,
        end_positions, is_impossible int32 [N, 1]. A row is a window. Both positions are 0 where the
        window does not hold the whole answer, or there is none.

    Raises:
        ValueError, KeyError: the vocabulary lacks a special token, or examples without answers are
            to be trained on.

    Reference: google-research/bert run_squad.py, convert_examples_to_features.
    """
    all_windows: list[document_windows.Window] = []
    targets: list[tuple[int, int, bool]] = []
    for example, document, windows in _cut(examples, tokenizer, rule):
        all_windows += windows
        answer = None
        if is_training and not example.is_impossible:
            answer = _answer_pieces(example, document, tokenizer, answers_at_start)
        targets += [(*_answer_in(window, answer), example.is_impossible) for window in windows]
    count = len(all_windows)
    columns = np.array(targets, np.int32).reshape(count, 3)
    return {
        "unique_ids": first_unique_id + np.arange(count, dtype=np.int64)[:, None],
        **document_windows.pack_windows(all_windows, rule.max_seq_length),
        "start_positions": columns[:, 0:1],
        "end_positions": columns[:, 1:2],
        "is_impossible": columns[:, 2:3],
    }


def _cut(
    examples: Iterable[SquadExample], tokenizer: FullTokenizer, rule: document_windows.WindowRule
) -> Iterator[tuple[SquadExample, document_windows.WordPieces, list[document_windows.Window]]]:
    """Yield each question with the pieces of its document and its windows."""
    numbered = enumerate(examples)
    # Questions of one paragraph stand together and share its words.
    for _, group in itertools.groupby(numbered, key=lambda item: id(item[1].doc_tokens)):
        document = None
        for index, example in group:
            if document is None:
                document = document_windows.encode_words(example.doc_tokens, tokenizer)
            question = example.question_text
            windows = document_windows.make_windows(question, document, tokenizer, rule, index)
            yield example, document, windows


def count_answers(examples: Iterable[SquadExample], tokenizer: FullTokenizer) -> dict[str, int]:
    """Count the answers to learn, and those of which the original learns other pieces than theirs.

    Args:
        examples: questions.
        tokenizer: of the model.

    Returns:
        "answers" and "answers_elsewhere".
    """
    there = [example for example in examples if example.answer_offsets is not None]
    if not there:
        return {}
    elsewhere = sum(
        _first_occurrence(example, tokenizer) != _pieces_at_start(example, tokenizer)
        for example in there
        if example.answer_offsets != (0, len(_words_of_answer(example)[-1]))  # else of all words
    )
    return {"answers": len(there), "answers_elsewhere": elsewhere}


def _answer_pieces(
    example: SquadExample,
    document: document_windows.WordPieces,
    tokenizer: FullTokenizer,
    at_start: bool,
) -> tuple[int, int]:
    """Find first and last piece of an answer in its document."""
    if example.answer_offsets is None or example.start_position is None:
        raise ValueError(f"{example.location}: no answer was read; read it with is_training")
    find = _pieces_at_start if at_start else _first_occurrence
    first, last = find(example, tokenizer)
    before = document.first_piece[example.start_position]
    return before + first, before + last


def _words_of_answer(example: SquadExample) -> tuple[str, ...]:
    first, last = example.start_position, example.end_position
    return () if first is None or last is None else example.doc_tokens[first : last + 1]


def _first_occurrence(example: SquadExample, tokenizer: FullTokenizer) -> tuple[int, int]:
    """Find first and last piece, from its first word's on: of the answer alone, else of its words.

    In a script without spaces a word is a whole sentence, in which the answer may come twice.

    Reference: google-research/bert run_squad.py, _improve_answer_span.
    """
    ids = [i for word in _words_of_answer(example) for i in tokenizer.encode(word)]
    # Words carry punctuation that the answer has not: of "(1895-1943)." only 1895 may be meant.
    answer = tokenizer.encode(example.orig_answer_text or "")
    if answer:
        for start in range(len(ids) - len(answer) + 1):
            if ids[start : start + len(answer)] == answer:
                return start, start + len(answer) - 1
    return 0, len(ids) - 1


def _pieces_at_start(example: SquadExample, tokenizer: FullTokenizer) -> tuple[int, int]:
    """Find first and last piece, from its first word's on, that have a character of the answer."""
    begin, end = example.answer_offsets or (0, 0)
    words = _words_of_answer(example)
    inside: list[bool] = []
    for number, word in enumerate(words, start=1):
        for piece_start, piece_end in tokenizer.tokenize_with_offsets(word)[1]:
            is_before = number == 1 and piece_end <= begin
            is_behind = number == len(words) and piece_start >= end
            inside.append(not is_before and not is_behind)
    if not any(inside):
        return 0, len(inside) - 1
    return inside.index(True), len(inside) - 1 - inside[::-1].index(True)


def _answer_in(window: document_windows.Window, answer: tuple[int, int] | None) -> tuple[int, int]:
    """Find an answer's first and last piece in a window; (0, 0) if it does not hold all."""
    if answer is None:
        return 0, 0
    first, last = answer
    if first < window.doc_start or last >= window.doc_start + len(window.words):
        return 0, 0
    shift = window.doc_offset - window.doc_start
    return first + shift, last + shift
