"""Exports a model as a SavedModel that takes plain strings and gives finished answers.

    python experiments/export_model.py --model_dir=runs/mrpc --saved_model=exported/mrpc
    python experiments/export_model.py --model_dir=runs/squad --saved_model=exported/squad

The model directory is one of run_pretraining.py, of the fine-tuning scripts, or any checkpoint
that bert_tf.load_model reads. What it is for, its labels, lengths and thresholds are those of
training; --task and the other flags say what a foreign checkpoint does not. The SavedModel is
written as a new version in --saved_model, as TF Serving reads it, with a request to warm up with
and model_card.md. Before it gets its name its answers are compared with those of the Keras model.

    python experiments/export_model.py --model_dir=runs/mrpc --output_dir=exported/mrpc_lite \
        --format=tflite --weights=int8

writes a file for TFLite instead, --format=onnx one for ONNX Runtime (with the extra onnx), in the
folder of a version too, with model.json and vocab.txt. --weights says in what a file holds them,
and so how large it is.
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import app, flags, logging

from experiments.command_line.exit_status import exit_on_error

# What each format can hold weights in.
WEIGHTS = {
    "saved_model": ("float32", "float16", "bfloat16"),
    "tflite": ("float32", "float16", "int8"),
    "onnx": ("float32",),
}


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every renamed input.
    return exit_on_error("export_model", lambda: run(flags.FLAGS))


def run(values: flags.FlagValues) -> None:
    """Export as the flags say.

    Raises:
        ValueError, OSError, RuntimeError: bad flags or model, or the file differs from the model.
        ImportError: a package of the format's extra is missing.
    """
    from bert_tf.serving.load import load_served_model
    from bert_tf.serving.onnx import export_onnx
    from bert_tf.serving.saved_model import export_saved_model
    from bert_tf.serving.tflite import export_tflite

    if values.weights not in WEIGHTS[values.format]:
        raise ValueError(
            f"weights: {values.format} can hold {', '.join(WEIGHTS[values.format])}, got "
            f"{values.weights}"
        )
    served = load_served_model(
        values.model_dir,
        task=values.task,
        vocab_file=values.vocab_file,
        do_lower_case=values.do_lower_case,
        max_seq_length=values.max_seq_length,
        has_pairs=values.pairs,
        labels=values.labels or None,
        null_score_diff_threshold=values.null_score_diff_threshold,
        words=values.words,
        top_k=values.top_k,
        layer=values.layer,
    )
    options: dict[str, Any] = {
        "version": values.version,
        "description": values.description or f"read from {values.model_dir}",
    }
    if values.format == "onnx":
        write = export_onnx
    else:
        lite = values.format == "tflite"
        write = export_tflite if lite else export_saved_model
        options |= {"ids_only": values.ids_only, "weights": values.weights}
    folder = write(served, values.output_dir, **options)
    size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())
    print(f"{values.model_dir} exported to {folder} ({size / 1e6:.1f} MB), {served.task}")


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    text = lambda *a: flags.DEFINE_string(*a, flag_values=values)  # noqa: E731
    integer = lambda *a, **b: flags.DEFINE_integer(*a, flag_values=values, **b)  # noqa: E731
    text("model_dir", None, "Model directory or checkpoint.")
    text("output_dir", None, "Folder of the model's versions; its last part is the name.")
    flags.DEFINE_alias("saved_model", "output_dir", flag_values=values)
    flags.mark_flags_as_required(["model_dir", "output_dir"], values)
    flags.DEFINE_enum("format", "saved_model", [*WEIGHTS], "What to write.", flag_values=values)
    flags.DEFINE_enum(
        "weights",
        "float32",
        ["float32", "float16", "bfloat16", "int8"],
        "What the file holds the weights in; int8 is for tflite, bfloat16 for a SavedModel.",
        flag_values=values,
    )
    text("description", None, "Of the weights, for the model card; by default where they were.")
    integer("version", None, "Version; by default one more than the highest there is.")
    text("task", None, "What it is for, of a checkpoint that does not say; fill_mask and so on.")
    text("vocab_file", None, "Vocabulary; by default the model directory's.")
    flags.DEFINE_bool(
        "do_lower_case", None, "Casing; by default the model directory's.", flag_values=values
    )
    integer("max_seq_length", None, "Pieces of a sequence; training's, or 128.", lower_bound=3)
    flags.DEFINE_bool(
        "pairs",
        None,
        "Whether requests have two texts; training's.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "labels", [], "Names of the labels; by default the model directory's.", flag_values=values
    )
    flags.DEFINE_float(
        "null_score_diff_threshold",
        None,
        "Question answering: no answer if the null score is greater; training's.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "words",
        "punctuation",
        ["punctuation", "white_space"],
        "Tagging: what parts the words of a text.",
        flag_values=values,
    )
    integer("top_k", 5, "Filling masks: candidates for each.", lower_bound=1)
    integer("layer", -1, "Embeddings: hidden state to take the mean of, 0 for the embeddings.")
    flags.DEFINE_bool(
        "ids_only",
        False,
        "Take ids instead of strings: no operations of tensorflow_text. Always so for onnx.",
        flag_values=values,
    )


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
