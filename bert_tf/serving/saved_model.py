"""SavedModels that answer plain strings, in the layout that TF Serving reads: NAME/VERSION/.

A version holds the signatures of a `ServedModel`, a request to warm up with
(assets.extra/tf_serving_warmup_requests) and model_card.md. Loading one needs TensorFlow and,
imported, tensorflow_text; `ids_only` leaves out everything that takes strings, and so that library.
"""

import contextlib
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.files import local_path
from bert_tf.serving import model_card, server_operations
from bert_tf.serving.library_messages import less_of
from bert_tf.serving.options import COMPUTE_TOLERANCE, MODEL_CARD_NAME, TOLERANCES
from bert_tf.serving.served_model import ServedModel

# TensorFlow says where it writes: that folder gets another name.
_WHERE_IT_WRITES = (tf.get_logger().name, logging.WARNING)
WARMUP_NAME = "assets.extra/tf_serving_warmup_requests"
_TOLERANCES = TOLERANCES["saved_model"]

# Inputs of a model on ids by name -> its outputs by name.
Run = Callable[..., Mapping[str, np.ndarray]]
# Looks at what an exported model gives: lines for its card, or an error, so that it is not left.
Check = Callable[[Run], Sequence[str]]


def no_check(run: Run) -> Sequence[str]:
    """Accept any model, and say nothing."""
    return ()


def export_saved_model(
    served: ServedModel,
    path: str | os.PathLike,
    *,
    version: int | None = None,
    ids_only: bool = False,
    weights: str = "float32",
    description: str = "",
    for_server: str | None = None,
    check: Check = no_check,
) -> pathlib.Path:
    """Write a SavedModel in the layout that TF Serving reads.

    Args:
        served: what it answers, and how.
        path: folder of the model's versions; its last part is the name in TF Serving.
        version: number of the version, at least 1; by default one more than the highest there is.
        ids_only: whether "ids" is the only signature, and so "serving_default" too.
        weights: what the file holds them in: "float32", or "float16" or "bfloat16" for one of half
            the size, whose weights become float32 again when it is loaded. `served` computes with
            the rounded ones from then on.
        description: of the weights, for the model card.
        for_server: release of TF Serving that it is for, one of `server_operations.SERVERS`.
        check: gets what runs the model on ids as it is stored, and gives lines for the card or
            raises an error.

    Returns:
        The folder written: path/version.

    Raises:
        FileExistsError: that version exists.
        ValueError: version is below 1, or weights unknown; or for half precision, a function of
            `served` was called before; or the server lacks an operation of the model.
        RuntimeError: what was written does not answer as the model does (TOLERANCES); nothing is
            left of it.
        OSError: the folder cannot be written.
    """
    if weights not in _TOLERANCES:
        raise ValueError(f"weights: expected one of {', '.join(_TOLERANCES)}, got {weights!r}")
    if for_server is not None:
        server_operations.operations_of(for_server)  # before the work: is there such a server?
    with new_version(path, version) as (folder, target):
        notes = []
        if weights != "float32":
            inputs = sample_ids(served)
            expected = served.run(inputs)
            served.store_weights(weights)
            difference = worst_difference(served.run(inputs), expected)
            notes = [precision_note(weights, difference, _TOLERANCES[weights])]
        notes += check(lambda **arrays: run_arrays(served, arrays))
        _write(served, folder, target.resolve().parent.name, ids_only, description, notes)
        if for_server is not None:
            server_operations.check_server(folder, for_server)
        _verify(served, folder, ids_only)
    return target


def run_arrays(served: ServedModel, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a model gives for ids, all as arrays by name."""
    outputs = served.run({name: tf.constant(array) for name, array in arrays.items()})
    return {name: value.numpy() for name, value in outputs.items()}


@contextlib.contextmanager
def new_version(
    path: str | os.PathLike, version: int | None = None
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Write a version of a model whole, or not at all.

    Args:
        path: folder of the model's versions.
        version: number of the version, at least 1; by default one more than the highest there is.

    Yields:
        The folder to write to, and the one that it becomes: path/version.

    Raises:
        FileExistsError: that version exists.
        ValueError: version is below 1.
        OSError: the folder cannot be written.
    """
    root = local_path(path)
    root.mkdir(parents=True, exist_ok=True)
    if version is None:
        version = 1 + max((int(p.name) for p in root.iterdir() if p.name.isdecimal()), default=0)
    if version < 1:
        raise ValueError(f"version: expected at least 1, got {version}")
    target = root / str(version)
    if target.exists():
        raise FileExistsError(f"version: {target} exists; choose another or remove it")
    # TF Serving loads a version as soon as its folder has a number for a name: so write it under
    # another name first.
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=root))
    try:
        yield temporary, target
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def worst_difference(outputs: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Return how far outputs are from others, in units of the largest absolute value, at least 1.

    Args:
        outputs: name -> floating-point array or tensor.
        expected: name -> of the same shape.

    Raises:
        RuntimeError: a shape differs.
    """
    worst = 0.0
    for name, value in expected.items():
        other, value = np.asarray(outputs[name], np.float64), np.asarray(value, np.float64)
        if other.shape != value.shape:
            raise RuntimeError(f"{name}: has the shape {other.shape}, of the model {value.shape}")
        if value.size:
            # Not max(), which can lose NaN.
            difference = np.max(np.abs(other - value)) / max(1.0, np.max(np.abs(value)))
            worst = float(np.maximum(worst, difference))
    return worst


def precision_note(weights: str, difference: float, tolerance: float) -> str:
    """Return a sentence of the model card on weights of lower precision.

    Raises:
        RuntimeError: the difference is above the tolerance, or no number.
    """
    if not difference <= tolerance:
        raise RuntimeError(
            f"weights: {weights} changes outputs by {difference:.2g} of the largest, and more than "
            f"{tolerance:g} is too much"
        )
    return (
        f"Stored in {weights}: outputs for sample inputs differ from those of the float32 model by "
        f"{difference:.2g} of the largest value (at most {tolerance:g} is accepted)."
    )


def compute_note(served: ServedModel, reference: ServedModel, compute: str) -> str:
    """Return a sentence of the model card on a model that computes in lower precision.

    Args:
        served: the model.
        reference: the same in float32.
        compute: the dtype of the model's products and weights.

    Raises:
        RuntimeError: the difference is above COMPUTE_TOLERANCE, or no number.
    """
    inputs = sample_ids(served)
    difference = worst_difference(served.run(inputs), reference.run(inputs))
    if not difference <= COMPUTE_TOLERANCE:
        raise RuntimeError(
            f"compute: {compute} changes outputs by {difference:.2g} of the largest, and more than "
            f"{COMPUTE_TOLERANCE:g} is too much"
        )
    return (
        f"Computes in {compute}: outputs for sample inputs differ from those of the float32 model "
        f"by {difference:.2g} of the largest value (at most {COMPUTE_TOLERANCE:g} is accepted)."
    )


def _write(
    served: ServedModel,
    folder: pathlib.Path,
    name: str,
    ids_only: bool,
    description: str,
    notes: Sequence[str],
) -> None:
    if ids_only:
        module = tf.Module()
        module.weights = served.weights
        module.ids = served.ids
        with served.for_saving(), less_of(*_WHERE_IT_WRITES):
            tf.saved_model.save(module, folder, signatures={"serving_default": served.ids})
        notes = [*notes, server_operations.server_note(folder)]
        card = model_card.card_heading(served, name, description, notes)
        card += model_card.signature_lines(served, {"serving_default": served.ids})
        (folder / MODEL_CARD_NAME).write_text("\n".join(card) + "\n", encoding="utf-8")
        return
    signatures = served.signatures()
    with served.for_saving(), less_of(*_WHERE_IT_WRITES):
        tf.saved_model.save(served, folder, signatures=signatures)
    warmup = folder / WARMUP_NAME
    warmup.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(os.fspath(warmup)) as writer:
        writer.write(_prediction_log(name, served.example))
    notes = [*notes, server_operations.server_note(folder)]
    card = model_card.make_model_card(served, name, signatures, description, notes)
    (folder / MODEL_CARD_NAME).write_text(card, encoding="utf-8")


def _verify(served: ServedModel, folder: pathlib.Path, ids_only: bool) -> None:
    """Compare what was written with the model, on the example and on ids."""
    loaded = tf.saved_model.load(os.fspath(folder)).signatures
    if ids_only:
        _compare(loaded["serving_default"], served.ids, sample_ids(served))
        return
    texts = {key: tf.constant(value) for key, value in served.example.items()}
    for name, signature in served.signatures().items():
        if name in ("serving_default", "span_pieces"):
            _compare(loaded[name], signature, texts)
        elif name == "ids":
            _compare(loaded[name], signature, sample_ids(served))
        elif name == "pieces":
            _compare(loaded[name], signature, {"text": next(iter(texts.values()))})
        else:
            _compare(loaded[name], signature, {"inputs": _examples(served.example)})


def _examples(example: Mapping[str, Any]) -> tf.Tensor:
    """Serialize a request as tf.train.Example, string [B]."""
    rows = zip(*example.values(), strict=True)
    features = [
        {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
            for name, text in zip(example, row, strict=True)
        }
        for row in rows
    ]
    return tf.constant(
        [
            tf.train.Example(features=tf.train.Features(feature=row)).SerializeToString()
            for row in features
        ]
    )


def sample_ids(served: ServedModel, rows: int = 2, length: int = 7) -> dict[str, tf.Tensor]:
    """Make ids for the signature "ids": rows of some lengths, the first of which is full.

    Args:
        served: the model.
        rows: B.
        length: L, at least 5.

    Returns:
        name -> int32 [B, L], or [B, 3, L] of multiple choice; "masked_lm_positions" [B, 3].
    """
    random = np.random.default_rng(0)
    names = [spec.name for spec in served.ids.input_signature]
    choices = (3,) * (len(served.ids.input_signature[0].shape) - 2)
    lengths = np.maximum(5, length - 2 * np.arange(rows))[:, None]
    mask = np.arange(length) < lengths  # [B, L]
    shape = (rows, *choices, length)
    values = {
        "input_ids": random.integers(0, served.text_to_ids.vocab_size, shape),
        "input_mask": np.repeat(mask[:, None], 3, 1) if choices else mask,
        "segment_ids": random.integers(0, min(2, served.config.type_vocab_size), shape),
        "masked_lm_positions": random.integers(0, 5, (rows, 3)),
    }
    return {name: tf.constant(values[name], tf.int32) for name in names}


def _compare(loaded: Any, signature: Any, inputs: Mapping[str, tf.Tensor]) -> None:
    outputs, expected = loaded(**inputs), signature(**inputs)
    for name, value in expected.items():
        value, other = value.numpy(), outputs[name].numpy()
        same = (
            np.allclose(value, other, rtol=1e-5, atol=_TOLERANCES["float32"], equal_nan=True)
            if value.dtype.kind == "f"
            else np.array_equal(value, other)
        )
        if not same:
            raise RuntimeError(f"{name}: the SavedModel gives {other}, the model {value}")


# === Warm-up ===


def _message(*fields: tuple[int, bytes]) -> bytes:
    """Encode a protocol buffer of fields that are strings, bytes or messages."""
    return b"".join(_varint(n << 3 | 2) + _varint(len(content)) + content for n, content in fields)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _prediction_log(name: str, example: Mapping[str, Any]) -> bytes:
    """Return a tensorflow.serving.PredictionLog of one Predict request.

    By hand, since a package of TF Serving's would be needed only for these three messages of
    tensorflow_serving/apis: PredictionLog.predict_log = 6, PredictLog.request = 1,
    PredictRequest.model_spec = 1 (ModelSpec.name = 1, signature_name = 3) and inputs = 2.
    """
    spec = _message((1, name.encode()), (3, b"serving_default"))
    inputs = [
        (2, _message((1, key.encode()), (2, tf.make_tensor_proto(value).SerializeToString())))
        for key, value in example.items()
    ]
    return _message((6, _message((1, _message((1, spec), *inputs)))))
