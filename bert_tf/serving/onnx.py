"""ONNX files of the model on ids."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from bert_tf.serving.options import TOLERANCES
from bert_tf.serving.saved_model import new_version, precision_note
from bert_tf.serving.served_model import ServedModel
from bert_tf.serving.tflite import lite_module, worst_of_ids, write_card, write_description

ONNX_NAME = "model.onnx"
_ONNX_OPSET = 17


def export_onnx(
    served: ServedModel,
    path: str | os.PathLike,
    *,
    version: int | None = None,
    description: str = "",
) -> pathlib.Path:
    """Write an ONNX file that takes ids; numbers of rows and of pieces are free.

    All else is as of `export_saved_model`.

    Raises:
        ImportError: the extra "onnx" is not installed.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
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
        _name_sizes(proto, {spec.name: spec for spec in specs})
        onnx.checker.check_model(proto)
        onnx.save(proto, folder / ONNX_NAME)
        write_description(folder, served, module, "onnx", "float32")
        session = onnxruntime.InferenceSession(
            os.fspath(folder / ONNX_NAME), providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        difference = worst_of_ids(
            served, lambda **arrays: dict(zip(names, session.run(names, arrays), strict=True))
        )
        notes = [precision_note("float32", difference, TOLERANCES["onnx"]["float32"])]
        write_card(folder, target, served, module, description, notes)
    return target


def _name_sizes(proto: Any, specs: Mapping[str, tf.TensorSpec]) -> None:
    """Give the free sizes of an ONNX graph's inputs, and of its outputs' rows, names."""
    for value in proto.graph.input:
        sizes = ("batch", "choices", "length") if len(specs[value.name].shape) == 3 else None
        last = "predictions" if value.name == "masked_lm_positions" else "length"
        for size, name in zip(
            value.type.tensor_type.shape.dim, sizes or ("batch", last), strict=True
        ):
            size.dim_param = name
    for value in proto.graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
