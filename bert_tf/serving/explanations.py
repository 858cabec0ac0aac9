"""Which words an answer hangs on: integrated gradients, and attention rollout beside them.

The score of a word is the integral of the answer's gradient along the straight line from a baseline
to the text, in the space of word embeddings, times the way: the scores of all words sum to what the
answer has over that of the baseline (completeness). In the baseline each piece of the text is [PAD]
or [MASK], still attended to, while [CLS] and [SEP], positions and segments are the text's own. The
answer is a logit, before softmax or sigmoid. The integral is a Gauss-Legendre sum, of more and more
points until the scores sum to what they should. A piece's score is the sum over the hidden size, a
word's over its pieces.

Shapes: S steps, L pieces of a sequence with its special tokens, D hidden size.

References: integrated gradients: Sundararajan, Taly and Yan, arXiv 1703.01365; attention rollout:
Abnar and Zuidema, arXiv 2005.00928.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from bert_tf.models.rollout import attention_probabilities_of, attention_rollout
from bert_tf.models.variables import bert_layer
from bert_tf.models.word_vectors import replacing_word_vectors
from bert_tf.serving.entity_tagging import EntityTagger
from bert_tf.serving.question_answering import QuestionAnswerer
from bert_tf.serving.served_model import ServedModel
from bert_tf.serving.text_models import Classifier, Regressor
from bert_tf.serving.windows import Windows, run_in_parts
from bert_tf.tokenization.graph_tokenizer import PiecesWithOffsets
from bert_tf.tokenization.vocabulary import MASK_TOKEN, PAD_TOKEN

_log = logging.getLogger(__name__)

BASELINES = {"pad": PAD_TOKEN, "mask": MASK_TOKEN}
NO_ANSWER = "(no answer)"
MAX_STEPS = 512  # points of the integral, where nothing else is asked for
_FIRST_STEPS = 16
_AT_ONCE = 16  # points of the line that are computed together,
_PIECES_AT_ONCE = 2048  # or fewer, with so many pieces: memory grows with both


@dataclasses.dataclass(frozen=True)
class ExplainedWord:
    """A word of a text, as `BasicTokenizer` cuts it, and what it does to the answer.

    Attributes:
        text: in the text's own writing.
        input: name of the text that it is of.
        char_start: where it begins there, in Unicode code points.
        char_end: one past its last code point.
        score: by integrated gradients, in units of the logit; below 0 it speaks against the answer.
        attention: by attention rollout, its share in what the answer is read from; special tokens
            have the rest to 1.
    """

    text: str
    input: str
    char_start: int
    char_end: int
    score: float
    attention: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a model answers as it does.

    Attributes:
        row: number of the request.
        target: what is explained: a label, "value", an answer, or an entity and its type.
        value: the target's logit: of an answer that of its start plus that of its end, of an entity
            the mean over the tags of its words.
        baseline_value: the same of the baseline.
        words: in order; of a text that was cut or takes several windows those that the model saw.
        completeness_gap: how far the sum of the scores is from value - baseline_value, as a
            fraction of that.
        steps: points of the integral.
    """

    row: int
    target: str
    value: float
    baseline_value: float
    words: tuple[ExplainedWord, ...]
    completeness_gap: float
    steps: int


@dataclasses.dataclass(frozen=True)
class _Case:
    """One answer to explain.

    Attributes:
        target: its name.
        inputs: int32 [1, L], without padding.
        words: position of a word's first piece and one past its last, input, char_start, char_end.
        score: outputs of the model [B, ...] -> the target's logit [B].
        read_at: positions that the answer is read from.
    """

    target: str
    inputs: Mapping[str, tf.Tensor]
    words: Sequence[tuple[int, int, str, int, int]]
    score: Callable[[Mapping[str, tf.Tensor]], tf.Tensor]
    read_at: Sequence[int]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Arguments of `explain` of the same names."""

    baseline: str
    tolerance: float
    max_steps: int
    before_run: Callable[[], None]


def explain(
    model: ServedModel,
    columns: Sequence[Sequence[Any]],
    *,
    target: str | None = None,
    baseline: str = "pad",
    tolerance: float = 0.01,
    max_steps: int = MAX_STEPS,
    entity: int | None = None,
    before_run: Callable[[], None] = lambda: None,
) -> list[Explanation]:
    """Explain answers; see the module.

    Args:
        model: for classification, several labels, regression, question answering or entities.
        columns: its inputs, each strings of N rows.
        target: the label to explain, of classification; None for the likeliest.
        baseline: "pad" or "mask": what the pieces of the text are in the baseline.
        tolerance: largest completeness gap; until it is kept the steps are doubled.
        max_steps: points of the integral at most; where they do not suffice, a warning says so.
        entity: the entity to explain, of entities, from 0 in the order of the answer; None for all.
        before_run: called before each run of the model; what it raises ends the explanation.

    Returns:
        One for each row, or of entities one for each that is found, or the one that is asked for.

    Raises:
        ValueError: the model cannot be explained, or an argument is out of range.
    """
    if refusal := why_not(model):
        raise ValueError(refusal)
    if baseline not in BASELINES:
        raise ValueError(f"baseline: expected {' or '.join(BASELINES)}, got {baseline!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected a fraction above 0, got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
    cases = _cases_of(model, target, entity)
    settings = _Settings(baseline, tolerance, max_steps, before_run)
    explanations = []
    for row, texts in enumerate(zip(*columns, strict=True)):
        decoded = [x.decode("utf-8", "ignore") if isinstance(x, bytes) else x for x in texts]
        before_run()
        explanations += [_explained(model, case, row, decoded, settings) for case in cases(decoded)]
    return explanations


def why_not(model: ServedModel) -> str | None:
    """Return in one line why the answers of a model cannot be explained; None where they can."""
    if not isinstance(model, Classifier | Regressor | QuestionAnswerer | EntityTagger):
        return (
            "explain: for classification, multi_label, regression, question_answering and "
            f"token_classification, not for {model.task}"
        )
    if model.config.window_pooling is not None:
        return (
            "explain: for models that read a text as one sequence, not for one that joins windows "
            f"(window_pooling={model.config.window_pooling})"
        )
    return None


def _cases_of(
    model: ServedModel, target: str | None, entity: int | None
) -> Callable[[Sequence[str]], Iterator[_Case]]:
    """Return what makes the cases of a row of texts."""
    labels = model.label_names if isinstance(model, Classifier) else ()
    if target is not None and target not in labels:
        expected = f"one of {', '.join(labels)}" if labels else f"None for {model.task}"
        raise ValueError(f"target: expected {expected}, got {target!r}")
    if isinstance(model, EntityTagger):
        return lambda texts: _entity_cases(model, texts[0], entity)
    if entity is not None:
        raise ValueError(f"entity: expected None for {model.task}, got {entity!r}")
    if isinstance(model, QuestionAnswerer):
        return lambda texts: _answer_cases(model, *texts)
    of_texts = cast(Classifier | Regressor, model)  # `why_not` refuses any other
    return lambda texts: _text_cases(of_texts, texts, target)


# === What is explained ===


def _text_cases(
    model: Classifier | Regressor, texts: Sequence[str], target: str | None
) -> Iterator[_Case]:
    inputs = _without_padding(model.text_to_ids.pack(*(tf.constant([text]) for text in texts)))
    segments = inputs["segment_ids"].numpy()[0]
    counts = [int(np.sum(segments == 0)) - 2, int(np.sum(segments == 1)) - 1]
    words, first = [], 1
    for name, text, count in zip(model.texts, texts, counts, strict=False):
        pieces = model.text_to_ids.tokenize_with_offsets(tf.constant([text]))
        words += _words(pieces, name, first, 0, max(0, count))
        first += count + 1
    number, name = 0, "value"
    if isinstance(model, Classifier):
        names = model.label_names
        logits = model.run(inputs)["logits"].numpy()[0]
        number = int(np.argmax(logits)) if target is None else names.index(target)
        name = names[number]
    yield _Case(name, inputs, words, lambda outputs: outputs["logits"][:, number], [0])


def _answer_cases(model: QuestionAnswerer, question: str, context: str) -> Iterator[_Case]:
    of_question, of_context = tf.constant([question]), tf.constant([context])
    answer = {
        name: value.numpy()[0] for name, value in model.answer(of_question, of_context).items()
    }
    pieces, _ = model.text_to_ids.tokenize_documents(of_context)
    windows = model.cut_windows(of_question, pieces)
    logits = run_in_parts(model.run, windows.inputs, model.output_shapes)
    start, end = (logits[f"{name}_logits"].numpy() for name in ("start", "end"))  # [N, L]
    target = answer["answer"].decode("utf-8", "replace")
    begins, stops = pieces.char_starts.numpy()[0], pieces.char_ends.numpy()[0]
    inside = np.flatnonzero((stops > answer["char_start"]) & (begins < answer["char_end"]))
    window, first, last = int(np.argmin(start[:, 0] + end[:, 0])), 0, 0
    if target and inside.size:
        places = _places(windows, [int(inside[0]), int(inside[-1])])
        window, (first, last) = max(
            places.items(), key=lambda item: start[item[0], item[1][0]] + end[item[0], item[1][1]]
        )
    inputs, words = _window_case(windows, window, pieces, "context")
    head = int(windows.offsets[window])
    asked = model.text_to_ids.tokenize_with_offsets(of_question)
    words = [*_words(asked, "question", 1, 0, head - 2), *words]
    yield _Case(
        target or NO_ANSWER,
        inputs,
        words,
        lambda outputs: outputs["start_logits"][:, first] + outputs["end_logits"][:, last],
        sorted({first, last}),
    )


def _entity_cases(model: EntityTagger, text: str, entity: int | None) -> Iterator[_Case]:
    texts = tf.constant([text])
    found = {name: value.numpy()[0] for name, value in model.answer(texts).items()}
    asked = range(found["entity_count"])
    if entity is not None:
        if entity not in asked:
            raise ValueError(
                f"entity: expected one of the {len(asked)} that are found, from 0, got {entity!r}"
            )
        asked = [entity]
    if not asked:
        return
    pieces = model.text_to_ids.tokenize_with_offsets(texts)
    windows = model.cut_windows(pieces)
    logits = run_in_parts(model.run, windows.inputs, model.output_shapes)["logits"].numpy()
    rows = tf.zeros([tf.size(pieces.ids.flat_values)], tf.int32)
    firsts = model.word_bounds(pieces, rows)[0].numpy()  # [W]
    begins = pieces.char_starts.numpy()[0][firsts]
    best = tf.where(windows.is_max_context).numpy()  # [P, 2]
    home = {int(windows.pieces[n, place]): (int(n), int(place)) for n, place in best}
    for i in asked:
        start, end = found["entity_char_start"][i], found["entity_char_end"][i]
        words_of_it = firsts[(begins >= start) & (begins < end)].tolist()
        window = home[words_of_it[0]][0]
        shown = [home[piece][1] for piece in words_of_it if home[piece][0] == window]
        tags = [int(np.argmax(logits[window, place])) for place in shown]
        inputs, words = _window_case(windows, window, pieces, "text")
        places = tf.constant(list(zip(shown, tags, strict=True)))

        def score(outputs: Mapping[str, tf.Tensor], places: tf.Tensor = places) -> tf.Tensor:
            by_place = tf.transpose(outputs["logits"], [1, 2, 0])  # [L, K, B]
            return tf.reduce_mean(tf.gather_nd(by_place, places), axis=0)

        named = f"{found['entity_type'][i].decode()}: {found['entity_text'][i].decode()}"
        yield _Case(named, inputs, words, score, shown)


def _window_case(
    windows: Windows, window: int, pieces: PiecesWithOffsets, name: str
) -> tuple[dict[str, tf.Tensor], list[tuple[int, int, str, int, int]]]:
    """Return the inputs of a window, and the words of the text that it shows."""
    inputs = {key: value[window : window + 1] for key, value in windows.inputs.items()}
    start, length = int(windows.starts[window]), int(windows.lengths[window])
    words = _words(pieces, name, int(windows.offsets[window]), start, length)
    return _without_padding(inputs), words


def _places(windows: Windows, pieces: Sequence[int]) -> dict[int, list[int]]:
    """Return the windows that show all of some pieces of one text, and at which positions."""
    places = {}
    values = (windows.starts.numpy(), windows.lengths.numpy(), windows.offsets.numpy())
    for number, (start, length, offset) in enumerate(zip(*values, strict=True)):
        if all(start <= piece < start + length for piece in pieces):
            places[number] = [int(piece - start + offset) for piece in pieces]
    return places


def _without_padding(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Cut inputs [1, L] to what is no padding."""
    length = int(tf.reduce_sum(inputs["input_mask"]))
    return {name: value[:, :length] for name, value in inputs.items()}


def _words(
    pieces: PiecesWithOffsets, name: str, position: int, first: int, count: int
) -> list[tuple[int, int, str, int, int]]:
    """Return the words of `count` pieces of a text from the `first`, which stands at a position."""
    index = pieces.word_index.numpy()[0][first : first + count]
    starts, ends = pieces.char_starts.numpy()[0], pieces.char_ends.numpy()[0]
    bounds = np.flatnonzero(np.diff(index, prepend=-1, append=-1))
    return [
        (
            position + int(begin),
            position + int(end),
            name,
            int(starts[first + begin : first + end].min()),
            int(ends[first + begin : first + end].max()),
        )
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]


# === How it is explained ===


def _explained(
    model: ServedModel,
    case: _Case,
    row: int,
    texts: Sequence[str],
    settings: _Settings,
) -> Explanation:
    table = tf.convert_to_tensor(bert_layer(model.model).embeddings.word_embeddings)
    vectors = tf.cast(tf.gather(table, case.inputs["input_ids"][0]), tf.float32)  # [L, D]
    in_text = np.zeros(len(vectors), np.bool_)
    for begin, end, *_ in case.words:
        in_text[begin:end] = True
    filler = model.text_to_ids.vocab[BASELINES[settings.baseline]]
    base = tf.where(in_text[:, None], tf.cast(table[filler], tf.float32), vectors)
    values = _scores(model, case, tf.stack([vectors, base])).numpy().astype(np.float64)
    change = values[0] - values[1]
    steps = min(_FIRST_STEPS, settings.max_steps)
    while True:
        scores = _integrated_gradients(model, case, vectors, base, steps, settings.before_run)
        error = abs(scores.sum() - change)
        gap = error / abs(change) if change else np.inf if error else 0.0
        if gap <= settings.tolerance or steps >= settings.max_steps:
            break
        steps = min(2 * steps, settings.max_steps)
    if gap > settings.tolerance:
        _log.warning(
            "explain: row %d, %s: the scores sum to %.4g and not to %.4g after max_steps %d (gap "
            "%.2g, tolerance %g)",
            *(row, case.target, scores.sum(), change, steps, gap, settings.tolerance),
        )
    rollout = attention_rollout(attention_probabilities_of(model.model, case.inputs)).numpy()[0]
    shares = rollout[list(case.read_at)].mean(axis=0)  # [L]
    by_name = dict(zip([spec.name for spec in model.answer.input_signature], texts, strict=True))
    words = tuple(
        ExplainedWord(
            by_name[name][start:end],
            name,
            start,
            end,
            float(scores[first:last].sum()),
            float(shares[first:last].sum()),
        )
        for first, last, name, start, end in case.words
    )
    return Explanation(
        row, case.target, float(values[0]), float(values[1]), words, float(gap), steps
    )


def _scores(model: ServedModel, case: _Case, vectors: tf.Tensor) -> tf.Tensor:
    """Return the target's logits for word vectors [S, L, D]."""
    count = len(vectors)
    inputs = {name: tf.repeat(value, count, axis=0) for name, value in case.inputs.items()}
    with replacing_word_vectors(vectors):
        return case.score(model.run(inputs))


def _integrated_gradients(
    model: ServedModel,
    case: _Case,
    vectors: tf.Tensor,
    base: tf.Tensor,
    steps: int,
    before_run: Callable[[], None],
) -> np.ndarray:
    """Return the score of each position, float64 [L]."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # of [-1, 1]
    alphas = ((nodes + 1) / 2).astype(np.float32)
    total = np.zeros(vectors.numpy().shape, np.float64)
    at_once = min(_AT_ONCE, max(1, _PIECES_AT_ONCE // len(vectors)))
    for start in range(0, steps, at_once):
        before_run()
        alpha = alphas[start : start + at_once, None, None]
        points = base + alpha * (vectors - base)  # [S, L, D]
        with tf.GradientTape() as tape:
            tape.watch(points)
            scores = _scores(model, case, points)
        gradients = tape.gradient(scores, points).numpy()
        total += np.einsum("s,sld->ld", weights[start : start + at_once] / 2, gradients)
    return np.sum(total * (vectors - base).numpy(), axis=1)
