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

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

from bert_tf.options import option
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Contender, Figures
from experiments.command_line.memory import peak_bytes


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    model_size: str = option("large", "Key of bert_tf.SIZES.")
    vocab_size: int = option(30522, "Word pieces in the vocabulary.")
    num_rounds: int = option(1, "Times each is read; the least CPU seconds count.", minimum=1)
    folder: str | None = option(None, "Where the checkpoints are; made anew by default.")


_IDS = np.arange(1, 9, dtype=np.int32)[None]
_MASK, _SEGMENTS = np.ones_like(_IDS), np.zeros_like(_IDS)
_MIB = 2**20


def _run_ours(model) -> None:
    model({"input_ids": _IDS, "input_mask": _MASK, "segment_ids": _SEGMENTS})


def _built_only(options: Options) -> Callable[[], None]:
    import keras

    import bert_tf
    from bert_tf.models.layers import initial_values

    def read():
        config = bert_tf.BertConfig.from_size(options.model_size, vocab_size=options.vocab_size)
        with initial_values(keras.initializers.Zeros()):
            model = bert_tf.bert_encoder(config)
        _run_ours(model)

    return read


def _ours(name: str) -> Callable[[Options], Callable[[], None]]:
    def prepare(options):
        import bert_tf

        if name == "keras_hub":
            import keras_hub  # noqa: F401

        load_bert = bert_tf.load_bert
        return lambda: _run_ours(load_bert(os.path.join(options.folder, name)).encoder)

    return prepare


def _transformers(options: Options) -> Callable[[], None]:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()

    def read():
        path = pathlib.Path(str(options.folder), "hf")
        model = transformers.BertModel.from_pretrained(path, local_files_only=True).eval()
        with torch.no_grad():
            model(torch.tensor(_IDS).long())

    return read


def _keras_hub(options: Options) -> Callable[[], None]:
    import keras_hub

    def read():
        path = os.path.join(str(options.folder), "keras_hub")
        backbone = keras_hub.models.BertBackbone.from_preset(path)
        backbone({"token_ids": _IDS, "padding_mask": _MASK, "segment_ids": _SEGMENTS})

    return read


# Each imports what is needed and returns what is measured.
CONTENDERS = {
    "built only": Contender(_built_only),
    "ours, TF1 checkpoint": Contender(_ours("tf1")),
    "ours, safetensors": Contender(_ours("hf")),
    "ours, KerasHub preset": Contender(_ours("keras_hub")),
    "ours, .keras": Contender(_ours("keras")),
    "ours, .weights.h5": Contender(_ours("weights_h5")),
    "transformers, safetensors": Contender(_transformers, ("torch", "transformers")),
    "kerashub, preset": Contender(_keras_hub, ("keras_hub",)),
}


def measure(options: Options, name: str) -> Figures:
    """Read once in this process.

    Returns:
        CPU and wall seconds, and peak memory in MiB above that before.
    """
    read = CONTENDERS[name].prepare(options)
    before = peak_bytes(os.getpid())
    with harness.timed() as spent:
        read()
    peak_mib = (peak_bytes(os.getpid()) - before) / _MIB
    return {"cpu_seconds": spent.cpu, "wall_seconds": spent.wall, "peak_mib": peak_mib}


def write_checkpoints(options: Options, folder: pathlib.Path) -> int:
    """Write a model of random weights in every format; return the size of its weights in bytes."""
    import bert_tf
    from bert_tf.weights.keras_hub import save_keras_hub
    from bert_tf.weights.save import save_hf, save_keras, save_model_directory

    config = bert_tf.BertConfig.from_size(options.model_size, vocab_size=options.vocab_size)
    model = bert_tf.bert_encoder(config)
    save_model_directory(folder / "tf1", model)
    save_hf(folder / "hf", model)
    save_keras_hub(folder / "keras_hub", model)
    save_keras(folder / "keras" / "model.keras", model)
    save_keras(folder / "weights_h5" / "model.weights.h5", model)
    return 4 * model.count_params()


def compare(options: Options) -> None:
    """Write the checkpoints, read each by all contenders and print a table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        size = write_checkpoints(options, folder) / _MIB
        print(f"{options.model_size}: weights of {size:.0f} MiB")
        table = harness.Table("name cpu_seconds:.2f wall_seconds:.2f peak_mib:.0f extra:.2f")
        figures: dict[str, Figures] = {}
        for name in harness.installed(CONTENDERS):
            place = f"--folder={folder}"
            rounds = [harness.in_process(name, place) for _ in range(options.num_rounds)]
            best = min(rounds, key=lambda row: row["cpu_seconds"])
            # The heap grows more or less by chance: the largest peak counts.
            best["peak_mib"] = max(row["peak_mib"] for row in rounds)
            figures[name] = best
            if name.startswith("ours"):
                best["extra"] = (best["peak_mib"] - figures["built only"]["peak_mib"]) / size
            table.row({"name": name, **best})
    harness.write_figures(options, figures=figures)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare, measure)
