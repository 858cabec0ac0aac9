"""ONNX files of the model on ids."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.serving.onnx_int8 import quantize
from bert_tf.serving.options import TOLERANCES
from bert_tf.serving.saved_model import (
    Check,
    Run,
    new_version,
    no_check,
    precision_note,
    sample_ids,
)
from bert_tf.serving.served_model import ServedModel
from bert_tf.serving.tflite import lite_module, worst_of_ids, write_card, write_description

ONNX_NAME = "model.onnx"
_ONNX_OPSET = 17
_TOLERANCES = TOLERANCES["onnx"]
_MOST_PIECES = 128  # of the samples that show what products get
_KEPT = "Products that stay in float32, since what they multiply ranges too far for 8 bits: "


def export_onnx(
    served: ServedModel,
    path: str | os.PathLike,
    *,
    version: int | None = None,
    weights: str = "float32",
    description: str = "",
    check: Check = no_check,
) -> pathlib.Path:
    """Write an ONNX file that takes ids; numbers of rows and of pieces are free.

    Weights are "float32", or "int8": a quarter of the size, with products of integers whose other
    factor ONNX Runtime rounds anew for each call (dynamic quantization); products whose other
    factor ranges too far for that stay in float32, and the card names them. All else is as of
    `export_tflite` with `ids_only`.

    Raises:
        ImportError: the extra "onnx" is not installed.
    """
    if weights not in _TOLERANCES:
        raise ValueError(f"weights: expected one of {', '.join(_TOLERANCES)}, got {weights!r}")
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
        import tf2onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"format: onnx needs pip install 'bert-tf[onnx]' ({error})") from error
    with new_version(path, version) as (folder, target):
        module = lite_module(served, ids_only=True)
        specs = module.run.input_signature
        # From the model itself: the checks of `served_model.function` would be taken for inputs.
        proto, _ = tf2onnx.convert.from_function(
            module.run, input_signature=specs, opset=_ONNX_OPSET
        )
        _name_sizes(
            proto, {spec.name: spec for spec in specs}, "windows" if served.windows else "choices"
        )
        onnx.checker.check_model(proto)
        onnx.save(proto, folder / ONNX_NAME)
        notes = []
        if weights == "int8":
            length = min(_MOST_PIECES, served.text_to_ids.max_seq_length)
            samples = sample_ids(served, 4, length)
            kept = quantize(
                folder / ONNX_NAME, {name: value.numpy() for name, value in samples.items()}
            )
            notes += [_KEPT + "; ".join(kept) + "."] if kept else []
        write_description(folder, served, module, "onnx", weights)
        run = load_onnx(folder)
        difference = worst_of_ids(served, run)
        notes += [precision_note(weights, difference, _TOLERANCES[weights]), *check(run)]
        write_card(folder, target, served, module, description, notes)
    return target


def load_onnx(folder: str | os.PathLike, *, threads: int = 1) -> Run:
    """Load an ONNX file with ONNX Runtime, on the processor.

    Args:
        folder: as `export_onnx` wrote it.
        threads: how many it uses.

    Returns:
        A function: arrays by the names of inputs to those of outputs.
    """
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that wait busily take the cores of whatever else runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        os.fspath(pathlib.Path(folder) / ONNX_NAME), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]

    def run(**arrays: np.ndarray) -> Mapping[str, np.ndarray]:
        return dict(zip(names, session.run(names, arrays), strict=True))

    return run


def _name_sizes(proto: Any, specs: Mapping[str, tf.TensorSpec], middle: str) -> None:
    """Give the free sizes of an ONNX graph's inputs, and of its outputs' rows, names.

    Args:
        proto: the model.
        specs: inputs by name.
        middle: name of the second size of inputs that have three.
    """
    for value in proto.graph.input:
        sizes = ("batch", middle, "length") if len(specs[value.name].shape) == 3 else None
        last = "predictions" if value.name == "masked_lm_positions" else "length"
        for size, name in zip(
            value.type.tensor_type.shape.dim, sizes or ("batch", last), strict=True
        ):
            size.dim_param = name
    for value in proto.graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
