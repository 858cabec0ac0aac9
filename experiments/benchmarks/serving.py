"""Latency from strings to vectors: our SavedModel and other files beside transformers.

    python experiments/benchmarks/serving.py --model_dir=$MINILM --threads=1 --output_file=t1.json

Every contender gets the same texts, of exactly the same number of pieces, and gives the mean of the
last hidden state; before anything is timed all are compared with transformers. They take turns, so
that what else the machine does meets all alike:

- SavedModel: as export_model.py writes it, loaded with tensorflow and tensorflow_text;
- transformers: its fast tokenizer and its model on torch, in inference mode;
- ONNX Runtime and OpenVINO: our files behind the `tokenizers` library, in float32 and int8;
- TFLite: our model.tflite that takes strings, in float32, float16 and int8.

Wall time and the process's CPU time (of all its threads) of each call are noted; the table shows
medians, and how many times faster than transformers each is by either. What is not installed is
left out. --threads holds for each of them; run it again for another number, since TensorFlow takes
it once.
"""

import dataclasses
import functools
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nobody's threads shall wait busily while another has its turn, or where the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from absl import flags, logging

from bert_tf.options import option
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Contender, Figures


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    model_dir: str = option(None, "Model in transformers' files, uncased.", required=True)
    threads: int = option(1, "Threads of each contender.", minimum=1)
    rounds: int = option(5, "Turns of each contender.", minimum=1)
    calls: int = option(30, "Calls in a turn, of one text of 32 pieces.", minimum=1)
    export_dir: str | None = option(None, "Where exported files are kept; nowhere by default.")


MAX_SEQ_LENGTH = 128
REFERENCE = "transformers"
ID_INPUTS = ("input_ids", "input_mask", "segment_ids")
# From this text the words are taken; each counts as the pieces that the vocabulary makes of it.
PASSAGE = """
The harbour was quiet that morning, and the boats lay close together under a thin layer of fog. A
woman in a long grey coat walked along the wall with two small dogs, stopping at every lamp. She had
come here each day since the end of the war, first with her husband, later alone, and the men who
mended nets knew her step. One of them, the youngest, had once asked what she was looking for. She
told him about a ship that carried grain from the south, and about a letter that should have been on
it. He did not know how to answer, so he showed her how to tie a knot that holds in any weather.
""".split()

Encode = Callable[[Sequence[str]], np.ndarray]


def _saved_model(options: Options, folder: pathlib.Path) -> Encode:
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    answer = tf.saved_model.load(os.fspath(folder / "saved_model/1")).signatures["serving_default"]
    return lambda texts: answer(text=tf.constant(texts))["mean"].numpy()


def _transformers(options: Options, folder: pathlib.Path) -> Encode:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model_dir, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(options.model_dir, local_files_only=True).eval()

    def encode(texts: Sequence[str]) -> np.ndarray:
        cut = {"truncation": True, "max_length": MAX_SEQ_LENGTH}
        inputs = tokenizer(list(texts), padding=True, return_tensors="pt", **cut)
        with torch.inference_mode():
            state = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][:, :, None].to(state.dtype)
            return ((state * mask).sum(1) / mask.sum(1)).numpy()

    return encode


def _of_ids(options: Options, folder: pathlib.Path, runtime: str, weights: str) -> Encode:
    import tokenizers

    from bert_tf.serving.onnx import load_onnx
    from bert_tf.serving.openvino import load_openvino

    tokenizer = tokenizers.Tokenizer.from_file(f"{options.model_dir}/tokenizer.json")
    tokenizer.enable_truncation(MAX_SEQ_LENGTH)
    tokenizer.enable_padding()
    load = {"onnx": load_onnx, "openvino": load_openvino}[runtime]
    run = load(folder / f"{runtime}_{weights}/1", threads=options.threads)

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = [(e.ids, e.attention_mask, e.type_ids) for e in tokenizer.encode_batch(texts)]
        arrays = np.array(rows, np.int32).swapaxes(0, 1)
        return run(**dict(zip(ID_INPUTS, arrays, strict=True)))["mean"]

    return encode


def _tflite(options: Options, folder: pathlib.Path, runtime: str, weights: str) -> Encode:
    from bert_tf.serving.tflite import load_tflite

    run = load_tflite(folder / f"{runtime}_{weights}/1", threads=options.threads)
    return lambda texts: run(text=np.array(texts, object))["mean"]


# Each makes, of the options and the folder of exported files, texts -> float32 [B, H].
CONTENDERS = {
    "SavedModel": Contender(_saved_model, ("tensorflow_text",)),
    REFERENCE: Contender(_transformers, ("torch", "transformers")),
}
# Contender -> the format and weights of its file.
_FILES: dict[str, tuple[str, str]] = {}


def _add(name: str, runtime: str, weights: str, encode: Callable[..., Encode], *packages: str):
    prepare = functools.partial(encode, runtime=runtime, weights=weights)
    CONTENDERS[f"{name} {weights}"] = Contender(prepare, packages)
    _FILES[f"{name} {weights}"] = runtime, weights


for _weights in ("float32", "int8"):
    _add("ONNX Runtime", "onnx", _weights, _of_ids, "tf2onnx", "onnxruntime")
    _add("OpenVINO", "openvino", _weights, _of_ids, "openvino", "nncf")
for _weights in ("float32", "float16", "int8"):
    _add("TFLite", "tflite", _weights, _tflite, "tensorflow_text")
# How far a vector may be from transformers', against its length.
_TOLERANCES = {
    "SavedModel": 1e-4,
    REFERENCE: 0.0,
    "ONNX Runtime float32": 1e-4,
    "ONNX Runtime int8": 0.2,
    "OpenVINO float32": 1e-4,
    "OpenVINO int8": 0.2,
    "TFLite float32": 1e-4,
    "TFLite float16": 1e-2,
    "TFLite int8": 0.2,
}


def export(model_dir: str, folder: pathlib.Path, contenders: Collection[str]) -> None:
    """Write the model for the contenders that are there, where it is not written yet."""
    from bert_tf.serving.load import load_served_model
    from bert_tf.serving.onnx import export_onnx
    from bert_tf.serving.openvino import export_openvino
    from bert_tf.serving.saved_model import export_saved_model
    from bert_tf.serving.tflite import export_tflite

    write: dict[str, Callable[..., object]] = {
        "tflite": export_tflite,
        "onnx": export_onnx,
        "openvino": export_openvino,
    }

    def load():
        return load_served_model(model_dir, task="embeddings", max_seq_length=MAX_SEQ_LENGTH)

    if not (folder / "saved_model").exists():
        export_saved_model(load(), folder / "saved_model")
    for name in contenders:
        runtime, weights = _FILES.get(name, ("", ""))
        target = folder / f"{runtime}_{weights}"
        if runtime and not target.exists():
            calibrated = {}
            if (runtime, weights) == ("openvino", "int8"):
                calibrated["samples"] = _samples(model_dir)
            write[runtime](load(), target, weights=weights, **calibrated)


def _samples(model_dir: str) -> Iterator[dict[str, np.ndarray]]:
    """Make inputs to calibrate with: parts of the passage, of all lengths."""
    tokenizer = FullTokenizer(pathlib.Path(model_dir) / "vocab.txt", do_lower_case=True)
    for number in range(96):
        words = [PASSAGE[(number + i) % len(PASSAGE)] for i in range(4 + number)]
        pieces = ["[CLS]", *tokenizer.tokenize(" ".join(words))[: MAX_SEQ_LENGTH - 2], "[SEP]"]
        ids = np.array([tokenizer.convert_tokens_to_ids(pieces)], np.int32)
        yield dict(zip(ID_INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))


def make_texts(vocab: dict[str, int], batch_size: int, length: int) -> list[str]:
    """Return different texts of exactly so many pieces, [CLS] and [SEP] counted."""
    tokenizer = FullTokenizer.from_vocab(vocab, do_lower_case=True)
    texts = []
    for row in range(batch_size):
        words, room, number = [], length - 2, 7 * row
        while room:
            word = PASSAGE[number % len(PASSAGE)]
            number += 1
            size = len(tokenizer.tokenize(word))
            if size <= room:
                words.append(word)
                room -= size
        texts.append(" ".join(words))
    return texts


def measure(encode: Encode, texts: Sequence[str], calls: int) -> list[harness.Spent]:
    """Return the seconds of calls, after two that do not count."""
    times = []
    for number in range(-2, calls):
        with harness.timed() as spent:
            encode(texts)
        if number >= 0:
            times.append(spent)
    return times


def summary(times: Sequence[harness.Spent], texts: int) -> Figures:
    """Return medians and 90th percentiles of wall and CPU milliseconds, and texts a second."""
    wall = 1e3 * np.array([spent.wall for spent in times])
    cpu = 1e3 * np.array([spent.cpu for spent in times])
    return {
        "wall_ms": float(np.median(wall)),
        "wall_ms_p90": float(np.percentile(wall, 90)),
        "cpu_ms": float(np.median(cpu)),
        "texts_per_second": float(1e3 * texts / np.median(wall)),
        "texts_per_cpu_second": float(1e3 * texts / np.median(cpu)),
        "calls": len(times),
    }


def compare(vectors: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how far vectors are from transformers', at worst, against their length.

    Raises:
        SystemExit: one is too far: then its time would say nothing.
    """
    if REFERENCE not in vectors:
        return {}
    expected = vectors[REFERENCE]
    differences = {}
    for name, value in vectors.items():
        distance = np.linalg.norm(value - expected, axis=1) / np.linalg.norm(expected, axis=1)
        differences[name] = float(np.max(distance))
        if not differences[name] <= _TOLERANCES[name]:
            raise SystemExit(f"serving: {name} differs by {differences[name]:.2g}")
    return differences


def _encoders(options: Options, folder: pathlib.Path) -> dict[str, Encode]:
    """Export the model and load it in everything that is installed."""
    encoders = {}
    contenders = harness.installed(CONTENDERS)
    export(options.model_dir, folder, contenders)
    for name, contender in contenders.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoders[name] = contender.prepare(options, folder)
    return encoders


def _cases(options: Options, encoders: dict[str, Encode]) -> Iterator[Figures]:
    """Measure all contenders for each batch size and length."""
    vocab = load_vocab(pathlib.Path(options.model_dir) / "vocab.txt")
    for batch_size in (1, 8):
        for length in (32, 128):
            texts = make_texts(vocab, batch_size, length)
            differences = compare({name: encode(texts) for name, encode in encoders.items()})
            times: dict[str, list[harness.Spent]] = {name: [] for name in encoders}
            calls = max(2, options.calls // (batch_size * length // 32))
            for number in range(options.rounds):
                order = list(encoders)
                for name in order if number % 2 else order[::-1]:
                    times[name] += measure(encoders[name], texts, calls)
            figures = {name: summary(spent, batch_size) for name, spent in times.items()}
            for name, row in figures.items():
                row["difference"] = differences.get(name, 0.0)
                if REFERENCE in figures:
                    for unit in ("wall_ms", "cpu_ms"):
                        row[f"times_faster_{unit[:-3]}"] = figures[REFERENCE][unit] / row[unit]
            yield {"batch_size": batch_size, "length": length, "figures": figures}


def show(case: dict[str, Any]) -> None:
    """Print the table of one case."""
    print(f"\nbatch {case['batch_size']}, {case['length']} pieces")
    table = harness.Table(
        "name wall_ms:.1f wall_ms_p90:.1f cpu_ms:.1f texts_per_second:.1f times_faster_wall:.2f "
        "times_faster_cpu:.2f difference:.1e"
    )
    for name, row in case["figures"].items():
        table.row({"name": name, **row})


def run(options: Options) -> None:
    """Measure everything; print tables and write the figures."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every renamed input.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    cases = []
    with tempfile.TemporaryDirectory() as temporary:
        encoders = _encoders(options, pathlib.Path(options.export_dir or temporary))
        for case in _cases(options, encoders):
            cases.append(case)
            show(case)
    harness.write_figures(options, cases=cases)


if __name__ == "__main__":
    harness.run_benchmark(Options, run)
