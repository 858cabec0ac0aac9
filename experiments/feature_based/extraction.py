"""Features of text files, written as JSON lines, NumPy arrays or records."""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from bert_tf.records.encoding import encode_framed_examples
from bert_tf.records.files import RecordWriter
from bert_tf.records.schema import FeatureSpec
from bert_tf.tokenization.packing import pack_pair, truncate_pair
from bert_tf.tokenization.vocabulary import CLS_TOKEN, SEP_TOKEN
from bert_tf.tokenization.wordpiece import FullTokenizer
from experiments.feature_based.flags import check_model_flags
from experiments.feature_based.model import check_length, load_model

FORMATS = ("json", "npz", "tfrecord")
EMBEDDINGS = "embeddings"
_PAIR = re.compile(r"^(.*) \|\|\| (.*)$")


def parse_layers(text: str, num_layers: int) -> list[tuple[int | str, int]]:
    """Read --layers.

    Args:
        text: indexes parted by commas, as of the original's list of all layers: 0 is the first
            layer, -1 the last; also "embeddings".
        num_layers: L.

    Returns:
        Of each (its name, an integer or "embeddings"; the hidden state, 0 being the embeddings).

    Raises:
        ValueError: another text, or a layer that the model does not have.
    """
    layers: list[tuple[int | str, int]] = []
    for part in text.split(","):
        part = part.strip()
        if part == EMBEDDINGS:
            layers.append((EMBEDDINGS, 0))
            continue
        if not re.fullmatch(r"[+-]?\d+", part) or not -num_layers <= int(part) < num_layers:
            raise ValueError(
                f"--layers: expected {-num_layers} to {num_layers - 1} or {EMBEDDINGS}, parted by "
                f"commas, got {part!r}"
            )
        layers.append((int(part), int(part) % num_layers + 1))
    return layers


# === Lines ===


def read_lines(path: str) -> Iterator[tuple[str, str | None]]:
    """Read lines of one text, or of two parted by " ||| ".

    Args:
        path: UTF-8 text.

    Yields:
        (A, B), B being None where there is none. An empty line is an empty text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not UTF-8, or the file is empty.

    Reference: google-research/bert extract_features.py, read_examples.
    """
    number = 0
    with open(path, "rb") as lines:  # only \n ends a line here
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8: {error}") from None
            match = _PAIR.match(text)
            yield (text, None) if match is None else (match[1], match[2])
    if not number:
        raise ValueError(f"{path}: expected a text in each line, got an empty file")


def make_windows(path: str, tokenizer: FullTokenizer, max_seq_length: int):
    """Read a file and pack each line as [CLS] A [SEP] or [CLS] A [SEP] B [SEP].

    Args:
        path: see `read_lines`.
        tokenizer: the model's.
        max_seq_length: pieces of a line at most, at least 3; more are cut, from the longer of two.

    Yields:
        A `features.TokenWindow` for each line.

    Reference: google-research/bert extract_features.py, convert_examples_to_features.
    """
    from bert_tf.models.feature_extraction import TokenWindow

    cls_id, sep_id = tokenizer.convert_tokens_to_ids([CLS_TOKEN, SEP_TOKEN])
    for text_a, text_b in read_lines(path):
        ids_a = tokenizer.encode(text_a)
        ids_b = tokenizer.encode(text_b) if text_b else []
        if ids_b:  # where nothing is left of B, so is nothing of its [SEP]
            ids_a, ids_b = truncate_pair(ids_a, ids_b, max_seq_length - 3)
        length = min(len(ids_a) + len(ids_b) + (3 if ids_b else 2), max_seq_length)
        input_ids, _, segment_ids = pack_pair(ids_a, ids_b, length, cls_id=cls_id, sep_id=sep_id)
        yield TokenWindow(input_ids, segment_ids)


# === Writers ===
# Each writes under a temporary name, and gives the file its own on a clean exit.


@contextlib.contextmanager
def _whole_file(path: str):
    """Open a file that appears under its name only once it is whole."""
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def json_writer(path: str, names: Sequence[int | str], tokenizer: FullTokenizer):
    """Give a function that writes one line: (index, its window, values [F, K, D])."""

    def write(index: int, window: Any, values: np.ndarray) -> None:
        # Of float32, exactly Python's round(): the product is exact in float64.
        rounded = np.round(values.astype(np.float64), 6).tolist()
        tokens = tokenizer.convert_ids_to_tokens(window.input_ids)
        found = [
            {
                "token": token,
                "layers": [
                    {"index": name, "values": vector}
                    for name, vector in zip(names, vectors, strict=True)
                ],
            }
            for token, vectors in zip(tokens, rounded, strict=True)
        ]
        line = json.dumps({"linex_index": index, "features": found})
        file.write(line.encode() + b"\n")

    with _whole_file(path) as file:
        yield write


@contextlib.contextmanager
def npz_writer(path: str, names: Sequence[int | str], shape: Sequence[int], dtype: str, pooled):
    """Give such a function for one npz file, whose values have a shape that is known before."""
    ids, lengths = [], [0]
    with _whole_file(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        written = 0
        with archive.open("values.npy", "w", force_zip64=True) as member:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]

            def write(index: int, window: Any, values: np.ndarray) -> None:
                nonlocal written
                member.write(np.ascontiguousarray(values).data.cast("B"))
                written += values.size
                if not pooled:
                    ids.append(np.array(window.input_ids, np.int32))
                    lengths.append(len(window.input_ids))

            yield write
        if written != np.prod(shape):
            raise ValueError(f"{path}: the input file has changed while it was read; run it again")
        arrays = {"layers": np.array([str(name) for name in names])}
        if not pooled:
            arrays["offsets"] = np.cumsum(lengths, dtype=np.int64)
            arrays["input_ids"] = np.concatenate(ids)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@contextlib.contextmanager
def tfrecord_writer(path: str, pooled: bool):
    """Give such a function for a TFRecord file."""

    def write(index: int, window: Any, values: np.ndarray) -> None:
        arrays: dict[str, np.ndarray] = {
            "line_index": np.array([[index]]),
            "values": values.reshape(1, -1),
        }
        if not pooled:
            arrays["input_ids"] = np.array([window.input_ids])
        schema = [
            FeatureSpec(name, "float32" if name == "values" else "int64", array.shape[1])
            for name, array in arrays.items()
        ]
        writer.write_framed(encode_framed_examples(schema, arrays))

    with RecordWriter(path) as writer:
        yield write


# === The script ===


def extract(values: flags.FlagValues) -> None:
    """Extract features by the flags.

    Raises:
        ValueError, OSError: bad input; one line says what.
    """
    check_model_flags(values)
    pooled = values.pooling is not None
    file_format = values.output_format or ("npz" if pooled else "json")
    if pooled and file_format == "json":
        raise ValueError(
            "--pooling: the original's JSON has a vector for each token; write "
            "--output_format=npz or tfrecord"
        )
    if values.dtype == "float16" and file_format != "npz":
        raise ValueError(f"--dtype: float16 is for npz only, the format is {file_format}")
    if values.batch_size < 1:
        raise ValueError(f"--batch_size: expected at least 1, got {values.batch_size}")
    folder = os.path.dirname(os.path.abspath(values.output_file))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--output_file: no such folder: {folder}")
    for _ in read_lines(values.input_file):  # before the model is loaded
        break

    from bert_tf.models.feature_extraction import encoder_features
    from data_prep.processes.progress import Progress

    loaded = load_model(values)
    check_length(values.max_seq_length, loaded.config)
    # A text's vector is of one layer, unless more are asked for.
    text = "-1" if pooled and not values["layers"].present else values.layers
    layers = parse_layers(text, loaded.config.num_hidden_layers)
    names = [name for name, _ in layers]

    def windows():
        return make_windows(values.input_file, loaded.tokenizer, values.max_seq_length)

    # The head of an npz file says how much there is; that also finds what cannot be read.
    num_lines = num_tokens = 0
    for window in windows():
        num_lines += 1
        num_tokens += len(window.input_ids)
    width = loaded.config.hidden_size
    if file_format == "json":
        opened = json_writer(values.output_file, names, loaded.tokenizer)
    elif file_format == "npz":
        rows = (num_lines, len(layers) * width) if pooled else (num_tokens, len(layers), width)
        opened = npz_writer(values.output_file, names, rows, values.dtype, pooled)
    else:
        opened = tfrecord_writer(values.output_file, pooled)
    waiting: list[Any] = []

    def noted():
        for window in windows():
            waiting.append(window)
            yield window

    computed = encoder_features(
        loaded.encoder,
        noted(),
        [state for _, state in layers],
        pooling=values.pooling,
        batch_size=values.batch_size,
        dtype=values.dtype,
    )
    with opened as write, Progress("features", num_lines, "lines") as progress:
        first = 0  # of the windows that are still waiting
        for index, found in enumerate(computed):
            write(index, waiting[index - first], found)
            progress.update(1)
            if index - first >= 1000:
                del waiting[: index + 1 - first]
                first = index + 1
    size = os.path.getsize(values.output_file)
    print(
        f"wrote {values.output_file}: {num_lines:,} lines, {num_tokens:,} tokens, "
        f"layers {','.join(map(str, names))}, {size / 1e6:.1f} MB"
    )
