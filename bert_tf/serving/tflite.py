"""Models for other runtimes: TFLite; and what all of them share, ONNX and OpenVINO too.

Each is a version in a folder like that of a SavedModel (PATH/VERSION/), with

- model.tflite, model.onnx, or model.xml and model.bin;
- model.json: task, labels, special ids, casing, where texts are cut, inputs and outputs;
- vocab.txt: for whoever makes the ids;
- model_card.md.

A version is written whole, after its answers were compared with the Keras model's, or not at all.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.files import read_json
from bert_tf.serving.model_card import card_heading, tensor_table
from bert_tf.serving.options import MODEL_CARD_NAME, TOLERANCES
from bert_tf.serving.saved_model import (
    Check,
    Run,
    new_version,
    no_check,
    precision_note,
    sample_ids,
    worst_difference,
)
from bert_tf.serving.served_model import ServedModel, failing_ids, strings
from bert_tf.tokenization import vocabulary
from bert_tf.tokenization.tflite_tokenizer import LiteTextToIds

TFLITE_NAME = "model.tflite"
DESCRIPTION_NAME = "model.json"
_TOLERANCES = TOLERANCES["tflite"]
# Texts of which both tokenizers, `LiteTextToIds` too, make the same pieces.
_SAMPLE_TEXTS = ("A fine film, though a bit too long.", "", "Don't ask: who wrote it?", "7 (seven)")


def export_tflite(
    served: ServedModel,
    path: str | os.PathLike,
    *,
    version: int | None = None,
    ids_only: bool = False,
    weights: str = "float32",
    description: str = "",
    check: Check = no_check,
) -> pathlib.Path:
    """Write a TFLite file.

    Of one text or pair it takes strings and gives the answer; with `ids_only` a file of any task
    takes ids and gives the model's outputs. Numbers of rows and of pieces are free. Weights are
    "float32"; "float16", half the size; or "int8", a quarter, with products of integers. `check`
    gets the file when it is loaded. All else is as of `export_saved_model`.

    Raises:
        ValueError: as there, or the task is none of one text or pair and `ids_only` is off.
        RuntimeError: as there, or TFLite cannot hold the model.
    """
    if weights not in _TOLERANCES:
        raise ValueError(f"weights: expected one of {', '.join(_TOLERANCES)}, got {weights!r}")
    if not ids_only and not served.texts:
        raise ValueError(f"ids_only: a TFLite file of {served.task} can only take ids")
    with new_version(path, version) as (folder, target):
        module = lite_module(served, ids_only)
        write_description(folder, served, module, "tflite", weights)
        (folder / TFLITE_NAME).write_bytes(_to_tflite(module.run, module, weights))
        run = load_tflite(folder)
        difference = worst_of_ids(served, run) if ids_only else _worst_of_texts(served, run)
        notes = [precision_note(weights, difference, _TOLERANCES[weights]), *check(run)]
        if not ids_only:
            notes.append(
                "The file needs the operations of tensorflow_text (SELECT_TFTEXT_OPS of its "
                "tflite_registrar). Its tokenizer is that library's FastBertTokenizer: other "
                "pieces than the original's come of compatibility characters (², ½, ﬁ, ß, full "
                "width), control characters, a capital sigma at a word's end and bytes that are "
                "not UTF-8."
            )
        write_card(folder, target, served, module, description, notes)
    return target


def load_tflite(folder: str | os.PathLike, *, threads: int = 1) -> Run:
    """Load a TFLite file with the interpreter in TensorFlow's wheel.

    Args:
        folder: as `export_tflite` wrote it.
        threads: how many it uses.

    Returns:
        A function: arrays by the names of inputs (text as objects, str or bytes) to those of
        outputs. For each new shape it allocates memory first. It raises ValueError for arrays that
        hold nothing where TFLite cannot run: no rows of strings, or ids of length 0.

    Raises:
        FileNotFoundError: the folder has no such file.
    """
    folder = pathlib.Path(folder)
    inputs = read_json(folder / DESCRIPTION_NAME)["inputs"]
    arguments: dict[str, Any] = {
        "model_path": os.fspath(folder / TFLITE_NAME),
        "num_threads": threads,
    }
    with warnings.catch_warnings():
        # TensorFlow's own package for this, ai-edge-litert, cannot be given tensorflow_text's
        # operations.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        takes_strings = any(row["type"] == "string" for row in inputs)
        if takes_strings:
            import tensorflow_text as tf_text
            from tensorflow.lite.python.interpreter import InterpreterWithCustomOps

            operations = tf_text.tflite_registrar.SELECT_TFTEXT_OPS
            interpreter = InterpreterWithCustomOps(custom_op_registerers=operations, **arguments)
        else:
            interpreter = tf.lite.Interpreter(**arguments)
    runner = interpreter.get_signature_runner()

    def run(**arrays: np.ndarray) -> Mapping[str, np.ndarray]:
        # Before TFLite fails, after which it fails for good inputs too.
        for name, array in arrays.items():
            if 0 in np.shape(array)[0 if takes_strings else 1 :]:
                least = "one text" if takes_strings else "one piece a row"
                raise ValueError(f"{name}: expected at least {least}, got {np.shape(array)}")
        return runner(**arrays)

    return run


def lite_module(served: ServedModel, ids_only: bool) -> tf.Module:
    """Return a module whose function `run` is what a file shall hold."""
    module = tf.Module()
    module.weights = served.weights
    if ids_only:
        specs = served.ids.input_signature
        names = [spec.name for spec in specs]

        def run(*tensors):
            return served.run(failing_ids(dict(zip(names, tensors, strict=True)), served.config))

    else:
        module.text_to_ids = text_to_ids = LiteTextToIds(served.text_to_ids)
        specs = strings(*served.texts)

        def run(*tensors):
            answer = served.answer_packed(text_to_ids.pack(*tensors))
            answer.pop("labels", None)  # the same for each row; model.json has them
            return answer

    module.run = tf.function(run, input_signature=specs, autograph=False)
    return module


def _to_tflite(function: Any, module: tf.Module, weights: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": function})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.allow_custom_ops = any(s.dtype == tf.string for s in function.input_signature)
        if weights != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if weights == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # the converter's own class is not public
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise RuntimeError(f"format: TFLite cannot hold this model: {reason[0]}") from error


def worst_of_ids(served: ServedModel, run: Run) -> float:
    """Return the worst difference of a file's outputs from the model's, for several shapes."""
    longest = served.text_to_ids.max_seq_length
    worst = []
    for rows, length in ((2, min(7, longest)), (1, longest), (3, min(5, longest))):
        inputs = sample_ids(served, rows, length)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        worst.append(worst_difference(run(**arrays), served.run(inputs)))
    return float(np.max(worst))


def _worst_of_texts(served: ServedModel, run: Run) -> float:
    """Return the worst difference of a file's answers from the model's; infinite for a label."""
    worst = []
    for count in (1, len(_SAMPLE_TEXTS)):
        texts = _SAMPLE_TEXTS[:count]
        columns = dict(zip(served.texts, (texts, texts[::-1]), strict=False))
        answers = run(**{name: np.array(column, object) for name, column in columns.items()})
        expected = served.answer(**{name: tf.constant(column) for name, column in columns.items()})
        numbers = {
            name: value.numpy()
            for name, value in expected.items()
            if name in answers and value.dtype.is_floating
        }
        worst.append(worst_difference(answers, numbers))
        if "label" in answers:
            # Those of the file's own probabilities, which may differ within the tolerance.
            best = np.argmax(answers["probabilities"], axis=-1)
            labels = [served.label_names[i].encode() for i in best]
            worst.append(0.0 if answers["label"].tolist() == labels else np.inf)
    return float(np.max(worst))


def _tensors(tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "type": tensor.dtype.name, "shape": tensor.shape.as_list()}
        for name, tensor in tensors.items()
    ]


def _inputs_and_outputs(module: tf.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = {spec.name: spec for spec in module.run.input_signature}
    return inputs, dict(module.run.get_concrete_function().structured_outputs)


def write_description(
    folder: pathlib.Path, served: ServedModel, module: tf.Module, file_format: str, weights: str
) -> None:
    """Write model.json and vocab.txt."""
    ids = served.text_to_ids
    inputs, outputs = _inputs_and_outputs(module)
    description = {
        "format": file_format,
        "weights": weights,
        "task": served.task,
        "labels": list(served.label_names),
        **({"temperature": served.temperature} if served.temperature != 1 else {}),
        **({"thresholds": list(served.thresholds)} if served.thresholds else {}),
        "inputs": _tensors(inputs),
        "outputs": _tensors(outputs),
        "max_seq_length": ids.max_seq_length,
        **({"windows": dataclasses.asdict(served.windows)} if served.windows else {}),
        "do_lower_case": ids.do_lower_case,
        "strip_accents": ids.strip_accents,
        "special_ids": {
            vocabulary.PAD_TOKEN: ids.pad_id,
            vocabulary.UNK_TOKEN: ids.unk_id,
            vocabulary.CLS_TOKEN: ids.cls_id,
            vocabulary.SEP_TOKEN: ids.sep_id,
            vocabulary.MASK_TOKEN: ids.mask_id,
        },
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION_NAME).write_text(text, encoding="utf-8")
    lines = [f"[line {number}]" for number in range(ids.vocab_size)]  # where there is no piece
    for piece, number in ids.vocab.items():
        lines[number] = piece
    (folder / vocabulary.VOCAB_NAME).write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_card(
    folder: pathlib.Path,
    target: pathlib.Path,
    served: ServedModel,
    module: tf.Module,
    description: str,
    notes: Sequence[str],
) -> None:
    """Write the card that lies beside a file."""
    name = target.resolve().parent.name
    lines = card_heading(served, name, description, notes)
    lines += [
        "",
        "## Inputs and outputs",
        "",
        *tensor_table(served.descriptions, *_inputs_and_outputs(module)),
    ]
    if served.label_names:
        lines += ["", f"Labels: {', '.join(served.label_names)}."]
    (folder / MODEL_CARD_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
