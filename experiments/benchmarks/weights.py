"""Measure reading a checkpoint: time, and memory beside the model itself.

    python experiments/benchmarks/weights.py --model_size=large

Writes a model of random weights in every format, then reads each in a process of its own and runs
it once on a few word pieces, so that weights which are only mapped count as well. Import is not
counted. Memory (on Linux) is the process's peak above what it held before; "extra" is that peak
beyond a model of this package that is only built, in multiples of the weights' size.

- ours: `bert_tf.load_bert` of a TF1 checkpoint, transformers' safetensors, a KerasHub preset, a
  .keras and a .weights.h5 file;
- transformers: `BertModel.from_pretrained` of the same safetensors;
- kerashub: `BertBackbone.from_preset` of the same preset.

transformers and torch are only needed for their row; where they are missing it is left out.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS

flags.DEFINE_string("model_size", "large", "Key of bert_tf.SIZES.")
flags.DEFINE_integer("vocab_size", 30522, "Word pieces in the vocabulary.")
flags.DEFINE_integer("num_rounds", 1, "Times each is read; the least CPU seconds count.")
flags.DEFINE_string("contender", None, "Read this one in this process and print its figures.")
flags.DEFINE_string("folder", None, "Where the checkpoints are; made anew by default.")
flags.DEFINE_string("output_file", None, "Where to write the figures as JSON; nowhere by default.")

_IDS = np.arange(1, 9, dtype=np.int32)[None]
_MASK, _SEGMENTS = np.ones_like(_IDS), np.zeros_like(_IDS)
_MIB = 2**20


def _run_ours(model) -> None:
    model({"input_ids": _IDS, "input_mask": _MASK, "segment_ids": _SEGMENTS})


def _built_only() -> Callable[[], None]:
    import keras

    import bert_tf
    from bert_tf.models.layers import initial_values

    def read():
        config = bert_tf.BertConfig.from_size(FLAGS.model_size, vocab_size=FLAGS.vocab_size)
        with initial_values(keras.initializers.Zeros()):
            model = bert_tf.bert_encoder(config)
        _run_ours(model)

    return read


def _ours(name: str) -> Callable[[], Callable[[], None]]:
    def prepare():
        import bert_tf

        if name == "keras_hub":
            import keras_hub  # noqa: F401

        load_bert = bert_tf.load_bert
        return lambda: _run_ours(load_bert(os.path.join(FLAGS.folder, name)).encoder)

    return prepare


def _transformers() -> Callable[[], None]:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()

    def read():
        path = os.path.join(FLAGS.folder, "hf")
        model = transformers.BertModel.from_pretrained(path).eval()
        with torch.no_grad():
            model(torch.tensor(_IDS).long())

    return read


def _keras_hub() -> Callable[[], None]:
    import keras_hub

    def read():
        path = os.path.join(FLAGS.folder, "keras_hub")
        backbone = keras_hub.models.BertBackbone.from_preset(path)
        backbone({"token_ids": _IDS, "padding_mask": _MASK, "segment_ids": _SEGMENTS})

    return read


# Name -> imports what is needed and returns what is measured.
CONTENDERS = {
    "built only": _built_only,
    "ours, TF1 checkpoint": _ours("tf1"),
    "ours, safetensors": _ours("hf"),
    "ours, KerasHub preset": _ours("keras_hub"),
    "ours, .keras": _ours("keras"),
    "ours, .weights.h5": _ours("weights_h5"),
    "transformers, safetensors": _transformers,
    "kerashub, preset": _keras_hub,
}


def _peak_mib() -> float:
    """Return the peak of this program alone; that of getrusage outlives the start of a program."""
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measure(name: str) -> dict[str, float]:
    """Read once in this process.

    Returns:
        CPU and wall seconds, and peak memory in MiB above that before.
    """
    read = CONTENDERS[name]()
    before, cpu, wall = _peak_mib(), time.process_time(), time.perf_counter()
    read()
    return {
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_mib": _peak_mib() - before,
    }


def write_checkpoints(folder: pathlib.Path) -> int:
    """Write a model of random weights in every format; return the size of its weights in bytes."""
    import bert_tf
    from bert_tf.weights.keras_hub_export import save_keras_hub
    from bert_tf.weights.save import save_hf, save_keras, save_model_directory

    config = bert_tf.BertConfig.from_size(FLAGS.model_size, vocab_size=FLAGS.vocab_size)
    model = bert_tf.bert_encoder(config)
    save_model_directory(folder / "tf1", model)
    save_hf(folder / "hf", model)
    save_keras_hub(folder / "keras_hub", model)
    save_keras(folder / "keras" / "model.keras", model)
    save_keras(folder / "weights_h5" / "model.weights.h5", model)
    return 4 * model.count_params()


def _in_process(name: str, folder: pathlib.Path) -> dict[str, float]:
    command = [sys.executable, __file__, f"--contender={name}", f"--folder={folder}"]
    command += [f"--model_size={FLAGS.model_size}", f"--vocab_size={FLAGS.vocab_size}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"benchmark_weights: {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Measure all contenders and print a table."""
    del argv
    if FLAGS.contender:
        print(json.dumps(measure(FLAGS.contender)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        size = write_checkpoints(folder) / _MIB
        print(f"{FLAGS.model_size}: weights of {size:.0f} MiB")
        figures: dict[str, dict[str, float]] = {}
        for name in CONTENDERS:
            if name.startswith("transformers") and not importlib.util.find_spec("transformers"):
                print(f"{name}: not installed")
                continue
            rounds = [_in_process(name, folder) for _ in range(FLAGS.num_rounds)]
            best = min(rounds, key=lambda row: row["cpu_seconds"])
            # The heap grows more or less by chance: the largest peak counts.
            best["peak_mib"] = max(row["peak_mib"] for row in rounds)
            figures[name] = best
            if name != "built only" and not name.startswith(("transformers", "kerashub")):
                best["extra"] = (best["peak_mib"] - figures["built only"]["peak_mib"]) / size
            extra = f"{best['extra']:7.2f}" if "extra" in best else f"{'':7}"
            print(
                f"{name:28} {best['cpu_seconds']:7.2f} CPU s {best['wall_seconds']:7.2f} s "
                f"{best['peak_mib']:7.0f} MiB {extra}",
                flush=True,
            )
    if FLAGS.output_file:
        with open(FLAGS.output_file, "w", encoding="utf-8") as file:
            json.dump({"model_size": FLAGS.model_size, "figures": figures}, file, indent=2)


if __name__ == "__main__":
    app.run(main)
