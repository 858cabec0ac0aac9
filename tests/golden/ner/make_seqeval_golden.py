"""Make seqeval.json, scores of random tags by seqeval (1.2.2 was used).

    python tests/golden/ner/make_seqeval_golden.py

Tags of IOB2, IOBES and BILOU are well-formed, and read in seqeval's strict mode; "default" are any
tags of IOBES, read in its default mode, which is conlleval's.
"""

import json
import pathlib
import random

from seqeval import metrics, scheme

FORMS = {"IOB2": ("B", "I", "I", "B"), "IOBES": ("B", "I", "E", "S"), "BILOU": ("B", "I", "L", "U")}
TYPES = ("A", "B-c")


def well_formed(generator: random.Random, name: str) -> list[str]:
    """Return the tags of a sentence."""
    begin, inside, end, single = FORMS[name]
    tags: list[str] = []
    while len(tags) < 11:
        size, kind = generator.choice([0, 1, 1, 2, 3]), generator.choice(TYPES)
        forms = [begin, *[inside] * (size - 2), end] if size > 1 else [single] * size
        tags += [f"{form}-{kind}" for form in forms] or ["O"]
    return tags[:11] if name == "IOB2" else tags


def changed(generator: random.Random, tags: list[str], name: str) -> list[str]:
    """Return other tags for the same words, chunks of some sentences being the same."""
    while True:
        other = well_formed(generator, name)
        if len(other) == len(tags):
            return generator.choice([other, tags])


def main() -> None:
    """Write the file."""
    generator, cases = random.Random(5), []  # noqa: S311
    for name in (*FORMS, "default"):
        for _ in range(5):
            if name == "default":
                tags = ["O", *(f"{form}-{kind}" for form in "BIES" for kind in TYPES)]
                true, predicted = (
                    [generator.choices(tags, k=11) for _ in range(13)] for _ in range(2)
                )
                arguments = {}
            else:
                true = [well_formed(generator, name) for _ in range(13)]
                predicted = [changed(generator, tags, name) for tags in true]
                arguments = {"mode": "strict", "scheme": getattr(scheme, name)}
            report = metrics.classification_report(
                true, predicted, output_dict=True, zero_division=0, **arguments
            )
            total = report["micro avg"]
            cases.append(
                {
                    "scheme": name,
                    "true": true,
                    "predicted": predicted,
                    "precision": float(total["precision"]),
                    "recall": float(total["recall"]),
                    "f1": float(total["f1-score"]),
                    "f1_by_type": {kind: float(report[kind]["f1-score"]) for kind in TYPES},
                }
            )
    path = pathlib.Path(__file__).with_name("seqeval.json")
    path.write_text(json.dumps(cases) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
