"""Latency from strings to vectors: our SavedModel, TFLite and ONNX files beside transformers.

    python experiments/benchmarks/serving.py --model_dir=$MINILM --threads=1 --output_file=t1.json

Every contender gets the same texts, of exactly the same number of pieces, and gives the mean of the
last hidden state; before anything is timed all are compared with transformers. They take turns, so
that what else the machine does meets all alike:

- SavedModel: as export_model.py writes it, loaded with tensorflow and tensorflow_text;
- transformers: its fast tokenizer and its model on torch, in inference mode;
- ONNX Runtime: our model.onnx behind the `tokenizers` library;
- TFLite: our model.tflite that takes strings, in float32, float16 and int8.

Wall time and the process's CPU time (of all its threads) of each call are noted; the table shows
medians, and how many times faster than transformers each is by either. What is not installed is
left out. --threads holds for each of them; run it again for another number, since TensorFlow takes
it once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nobody's threads shall wait busily while another has its turn, or where the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from absl import app, flags, logging

MAX_SEQ_LENGTH = 128
REFERENCE = "transformers"
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


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is measured.

    Attributes:
        make: returns texts -> float32 [B, H].
        needs: module that it needs.
        tolerance: how far a vector may be from transformers', against its length.
    """

    make: Callable[[pathlib.Path], Encode]
    needs: str
    tolerance: float


def _saved_model(folder: pathlib.Path) -> Encode:
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    answer = tf.saved_model.load(os.fspath(folder / "saved_model/1")).signatures["serving_default"]
    return lambda texts: answer(text=tf.constant(texts))["mean"].numpy()


def _transformers(folder: pathlib.Path) -> Encode:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(flags.FLAGS.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(flags.FLAGS.model_dir)
    model = transformers.AutoModel.from_pretrained(flags.FLAGS.model_dir).eval()

    def encode(texts: Sequence[str]) -> np.ndarray:
        inputs = tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=MAX_SEQ_LENGTH,
            return_tensors="pt",
        )
        with torch.inference_mode():
            state = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][:, :, None].to(state.dtype)
            return ((state * mask).sum(1) / mask.sum(1)).numpy()

    return encode


def _onnxruntime(folder: pathlib.Path) -> Encode:
    import onnxruntime
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(f"{flags.FLAGS.model_dir}/tokenizer.json")
    tokenizer.enable_truncation(MAX_SEQ_LENGTH)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = flags.FLAGS.threads
    options.inter_op_num_threads = 1
    # As OMP_WAIT_POLICY above.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        os.fspath(folder / "onnx/1/model.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def encode(texts: Sequence[str]) -> np.ndarray:
        encodings = tokenizer.encode_batch(texts)
        inputs = {
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int32),
            "input_mask": np.array([encoding.attention_mask for encoding in encodings], np.int32),
            "segment_ids": np.array([encoding.type_ids for encoding in encodings], np.int32),
        }
        return session.run(["mean"], inputs)[0]

    return encode


def _tflite(weights: str) -> Callable[[pathlib.Path], Encode]:
    def make(folder: pathlib.Path) -> Encode:
        from bert_tf.serving.tflite import load_tflite

        run = load_tflite(folder / f"tflite_{weights}/1", threads=flags.FLAGS.threads)
        return lambda texts: run(text=np.array(texts, object))["mean"]

    return make


CONTENDERS = {
    "SavedModel": Contender(_saved_model, "tensorflow_text", 1e-4),
    REFERENCE: Contender(_transformers, "transformers", 0.0),
    "ONNX Runtime": Contender(_onnxruntime, "onnxruntime", 1e-4),
    "TFLite float32": Contender(_tflite("float32"), "tensorflow_text", 1e-4),
    "TFLite float16": Contender(_tflite("float16"), "tensorflow_text", 1e-2),
    "TFLite int8": Contender(_tflite("int8"), "tensorflow_text", 0.2),
}


def export(model_dir: str, folder: pathlib.Path) -> None:
    """Write the model in every format that can be written here, where it is not there yet."""
    from bert_tf.serving.load import load_served_model
    from bert_tf.serving.onnx import export_onnx
    from bert_tf.serving.saved_model import export_saved_model
    from bert_tf.serving.tflite import export_tflite

    def load():
        return load_served_model(model_dir, task="embeddings", max_seq_length=MAX_SEQ_LENGTH)

    if not (folder / "saved_model").exists():
        export_saved_model(load(), folder / "saved_model")
    for weights in ("float32", "float16", "int8"):
        if not (folder / f"tflite_{weights}").exists():
            export_tflite(load(), folder / f"tflite_{weights}", weights=weights)
    if importlib.util.find_spec("tf2onnx") and not (folder / "onnx").exists():
        export_onnx(load(), folder / "onnx")


def make_texts(vocab: dict[str, int], batch_size: int, length: int) -> list[str]:
    """Return different texts of exactly so many pieces, [CLS] and [SEP] counted."""
    from bert_tf.tokenization.wordpiece import FullTokenizer

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


def measure(encode: Encode, texts: Sequence[str], calls: int) -> list[tuple[float, float]]:
    """Return wall and CPU milliseconds of calls, after two that do not count."""
    found = []
    for number in range(-2, calls):
        wall, cpu = time.perf_counter(), time.process_time()
        encode(texts)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if number >= 0:
            found.append((1e3 * wall, 1e3 * cpu))
    return found


def summary(times: Sequence[tuple[float, float]], texts: int) -> dict[str, float]:
    """Return medians and 90th percentiles of wall and CPU milliseconds, and texts a second."""
    wall, cpu = np.transpose(times)
    return {
        "wall_ms": float(np.median(wall)),
        "wall_ms_p90": float(np.percentile(wall, 90)),
        "cpu_ms": float(np.median(cpu)),
        "texts_per_second": float(1e3 * texts / np.median(wall)),
        "texts_per_cpu_second": float(1e3 * texts / np.median(cpu)),
        "calls": len(times),
    }


def run(values: flags.FlagValues, folder: pathlib.Path) -> dict[str, Any]:
    """Measure everything; return the figures."""
    import tensorflow as tf

    from bert_tf.tokenization.vocabulary import load_vocab

    tf.config.threading.set_intra_op_parallelism_threads(values.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    export(values.model_dir, folder)
    encoders = {}
    for name, contender in CONTENDERS.items():
        if not importlib.util.find_spec(contender.needs):
            print(f"{name}: {contender.needs} is not installed")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoders[name] = contender.make(folder)
    vocab = load_vocab(pathlib.Path(values.model_dir) / "vocab.txt")
    results: dict[str, Any] = {"threads": values.threads, "cases": []}
    for batch_size in (1, 8):
        for length in (32, 128):
            texts = make_texts(vocab, batch_size, length)
            differences = compare({name: encode(texts) for name, encode in encoders.items()})
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
            calls = max(2, values.calls // (batch_size * length // 32))
            for number in range(values.rounds):
                order = list(encoders)
                for name in order if number % 2 else order[::-1]:
                    times[name] += measure(encoders[name], texts, calls)
            figures = {name: summary(found, batch_size) for name, found in times.items()}
            for name, row in figures.items():
                row["difference"] = differences.get(name, 0.0)
                if REFERENCE in figures:
                    for unit in ("wall_ms", "cpu_ms"):
                        row[f"times_faster_{unit[:-3]}"] = figures[REFERENCE][unit] / row[unit]
            results["cases"].append(
                {"batch_size": batch_size, "length": length, "figures": figures}
            )
            show(results["cases"][-1])
    return results


def compare(vectors: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how far vectors are from transformers', at worst, against their length.

    Raises:
        SystemExit: one is too far: then its time would say nothing.
    """
    if REFERENCE not in vectors:
        return {}
    expected = vectors[REFERENCE]
    found = {}
    for name, value in vectors.items():
        distance = np.linalg.norm(value - expected, axis=1) / np.linalg.norm(expected, axis=1)
        found[name] = float(np.max(distance))
        if not found[name] <= CONTENDERS[name].tolerance:
            raise SystemExit(f"benchmark_serving: {name} differs by {found[name]:.2g}")
    return found


def show(case: dict[str, Any]) -> None:
    """Print the table of one case."""
    print(f"\nbatch {case['batch_size']}, {case['length']} pieces")
    columns = ("ms", "p90", "CPU ms", "texts/s", "faster", "CPU", "differs")
    print(f"{'':16}" + "".join(f"{column:>9}" for column in columns))
    for name, row in case["figures"].items():
        print(
            f"{name:16}{row['wall_ms']:9.1f}{row['wall_ms_p90']:9.1f}{row['cpu_ms']:9.1f}"
            f"{row['texts_per_second']:9.1f}{row.get('times_faster_wall', np.nan):9.2f}"
            f"{row.get('times_faster_cpu', np.nan):9.2f}{row['difference']:9.1e}",
            flush=True,
        )


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every renamed input.
    os.environ["OMP_NUM_THREADS"] = str(values.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(values.export_dir or temporary)
        results = run(values, folder)
    if values.output_file:
        text = json.dumps(results, indent=2) + "\n"
        pathlib.Path(values.output_file).write_text(text, encoding="utf-8")


def _define_flags() -> None:
    flags.DEFINE_string("model_dir", None, "Model in transformers' files, uncased.", required=True)
    flags.DEFINE_integer("threads", 1, "Threads of each contender.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Turns of each contender.", lower_bound=1)
    flags.DEFINE_integer("calls", 30, "Calls in a turn, of one text of 32 pieces.", lower_bound=1)
    flags.DEFINE_string("export_dir", None, "Where exported files are kept; nowhere by default.")
    flags.DEFINE_string("output_file", None, "JSON file for the figures.")


if __name__ == "__main__":
    _define_flags()
    app.run(main)
