r"""Exports a model as a SavedModel that takes plain strings and gives finished answers.

    python experiments/export_model.py --model_dir=runs/mrpc --output_dir=exported/mrpc
    python experiments/export_model.py --model_dir=runs/squad --output_dir=exported/squad

The model directory is one of run_pretraining.py, of the fine-tuning scripts, or any checkpoint
that bert_tf.load_model reads. What it is for, its labels, lengths and thresholds are those of
training; --task and the other flags say what a foreign checkpoint does not. The SavedModel is
written as a new version in --saved_model, as TF Serving reads it, with a request to warm up with
and model_card.md. Before it gets its name its answers are compared with those of the Keras model.

    python experiments/export_model.py --model_dir=runs/mrpc --output_dir=exported/mrpc_lite \
        --format=tflite --weights=int8

writes a file for TFLite instead, --format=onnx or openvino one for these (with the extra of that
name), in the folder of a version too, with model.json and vocab.txt. --weights says in what a file
holds them, and so how large it is. With --dev_file it is only written if it does the task as well.
"""

from experiments.command_line.command import run_command
from experiments.conversion.options import ExportOptions

if __name__ == "__main__":
    run_command(ExportOptions, "experiments.conversion.export", "warning")
