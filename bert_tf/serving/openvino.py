"""OpenVINO files of the model on ids.

A version holds model.xml and model.bin, and else what one of TFLite or ONNX does.
"""

import logging
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.serving.library_messages import less_of
from bert_tf.serving.options import TOLERANCES
from bert_tf.serving.saved_model import (
    Check,
    Run,
    new_version,
    no_check,
    precision_note,
    run_arrays,
    worst_difference,
)
from bert_tf.serving.served_model import ServedModel
from bert_tf.serving.tflite import lite_module, worst_of_ids, write_card, write_description

OPENVINO_NAME = "model.xml"
MOST_SAMPLES = 300  # batches to calibrate with; NNCF's own default
_TOLERANCES = TOLERANCES["openvino"]
_COMPARED = 20  # of the samples, with the model

Arrays = Mapping[str, np.ndarray]


def export_openvino(
    served: ServedModel,
    path: str | os.PathLike,
    *,
    version: int | None = None,
    weights: str = "float32",
    samples: Iterable[Arrays] = (),
    description: str = "",
    check: Check = no_check,
) -> pathlib.Path:
    """Write OpenVINO files that take ids; numbers of rows and of pieces are free.

    Weights are "float32"; "float16", half the size, which become float32 when they are loaded; or
    "int8", a quarter, with products of integers. Of int8 the ranges of what is multiplied are
    those of some inputs (NNCF's quantization after training, for transformers), so these should
    be like the inputs that come.

    Args:
        served: the model.
        path: folder of the model's versions.
        version: number of the version, at least 1; by default one more than the highest there is.
        weights: see above.
        samples: for int8, inputs of the model by name, int32 [B, L]; MOST_SAMPLES are taken.
        description: of the weights, for the model card.
        check: gets the loaded file, and gives lines for the card or raises an error.

    Returns:
        The folder written: path/version.

    Raises:
        FileExistsError, OSError: as of `export_saved_model`.
        ValueError: version is below 1, weights unknown, or int8 without samples.
        RuntimeError: what was written differs from the model by more than TOLERANCES; nothing is
            left of it.
        ImportError: the extra "openvino" is not installed.
    """
    if weights not in _TOLERANCES:
        raise ValueError(f"weights: expected one of {', '.join(_TOLERANCES)}, got {weights!r}")
    taken = [dict(arrays) for arrays, _ in zip(samples, range(MOST_SAMPLES), strict=False)]
    if weights == "int8" and not taken:
        raise ValueError("samples: expected inputs to calibrate int8 with, got none")
    try:
        import openvino  # pyright: ignore[reportMissingImports]

        if weights == "int8":
            import nncf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"format: openvino needs pip install 'bert-tf[openvino]' ({error})"
        ) from error
    with new_version(path, version) as (folder, target):
        module = lite_module(served, ids_only=True)
        with tempfile.TemporaryDirectory() as saved:
            tf.saved_model.save(module, saved, signatures={"serving_default": module.run})
            graph = openvino.convert_model(saved)
        if weights == "int8":
            graph = _quantize(graph, taken)
        openvino.save_model(graph, folder / OPENVINO_NAME, compress_to_fp16=weights == "float16")
        write_description(folder, served, module, "openvino", weights)
        run = load_openvino(folder)
        # Ids drawn at random are outside of the ranges that int8 was given.
        difference = _worst(served, run, taken) if taken else worst_of_ids(served, run)
        notes = [precision_note(weights, difference, _TOLERANCES[weights]), *check(run)]
        write_card(folder, target, served, module, description, notes)
    return target


def load_openvino(folder: str | os.PathLike, *, threads: int = 1) -> Run:
    """Load OpenVINO files, on the processor, to compute in float32 what is not of integers.

    Args:
        folder: as `export_openvino` wrote it.
        threads: how many it uses.

    Returns:
        A function: arrays by the names of inputs to those of outputs.
    """
    import openvino  # pyright: ignore[reportMissingImports]

    graph = openvino.Core().read_model(pathlib.Path(folder) / OPENVINO_NAME)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(graph, "CPU", settings)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(**arrays: np.ndarray) -> Mapping[str, np.ndarray]:
        outputs = compiled(arrays)
        return {name: np.array(outputs[number]) for number, name in enumerate(names)}

    return run


def _quantize(graph: Any, samples: Sequence[Arrays]) -> Any:
    import nncf  # pyright: ignore[reportMissingImports]

    # Of weights 7 bits: sums of products of 8 overflow on processors without VNNI.
    fix = nncf.quantization.advanced_parameters.OverflowFix.ENABLE
    with less_of("nncf", logging.ERROR):
        return nncf.quantize(
            graph,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )


def _worst(served: ServedModel, run: Run, samples: Sequence[Arrays]) -> float:
    """Return the worst difference of a file's outputs from the model's, for some inputs."""
    worst = [
        worst_difference(run(**arrays), run_arrays(served, arrays))
        for arrays in samples[:_COMPARED]
    ]
    return float(np.max(worst))
