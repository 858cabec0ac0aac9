"""The measures of SQuAD: what the official scripts evaluate-v1.1.py and evaluate-v2.0.py compute.

Both compare texts in lower case without ASCII punctuation, articles and surplus white space. They
differ where nothing is left of a text: version 2.0 calls two such texts equal, version 1.1 gives
them an F1 of zero.
"""

import collections
import os
import re
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bert_tf.files import parse_json, read_text

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)

References = Mapping[str, Sequence[str]]


def read_references(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read the reference answers of a data set.

    Args:
        path: official JSON of version 1.1 or 2.0.

    Returns:
        Question id -> texts; none for a question without an answer.

    Raises:
        ValueError: not a file of SQuAD, or one without questions.
        OSError: the file cannot be read.
    """
    path = os.fspath(path)
    try:
        articles = parse_json(read_text(path, "utf-8-sig"))["data"]
        rows = [
            (question["id"], tuple(answer["text"] for answer in question["answers"]))
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except KeyError as error:
        raise ValueError(
            f"{path}: a question, paragraph or article lacks {error}; to evaluate, each question "
            "needs its answers (--do_predict takes questions alone)"
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the JSON of SQuAD, with data, paragraphs, qas, id, answers and "
            f"text, got {error!r}"
        ) from error
    if not rows:
        raise ValueError(f"{path}: expected questions, got none")
    counts = collections.Counter(name for name, _ in rows)
    (name, count), *_ = counts.most_common(1)
    if count > 1:
        raise ValueError(f"{path}: expected distinct question ids, got {name!r} {count} times")
    return dict(rows)


def normalize_answer(text: str) -> str:
    """Lower-case a text and drop ASCII punctuation, articles and surplus white space."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> bool:
    """Whether two texts are equal once normalized."""
    return normalize_answer(prediction) == normalize_answer(reference)


def f1_v1(prediction: str, reference: str) -> float:
    """F1 of the words that two texts share, as version 1.1 has it: 0 if either has none."""
    return _f1(normalize_answer(prediction).split(), normalize_answer(reference).split())


def f1_v2(prediction: str, reference: str) -> float:
    """F1 as version 2.0 has it: 1 if neither text has words, 0 if only one has none."""
    words, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not words or not expected:
        return float(words == expected)
    return _f1(words, expected)


def _f1(words: list[str], expected: list[str]) -> float:
    shared = sum((collections.Counter(words) & collections.Counter(expected)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def evaluate_v1(references: References, predictions: Mapping[str, str]) -> dict[str, float]:
    """Score predictions as the official evaluate-v1.1.py.

    Args:
        references: question id -> texts of all annotators, at least one.
        predictions: question id -> answer. A question without one counts 0, with a warning; ids
            that `references` lacks are ignored.

    Returns:
        exact_match and f1, in percent.

    Raises:
        ValueError: no questions, a question without references, or a prediction that is not text.
    """
    _check(references, predictions)
    missing = [name for name in references if name not in predictions]
    if missing:
        warnings.warn(
            f"predictions: {len(missing)} of {len(references)} questions have none and count 0, "
            f"the first is {missing[0]!r}",
            stacklevel=2,
        )
    exact = f1 = 0.0
    for name, texts in references.items():
        if not texts:
            raise ValueError(
                f"references: question {name!r} has no answer, which version 1.1 does not know; "
                "use evaluate_v2"
            )
        if name in predictions:
            exact += max(exact_match(predictions[name], text) for text in texts)
            f1 += max(f1_v1(predictions[name], text) for text in texts)
    return {"exact_match": 100.0 * exact / len(references), "f1": 100.0 * f1 / len(references)}


def evaluate_v2(
    references: References,
    predictions: Mapping[str, str],
    na_probs: Mapping[str, float] | None = None,
    na_prob_thresh: float = 1.0,
) -> dict[str, float]:
    """Score predictions as the official evaluate-v2.0.py.

    Args:
        references: question id -> texts of all annotators; none for a question without an answer.
        predictions: question id -> answer, "" for none; one for each question.
        na_probs: question id -> how likely it has no answer, on any scale that grows with it (such
            as null_odds.json).
        na_prob_thresh: a prediction counts as "" where na_probs is greater.

    Returns:
        exact, f1 (percent) and total; the same after HasAns_ for questions with an answer and after
        NoAns_ for those without, where there are any; with na_probs also best_exact and best_f1
        (percent) at the best thresholds, best_exact_thresh and best_f1_thresh.

    Raises:
        ValueError: no questions, a question without prediction or without na_probs, or a prediction
            that is not text.
    """
    _check(references, predictions)
    tables: dict[str, Mapping[str, Any]] = {"predictions": predictions}
    if na_probs is not None:
        tables["na_probs"] = na_probs
    for table, values in tables.items():
        missing = [name for name in references if name not in values]
        if missing:
            raise ValueError(
                f"{table}: {len(missing)} of {len(references)} questions are missing, the first is "
                f"{missing[0]!r}"
            )
    exact: dict[str, float] = {}
    f1: dict[str, float] = {}
    for name, texts in references.items():
        # What normalizes to nothing is no text that a prediction could equal.
        expected = [text for text in texts if normalize_answer(text)] or [""]
        exact[name] = float(max(exact_match(predictions[name], text) for text in expected))
        f1[name] = max(f1_v2(predictions[name], text) for text in expected)

    probabilities = dict.fromkeys(references, 0.0) if na_probs is None else na_probs

    def at_threshold(scores: Mapping[str, float], name: str) -> float:
        if probabilities[name] > na_prob_thresh:
            return float(not references[name])
        return scores[name]

    results: dict[str, float] = {}
    groups: tuple[tuple[str, Callable[[Sequence[str]], bool]], ...] = (
        ("", lambda texts: True),
        ("HasAns_", bool),
        ("NoAns_", lambda texts: not texts),
    )
    for prefix, belongs in groups:
        names = [name for name, texts in references.items() if belongs(texts)]
        if names:
            for key, scores in (("exact", exact), ("f1", f1)):
                total = sum(at_threshold(scores, name) for name in names)
                results[f"{prefix}{key}"] = 100.0 * total / len(names)
            results[f"{prefix}total"] = len(names)
    if na_probs is not None:
        for key, scores in (("exact", exact), ("f1", f1)):
            best, threshold = _best_threshold(references, predictions, scores, na_probs)
            results[f"best_{key}"] = best
            results[f"best_{key}_thresh"] = threshold
    return results


def _best_threshold(
    references: References,
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    na_probs: Mapping[str, float],
) -> tuple[float, float]:
    """Best total score in percent and the threshold that gives it, 0.0 for answering nothing."""
    # From a threshold below all, where every question counts as without answer, upward. Equal
    # probabilities are taken one by one in the order of na_probs, as the official script does.
    total = best = float(sum(not texts for texts in references.values()))
    threshold = 0.0
    for name in sorted(na_probs, key=lambda name: na_probs[name]):
        if name not in scores:
            continue
        if references[name]:
            total += scores[name]
        elif predictions[name]:
            total -= 1.0
        if total > best:
            best, threshold = total, na_probs[name]
    return 100.0 * best / len(scores), threshold


def _check(references: References, predictions: Mapping[str, str]) -> None:
    if not references:
        raise ValueError("references: expected at least one question, got none")
    for name in references:
        if name in predictions and not isinstance(predictions[name], str):
            raise ValueError(
                f"predictions: expected text for question {name!r}, got {predictions[name]!r}"
            )
