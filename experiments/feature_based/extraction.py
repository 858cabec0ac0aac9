"""Features of text files, written as JSON lines, NumPy arrays or records."""

import collections
import contextlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np

from bert_tf.files import check_output, open_file, size_of, write_whole
from bert_tf.models.feature_extraction import Pooling, TokenWindow, encoder_features
from bert_tf.records.encoding import encode_framed_examples
from bert_tf.records.files import RecordWriter
from bert_tf.records.schema import FeatureSpec
from bert_tf.tokenization.packing import pack_pair, truncate_pair
from bert_tf.tokenization.vocabulary import CLS_TOKEN, SEP_TOKEN
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.processes.progress import Progress
from experiments.feature_based.model import check_length, load_model
from experiments.feature_based.options import ExtractionOptions

EMBEDDINGS = "embeddings"
_PAIR = re.compile(r"^(.*) \|\|\| (.*)$")
# Writes one line: its index, its window, values [F, K, D], or [K * D] where they are pooled.
LineWriter = Callable[[int, TokenWindow, np.ndarray], None]


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
    with open_file(path) as lines:  # only \n ends a line here
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8: {error}") from None
            match = _PAIR.match(text)
            yield (text, None) if match is None else (match[1], match[2])
    if not number:
        raise ValueError(f"{path}: expected a text in each line, got an empty file")


def token_windows(
    path: str, tokenizer: FullTokenizer, max_seq_length: int
) -> Iterator[TokenWindow]:
    """Read a file and pack each line as [CLS] A [SEP] or [CLS] A [SEP] B [SEP].

    Args:
        path: see `read_lines`.
        tokenizer: the model's.
        max_seq_length: pieces of a line at most, at least 3; more are cut, from the longer of two.

    Yields:
        A window for each line.

    Reference: google-research/bert extract_features.py, convert_examples_to_features.
    """
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
# Each gives its file the name on a clean exit.


@contextlib.contextmanager
def json_writer(
    path: str, names: Sequence[int | str], tokenizer: FullTokenizer
) -> Iterator[LineWriter]:
    """Give a function that writes one line of the original's JSON."""

    def write(index: int, window: TokenWindow, values: np.ndarray) -> None:
        # Of float32, exactly Python's round(): the product is exact in float64.
        rounded = np.round(values.astype(np.float64), 6).tolist()
        tokens = tokenizer.convert_ids_to_tokens(window.input_ids)
        features = [
            {
                "token": token,
                "layers": [
                    {"index": name, "values": vector}
                    for name, vector in zip(names, vectors, strict=True)
                ],
            }
            for token, vectors in zip(tokens, rounded, strict=True)
        ]
        line = json.dumps({"linex_index": index, "features": features})
        file.write(line.encode() + b"\n")

    with write_whole(path) as file:
        yield write


@contextlib.contextmanager
def npz_writer(
    path: str, names: Sequence[int | str], shape: tuple[int, ...], dtype: str, pooled: bool
) -> Iterator[LineWriter]:
    """Give such a function for one npz file, whose values have a shape that is known before."""
    ids, lengths = [], [0]
    with write_whole(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        written = 0
        with archive.open("values.npy", "w", force_zip64=True) as member:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]

            def write(index: int, window: TokenWindow, values: np.ndarray) -> None:
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
def tfrecord_writer(path: str, pooled: bool) -> Iterator[LineWriter]:
    """Give such a function for a TFRecord file."""

    def write(index: int, window: TokenWindow, values: np.ndarray) -> None:
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


# === The run ===


def run(options: ExtractionOptions) -> None:
    """Extract features as the options say.

    Raises:
        ValueError, OSError: bad input; one line says what.
    """
    check_output(options.output_file, "output_file")
    next(read_lines(options.input_file))  # refuses an empty file before the model is loaded
    frozen = load_model(options.model)
    check_length(options.max_seq_length, frozen.config)
    layers = parse_layers(options.layer_names, frozen.config.num_hidden_layers)
    names = [name for name, _ in layers]

    def windows() -> Iterator[TokenWindow]:
        return token_windows(options.input_file, frozen.tokenizer, options.max_seq_length)

    # The head of an npz file says how much there is; that also finds what cannot be read.
    num_lines = num_tokens = 0
    for window in windows():
        num_lines += 1
        num_tokens += len(window.input_ids)
    width, pooled = frozen.config.hidden_size, options.pooling is not None
    if options.file_format == "json":
        writer = json_writer(options.output_file, names, frozen.tokenizer)
    elif options.file_format == "npz":
        shape = (num_lines, len(layers) * width) if pooled else (num_tokens, len(layers), width)
        writer = npz_writer(options.output_file, names, shape, options.dtype, pooled)
    else:
        writer = tfrecord_writer(options.output_file, pooled)
    waiting: collections.deque[TokenWindow] = collections.deque()  # read and not yet written

    def noted() -> Iterator[TokenWindow]:
        for window in windows():
            waiting.append(window)
            yield window

    vectors = encoder_features(
        frozen.encoder,
        noted(),
        [state for _, state in layers],
        pooling=cast(Pooling | None, options.pooling),
        batch_size=options.batch_size,
        dtype=options.dtype,
    )
    with writer as write, Progress("features", num_lines, "lines") as progress:
        for index, values in enumerate(vectors):
            write(index, waiting.popleft(), values)
            progress.update(1)
    size = size_of(options.output_file)
    print(
        f"wrote {options.output_file}: {num_lines:,} lines, {num_tokens:,} tokens, "
        f"layers {','.join(map(str, names))}, {size / 1e6:.1f} MB"
    )
