"""Export of a model as what serves strings."""

import dataclasses
import pathlib

from bert_tf.serving.load import load_served_model
from bert_tf.serving.onnx import export_onnx
from bert_tf.serving.saved_model import compute_note, export_saved_model
from bert_tf.serving.tflite import export_tflite
from experiments.conversion.options import ExportOptions


def run(options: ExportOptions) -> None:
    """Export as the options say.

    Raises:
        ValueError, OSError, RuntimeError: bad options or model, or the file differs from the model.
        ImportError: a package of the format's extra is missing.
    """
    serving = dataclasses.asdict(options.serving)
    served = load_served_model(options.model_dir, **serving)
    output_dir, version = options.output_dir, options.version
    description = options.description or f"read from {options.model_dir}"
    if options.compute != "float32":
        reference = served
        served = load_served_model(options.model_dir, dtype=options.compute, **serving)
        note = compute_note(served, reference, options.compute)
        print(note)
        description = f"{description}. {note.removesuffix('.')}"
    if options.format == "onnx":
        folder = export_onnx(served, output_dir, version=version, description=description)
    else:
        tflite = options.format == "tflite"
        write = export_tflite if tflite else export_saved_model
        folder = write(
            served,
            output_dir,
            version=version,
            description=description,
            ids_only=options.ids_only,
            weights=options.weights,
            **({} if tflite else {"for_server": options.for_server}),
        )
    size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())
    print(f"{options.model_dir} exported to {folder} ({size / 1e6:.1f} MB), {served.task}")
