"""The card that lies beside an exported model."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.serving.served_model import ServedModel

_SHOWN_NUMBERS = 5  # of a long vector, in the model card
_PIECES = {  # of the signatures of pieces
    "text": "a text",
    "question": "a question",
    "context": "the text that may hold the answer, whose pieces these are",
    "pieces": "how it is cut, without [CLS] and [SEP]; empty beyond a text's own pieces",
    "char_starts": "where each begins, in Unicode code points",
    "char_ends": "one past its last code point",
    "piece_count": "how many there are",
    "labels": "the likeliest label of each; that of a word's first piece counts",
    "scores": "its probability",
    "start_scores": "how likely the answer, if there is one, begins there",
    "end_scores": "how likely it ends there",
}


# === The model card ===


def card_heading(
    served: ServedModel, name: str, description: str, notes: Sequence[str]
) -> list[str]:
    """Return the first lines of a model card: what it is for, and of what.

    Args:
        served: the model.
        name: the model's.
        description: of the weights.
        notes: more sentences.
    """
    config = served.config
    lines = [
        f"# {name}",
        "",
        f"Task: {served.task.replace('_', ' ')}. BERT with {config.num_hidden_layers} layers of "
        f"{config.hidden_size} units, {config.vocab_size:,} pieces, "
        f"{_casing(served)}; texts are {_reading(served)}.",
    ]
    lines += [f"Weights: {description}."] if description else []
    return [*lines, *notes]


def _reading(served: ServedModel) -> str:
    length, rule = served.text_to_ids.max_seq_length, served.windows
    if rule is None:
        return f"cut at {length} pieces"
    return (
        f"read in windows of {length} pieces, whose starts are {rule.doc_stride} apart, and cut "
        f"after {rule.max_windows} windows"
    )


def _casing(served: ServedModel) -> str:
    ids = served.text_to_ids
    casing = "uncased" if ids.do_lower_case else "cased"
    if ids.strip_accents == ids.do_lower_case:
        return casing
    return f"{casing}, accents {'stripped' if ids.strip_accents else 'kept'}"


def make_model_card(
    served: ServedModel,
    name: str,
    signatures: Mapping[str, Any],
    description: str,
    notes: Sequence[str],
) -> str:
    """Return the card of a SavedModel."""
    answer = served.answer(**{key: tf.constant(value) for key, value in served.example.items()})
    lines = card_heading(served, name, description, notes)
    lines += signature_lines(served, signatures)
    request = {"inputs": served.example}
    response = {key: _shown(plain(value.numpy())) for key, value in answer.items()}
    lines += [
        "",
        "## Example",
        "",
        f"    curl -d '{json.dumps(request)}' \\",
        f"        http://localhost:8501/v1/models/{name}:predict",
        "",
        "answers",
        "",
        '    {"outputs": {',
        *(f"      {json.dumps(key)}: {value}," for key, value in list(response.items())[:-1]),
        *(f"      {json.dumps(key)}: {value}" for key, value in list(response.items())[-1:]),
        "    }}",
    ]
    return "\n".join(lines) + "\n"


def signature_lines(served: ServedModel, signatures: Mapping[str, Any]) -> list[str]:
    """Return the card's tables of a signature's inputs and outputs."""
    lines = []
    for name, function in signatures.items():
        inputs = {spec.name: spec for spec in function.input_signature}
        outputs = function.get_concrete_function().structured_outputs
        about = _PIECES if name.endswith("pieces") else served.descriptions
        lines += ["", f"## Signature `{name}`", "", *tensor_table(about, inputs, outputs)]
    return lines


def tensor_table(
    descriptions: Mapping[str, str], inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> list[str]:
    """Return the lines of a table of inputs and outputs.

    Args:
        descriptions: name of an input or output -> what it is.
        inputs: name -> what has a dtype and a shape.
        outputs: likewise.
    """
    rows = [*_rows("in", inputs, descriptions), *_rows("out", outputs, descriptions)]
    return ["| | name | type | shape | |", "|---|---|---|---|---|", *rows]


def _rows(side: str, tensors: Mapping[str, Any], descriptions: Mapping[str, str]) -> Iterable[str]:
    for name, tensor in sorted(tensors.items()):
        shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
        about = descriptions.get(name, "")
        yield f"| {side} | `{name}` | {tensor.dtype.name} | [{shape}] | {about} |"


def _shown(value: Any) -> str:
    """JSON, of long vectors the beginning."""
    if isinstance(value, list):
        parts = [_shown(part) for part in value[: _SHOWN_NUMBERS if len(value) > 9 else None]]
        return f"[{', '.join(parts + ['...'] * (len(parts) < len(value)))}]"
    return json.dumps(value, ensure_ascii=False)


def plain(array: np.ndarray) -> Any:
    """Turn an array into lists that JSON can hold, with text for bytes.

    Args:
        array: numbers, or bytes of UTF-8.
    """
    if array.dtype == object:
        return np.vectorize(lambda x: x.decode("utf-8", "replace"), otypes=[object])(array).tolist()
    if array.dtype.kind == "f":
        return array.astype(np.float64).round(6).tolist()
    return array.tolist()
