"""Export of a model as what serves strings or ids."""

import dataclasses
import pathlib
from typing import Any

from bert_tf.serving.load import load_served_model
from bert_tf.serving.onnx import export_onnx
from bert_tf.serving.openvino import export_openvino
from bert_tf.serving.saved_model import compute_note, export_saved_model
from bert_tf.serving.served_model import ServedModel
from bert_tf.serving.tflite import export_tflite
from experiments.conversion.options import ExportOptions
from experiments.conversion.task_figures import TaskFigures, inputs_of, open_records

_EXPORT = {
    "saved_model": export_saved_model,
    "tflite": export_tflite,
    "onnx": export_onnx,
    "openvino": export_openvino,
}


def run(options: ExportOptions) -> None:
    """Export as the options say.

    Raises:
        ValueError, OSError, RuntimeError: bad options or model, or the file differs from the model.
        ImportError: a package of the format's extra is missing.
    """
    serving = dataclasses.asdict(options.serving)
    served = load_served_model(options.model_dir, **serving)
    arguments = _arguments(options, served)
    description = options.description or f"read from {options.model_dir}"
    if options.compute != "float32":
        reference = served
        served = load_served_model(options.model_dir, dtype=options.compute, **serving)
        note = compute_note(served, reference, options.compute)
        print(note)
        description = f"{description}. {note.removesuffix('.')}"
    folder = _EXPORT[options.format](
        served,
        options.output_dir,
        version=options.version,
        weights=options.weights,
        description=description,
        **arguments,
    )
    size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())
    print(f"{options.model_dir} exported to {folder} ({size / 1e6:.1f} MB), {served.task}")


def _arguments(options: ExportOptions, served: ServedModel) -> dict[str, Any]:
    """Return what only some formats take."""
    arguments: dict[str, Any] = {}
    if options.format in ("saved_model", "tflite"):
        arguments["ids_only"] = options.ids_only
    if options.format == "saved_model":
        arguments["for_server"] = options.for_server
    if options.calibration_file is not None:
        arguments["samples"] = inputs_of(open_records(options.calibration_file, served))
    if options.dev_file is not None:
        arguments["check"] = TaskFigures(options.dev_file, served, options.dev_tolerance)
    return arguments
