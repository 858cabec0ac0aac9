"""What the report shows of tagged words, and of answers in documents."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from bert_tf.tasks.entity_metrics import ChunkScores, EntityScores, chunks
from bert_tf.tasks.error_analysis import worst
from bert_tf.tasks.squad_metrics import evaluate_v1, evaluate_v2
from bert_tf.tasks.tag_schemes import tag_scheme
from data_prep.finetuning.ner import Sentence
from data_prep.finetuning.squad import SquadExample
from experiments.finetuning.report import NUM_WORST, length_section
from experiments.plots.report_page import (
    Element,
    Section,
    element,
    folded_cell,
    number,
    paragraph,
    table,
)

Chunk = tuple[str, int, int]  # type, first word, word after the last

# === Tagged words ===


def tagging_sections(
    sentences: Sequence[Sentence],
    predicted: Sequence[Sequence[str]],
    scores: EntityScores,
    labels: Sequence[str],
) -> list[Section]:
    """Show what a tagger makes of sentences.

    Args:
        sentences: with their true tags.
        predicted: tags of each sentence's words.
        scores: of all of them together.
        labels: of the tagger.
    """
    tags = [*labels, *(t for s in sentences for t in s.tags), *(t for p in predicted for t in p)]
    scheme = tag_scheme(tags)
    true = [chunks(sentence.tags, scheme) for sentence in sentences]
    found = [chunks(tags, scheme) for tags in predicted]
    lengths = np.array([len(sentence.words) for sentence in sentences])
    right = [
        np.mean([a == b for a, b in zip(s.tags, p, strict=True)])
        for s, p in zip(sentences, predicted, strict=True)
    ]
    mistakes = np.array([len(set(a) ^ set(b)) for a, b in zip(true, found, strict=True)])
    chosen = worst(mistakes, mistakes > 0, NUM_WORST)
    rows = [
        (
            f"line {sentences[n].line}",
            _marked(sentences[n].words, true[n], set(found[n]), "missed"),
            _marked(sentences[n].words, found[n], set(true[n]), "wrong"),
        )
        for n in chosen.tolist()
    ]
    said = paragraph(
        f"{np.count_nonzero(mistakes):,} of {len(sentences):,} sentences have an entity that was "
        f"missed or is wrong. Below: the {len(chosen)} with most of them. Green: found; yellow, "
        "dashed: missed; red, underlined: predicted and not true."
    )
    shown = [table(("where", "as tagged in the file", "as predicted"), rows)] if rows else []
    return [
        Section("Types", [_types(scores)]),
        length_section(lengths, right, measure="mean accuracy of a sentence's words", unit="words"),
        Section("Worst errors", [said, *shown]),
    ]


def _types(scores: EntityScores) -> Element:
    named: Mapping[str, ChunkScores] = {**scores.by_type, "all": scores}
    rows = [
        (
            name,
            *(f"{value:.2f}" for value in (one.precision, one.recall, one.f1)),
            *(one.num_true, one.num_predicted, one.num_correct),
        )
        for name, one in named.items()
    ]
    counts = ("true", "predicted", "correct")
    return table(("type", "precision", "recall", "F1", *counts), rows, "In percent")


def _marked(
    words: Sequence[str], entities: Sequence[Chunk], others: Collection[Chunk], name: str
) -> Element:
    """Return the cell of a sentence, its entities marked: those among others as right."""
    parts: list[Element | str] = []
    place = 0
    for entity in entities:
        kind, first, last = entity
        parts.append(" ".join(words[place:first]) + " " if first > place else "")
        text = " ".join(words[first:last])
        parts.append(
            element(
                "mark",
                f"{text} ",
                element("small", kind),
                class_="right" if entity in others else name,
            )
        )
        parts.append(" ")
        place = last
    parts.append(" ".join(words[place:]))
    return element("td", *parts, class_="text", dir="auto")


# === Answers in documents ===


def answer_sections(
    examples: Sequence[SquadExample],
    references: Mapping[str, tuple[str, ...]],
    answers: Mapping[str, str],
    probabilities: Mapping[str, float],
    *,
    version_2: bool,
) -> list[Section]:
    """Show what a model answers.

    Args:
        examples: the questions with their documents.
        references: question id -> right answers; none where there is no answer.
        answers: question id -> the answer; "" for none.
        probabilities: question id -> that of the answer.
        version_2: whether questions may have no answer.
    """
    names = [example.qas_id for example in examples]
    score = evaluate_v2 if version_2 else evaluate_v1
    f1 = np.array([score({n: references[n]}, {n: answers[n]})["f1"] for n in names])
    sure = np.array([probabilities[name] for name in names])
    sizes = [len(example.doc_tokens) for example in examples]
    chosen = worst(sure, f1 == 0, NUM_WORST)
    rows = [
        (
            examples[n].question_text,
            "; ".join(dict.fromkeys(references[names[n]])) or "no answer",
            answers[names[n]] or "no answer",
            number(float(sure[n])),
            folded_cell(" ".join(examples[n].doc_tokens)),
        )
        for n in chosen.tolist()
    ]
    heads = ("question", "right answers", "the model's", "probability", "document")
    said = paragraph(
        f"{np.count_nonzero(f1 == 0):,} of {len(names):,} answers have no word of a right one. "
        f"Below: the {len(chosen)} of them that the model was most sure of."
    )
    shown = [table(heads, rows)] if rows else []
    return [
        *([Section("With and without answer", list(_answered(f1, names, references, answers)))])
        * version_2,
        length_section(sizes, f1, measure="F1", unit="words of the document", full=100.0),
        Section("Worst errors", [said, *shown]),
    ]


def _answered(
    f1: np.ndarray,
    names: Sequence[str],
    references: Mapping[str, tuple[str, ...]],
    answers: Mapping[str, str],
) -> Iterator[Element]:
    """Show how often an answer was given where there is one, and where there is none."""
    has = np.array([bool(references[name]) for name in names])
    gives = np.array([bool(answers[name]) for name in names])
    rows = [
        (text, int(chosen.sum()), int((gives & chosen).sum()), float(f1[chosen].mean()))
        for text, chosen in (("has an answer", has), ("has none", ~has))
        if chosen.any()
    ]
    yield table(("the question", "questions", "were answered", "F1"), rows)
