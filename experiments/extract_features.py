r"""Writes hidden states of a frozen BERT for the lines of a text file.

    python experiments/extract_features.py --input_file=lines.txt --output_file=features.npz \
        --model_dir=uncased_L-12_H-768_A-12 --pooling=mean
    python experiments/extract_features.py --input_file=lines.txt --output_file=features.jsonl \
        --vocab_file=vocab.txt --bert_config_file=bert_config.json \
        --init_checkpoint=bert_model.ckpt --layers=-1,-2,-3,-4

A line is a text, or two as "A ||| B". Flags and defaults are those of google-research/bert's
extract_features.py; --model_dir, anything that bert_tf.load_bert reads, is the short way. The file
is streamed, and lines are grouped by length: the results do not depend on that beyond rounding.

Formats, of N lines, T tokens of all lines, K layers and D numbers in each hidden state:

- json (default): the original's lines, {"linex_index", "features": [{"token", "layers": [{"index",
  "values"}]}]}.
- npz (default with --pooling): `values` float32 or float16 [T, K, D], the lines one after the
  other; `offsets` int64 [N + 1], line i having values[offsets[i]:offsets[i + 1]]; `input_ids` int32
  [T], the pieces' ids in the vocabulary; `layers`, K strings. With --pooling `values` [N, K * D],
  one row a line, and `layers`.
- tfrecord: a tf.train.Example for each line, with `line_index` int64 [1], `input_ids` int64 [F] and
  `values` float [F * K * D], reshaped to [F, K, D]. With --pooling `line_index` and `values` float
  [K * D].
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging as python_logging
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be looked up elsewhere

import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from bert_tf.records.files import (  # noqa: E402
    FeatureSpec,
    RecordWriter,
    encode_framed_examples,
)
from bert_tf.tokenization.wordpiece import (  # noqa: E402
    CLS_TOKEN,
    SEP_TOKEN,
    FullTokenizer,
    check_special_tokens,
    pack_pair,
    truncate_pair,
    validate_case_matches_checkpoint,
)
from experiments.command_line.exit_status import exit_on_error  # noqa: E402

FORMATS = ("json", "npz", "tfrecord")
EMBEDDINGS = "embeddings"
_PAIR = re.compile(r"^(.*) \|\|\| (.*)$")
_UNSUPPORTED = ("use_tpu", "master", "tpu_name", "tpu_zone", "gcp_project")


# --- the model ------------------------------------------------------------------------------------


def define_model_flags(values: flags.FlagValues) -> None:
    """Define the flags that name a pre-trained model, and the original's of TPUs."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
    text("model_dir", None, "Model, in place of the next three: anything that load_bert reads.")
    text("bert_config_file", None, "Configuration of the model.")
    text("init_checkpoint", None, "Weights of the model.")
    text("vocab_file", None, "Vocabulary of the model.")
    boolean(
        "do_lower_case",
        None,
        "Casing; by default true with vocab_file, and with model_dir what lies there.",
    )
    boolean("use_tpu", False, "Not supported.")
    flags.DEFINE_integer("num_tpu_cores", 8, "Without effect.", flag_values=values)
    boolean("use_one_hot_embeddings", False, "Without effect: the results are the same.")
    for name in ("master", "tpu_name", "tpu_zone", "gcp_project"):
        text(name, None, "Not supported.")


def check_model_flags(values: flags.FlagValues) -> None:
    """Refuse flags that do not name one model; ValueError."""
    if used := [f"--{name}" for name in _UNSUPPORTED if getattr(values, name)]:
        raise ValueError(
            f"{', '.join(used)}: TPUs and TensorFlow masters are not supported; drop these flags "
            "to run on this machine's GPU or CPU"
        )
    names = ("bert_config_file", "init_checkpoint", "vocab_file")
    given = [f"--{name}" for name in names if getattr(values, name)]
    if values.model_dir and given:
        raise ValueError(f"expected --model_dir or {', '.join(given)}, got both")
    if not values.model_dir and len(given) < len(names):
        missing = ", ".join(f"--{name}" for name in names if f"--{name}" not in given)
        raise ValueError(f"expected --model_dir, or all three of its parts; missing: {missing}")


def load_model(values: flags.FlagValues) -> Any:
    """Load what `define_model_flags` names, as `bert_tf.load_bert` does, with hidden states.

    Raises:
        ValueError, OSError: it is damaged, not there, or has no vocabulary.
    """
    import bert_tf

    if values.model_dir:
        loaded = bert_tf.load_bert(
            values.model_dir, hidden_states=True, do_lower_case=values.do_lower_case
        )
        tokenizer = loaded.tokenizer
        if tokenizer is None:
            raise FileNotFoundError(f"--model_dir: no vocabulary lies in {values.model_dir}")
    else:
        casing = True if values.do_lower_case is None else values.do_lower_case
        validate_case_matches_checkpoint(casing, values.init_checkpoint)
        tokenizer = FullTokenizer(values.vocab_file, casing)
        config = bert_tf.BertConfig.from_json_file(values.bert_config_file)
        loaded = bert_tf.load_bert(values.init_checkpoint, hidden_states=True, config=config)
    check_special_tokens(tokenizer.vocab, tokenizer.vocab_file)
    return loaded._replace(tokenizer=tokenizer)


def check_length(max_seq_length: int, config: Any) -> None:
    """Refuse a length that leaves no room for text, or that the model has no positions for."""
    if not 3 <= max_seq_length <= config.max_position_embeddings:
        raise ValueError(
            f"--max_seq_length: expected 3 to {config.max_position_embeddings} "
            f"(max_position_embeddings of the model), got {max_seq_length}"
        )


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


# --- lines ----------------------------------------------------------------------------------------


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


# --- writers --------------------------------------------------------------------------------------
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


# --- the script -----------------------------------------------------------------------------------


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


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of the script."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    choice = functools.partial(flags.DEFINE_enum, flag_values=values)
    text("input_file", None, "Texts, one a line, or two as A ||| B.", required=True)
    text("output_file", None, "What to write.", required=True)
    text(
        "layers",
        "-1,-2,-3,-4",
        "Layers: -1 the last, 0 the first, or embeddings; with pooling -1 alone by default.",
    )
    define_model_flags(values)
    integer("max_seq_length", 128, "Pieces of a line at most, [CLS] and [SEP] counted.")
    integer("batch_size", 32, "Lines computed at once.")
    choice("output_format", None, FORMATS, "json, or with pooling npz, by default.")
    choice("pooling", None, ["mean", "cls", "max"], "One vector a line, over all its tokens.")
    choice("dtype", "float32", ["float32", "float16"], "Of the values in npz.")


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        python_logging.getLogger("bert_tf").setLevel(python_logging.WARNING)
    return exit_on_error("extract_features", lambda: extract(values))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
