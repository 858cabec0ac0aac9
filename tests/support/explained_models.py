"""Tiny golden models that are explained, under the names of the stand-ins that answer for them.

Texts are of the golden vocabulary. The stand-ins' own answers have nothing to do with these models.
"""

import json
import pathlib

from bert_tf.serving.load import load_served_model
from tests.support.serving_stand_ins import LABELS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
_CLASSIFIER = "BertForSequenceClassification"
_NAMES = (*LABELS, "mixed", "none of these")
# Name -> folder of the golden model, and options of `load_served_model`.
_MODELS = {
    "opinions": (_CLASSIFIER, {"labels": _NAMES}),
    "pairs": (_CLASSIFIER, {"labels": _NAMES, "has_pairs": True}),
    "answers": ("BertForQuestionAnswering", {}),
    "entities": ("BertForTokenClassification", {"labels": ("O", "B-X", "I-X")}),
}
# A request of each.
ASKED = {
    "opinions": {"text": "the cats sat on a mat ."},
    "pairs": {"text": "a big dog ran", "text_b": "the red cat sat , far"},
    "answers": {"question": "who sat on it ?", "context": "the big cats sat on a red mat"},
    "entities": {"text": "we like the big sun in three homes"},
}


def write_vocabulary(folder: pathlib.Path) -> pathlib.Path:
    """Write the vocabulary of the golden models."""
    pieces = json.loads((GOLDEN / "explanations/explanations.json").read_text())["vocabulary"]
    path = folder / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in pieces))
    return path


def golden_models(folder: pathlib.Path) -> dict:
    """Load them all, with a vocabulary that is written into a folder."""
    vocab_file = str(write_vocabulary(folder))
    return {
        name: load_served_model(
            GOLDEN / "transformers" / path, vocab_file=vocab_file, max_seq_length=19, **options
        )
        for name, (path, options) in _MODELS.items()
    }


def columns(name: str) -> list[list[str]]:
    """Return the columns of `explain` for the request of a model."""
    return [[text] for text in ASKED[name].values()]
