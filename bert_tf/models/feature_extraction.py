"""Features of a frozen encoder: hidden states of texts, in their order and in bounded memory.

Texts are grouped by length, so that little padding is computed, and no result depends on that by
more than rounding. `encoder_features` streams them; `stored_features` keeps them on disk.

Shapes: N texts, F tokens of one text, T tokens of all texts, B texts of a batch, K chosen
layers, D hidden size, L layers of the model.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from bert_tf.files import local_path
from bert_tf.models.encoder import INPUT_NAMES, layer_outputs
from bert_tf.models.functional import check_pooling, pool_states
from bert_tf.models.variables import bert_layer, to_numpy, weights_by_name

Pooling = Literal["mean", "cls", "max"]
DTYPES = ("float32", "float16")

# What is sorted by length at a time: batches, and bytes of the float32 results that wait meanwhile.
_CHUNK_BATCHES = 64
_CHUNK_BYTES = 256 * 2**20
# JAX compiles for every shape anew, so there lengths are rounded up to multiples of this.
_COMPILED_LENGTHS = 16
_FORMAT = 1  # of the files of `stored_features`

# Compiled models of each encoder, so that it is not traced for every file anew.
_feature_models: weakref.WeakKeyDictionary[keras.Model, dict[tuple, keras.Model]] = (
    weakref.WeakKeyDictionary()
)


class TokenWindow(NamedTuple):
    """One text as the encoder takes it, not padded.

    Attributes:
        input_ids: [F], at least one.
        segment_ids: [F]; None for 0 throughout.
    """

    input_ids: Sequence[int]
    segment_ids: Sequence[int] | None = None


def hidden_state_indexes(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Check which hidden states are asked for.

    Args:
        layers: 0 for the embeddings, i for the i-th layer; negative ones count from the last
            layer, -1, down to the embeddings, -(L + 1).
        num_layers: L.

    Returns:
        The same, none negative.

    Raises:
        ValueError: none, or one that the model does not have.
    """
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    for layer in layers:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ValueError(
                f"layers: expected {-num_layers - 1} to {num_layers} (the embeddings are 0, the "
                f"layers 1 to {num_layers} or, from the last, -1 to {-num_layers}), got {layer}"
            )
    return tuple(layer % (num_layers + 1) for layer in layers)


def encoder_features(
    encoder: keras.Model,
    windows: Iterable[TokenWindow],
    layers: Sequence[int] = (-1,),
    *,
    pooling: Pooling | None = None,
    batch_size: int = 32,
    dtype: str = "float32",
) -> Iterator[np.ndarray]:
    """Run an encoder over texts and yield hidden states of chosen layers, without dropout.

        encoder, config, tokenizer = bert_tf.load_bert(path, hidden_states=True)
        windows = [TokenWindow(ids) for ids in texts]
        for values in encoder_features(encoder, windows, layers=[-1, -2, -3, -4]): ...

    At most 256 MiB of results (or one batch, if that is more) are held at a time.

    Args:
        encoder: what `load_bert` gives, made with hidden_states=True unless `layers` holds only the
            last. Those above the highest of them are not computed, where the backend compiles.
        windows: the texts, read as they are needed.
        layers: as for `hidden_state_indexes`, in the order of the results.
        pooling: None for a vector of each token. "mean" and "max" are over all tokens of a text,
            [CLS] and [SEP] included, as in sentence-transformers; "cls" is the first token's.
        batch_size: texts computed at once.
        dtype: "float32" or "float16" of the results; the computation is the encoder's.

    Returns:
        Iterator over the texts in their order: [F, K, D] each, with pooling [K, D].

    Raises:
        ValueError: an argument is wrong; while iterating: a text has no tokens, more than the model
            has positions, or an id that it has no embedding for; a value does not fit float16.
    """
    if pooling is not None:
        check_pooling(pooling)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    config = bert_layer(encoder).config
    indexes = hidden_state_indexes(layers, config.num_hidden_layers)
    models = _feature_models.setdefault(encoder, {})
    # Adapters and quantization add weights; a model that ran before would go on without them.
    key = indexes, pooling, len(encoder.weights)
    model = models.get(key)
    if model is None:
        model = models[key] = _feature_model(encoder, indexes, pooling)
    vector_bytes = 4 * len(indexes) * config.hidden_size

    def generate() -> Iterator[np.ndarray]:
        done = 0
        for chunk in _chunks(windows, config, batch_size, vector_bytes, pooling is not None):
            results: list[np.ndarray] = [np.empty(0)] * len(chunk)
            # The longest first: where memory does not suffice, that shows at once.
            order = sorted(range(len(chunk)), key=lambda i: -len(chunk[i].input_ids))
            for start in range(0, len(chunk), batch_size):
                rows = order[start : start + batch_size]
                values = model.predict_on_batch(_batch([chunk[i] for i in rows], batch_size))
                for row, i in enumerate(rows):
                    own = values[row] if pooling else values[row, : len(chunk[i].input_ids)]
                    results[i] = _converted(own, dtype, done + i)
            yield from results
            done += len(chunk)

    return generate()


def _feature_model(
    encoder: keras.Model, indexes: Sequence[int], pooling: Pooling | None
) -> keras.Model:
    """Return a model that gives float32 [B, F, K, D], with pooling [B, K, D]."""
    outputs = encoder.output
    last = bert_layer(encoder).config.num_hidden_layers
    hidden_states = layer_outputs(outputs, "hidden_states") if isinstance(outputs, dict) else ()
    if hidden_states:
        states = [hidden_states[index] for index in indexes]
    elif isinstance(outputs, dict) and "sequence_output" in outputs and set(indexes) == {last}:
        states = [outputs["sequence_output"] for _ in indexes]
    else:
        raise ValueError(
            "encoder: has no output hidden_states, which the layers need; make it with "
            "load_bert(..., hidden_states=True) or bert_encoder(..., hidden_states=True)"
        )
    values = ops.stack([ops.cast(state, "float32") for state in states], axis=2)
    if pooling is not None:
        values = pool_states(values, encoder.input["input_mask"], pooling)
    model = keras.Model(encoder.input, values, name="features")
    # XLA would compile for every length; the other way without it, JAX would not compile at all.
    model.compile(jit_compile=keras.backend.backend() == "jax")
    return model


def _chunks(windows, config, batch_size, vector_bytes, pooled) -> Iterator[list[TokenWindow]]:
    """Yield neighbouring windows whose results fit the memory set apart for them, checked."""
    chunk: list[TokenWindow] = []
    num_bytes = 0
    for number, window in enumerate(windows):
        length = len(window.input_ids)
        if not 1 <= length <= config.max_position_embeddings:
            raise ValueError(
                f"text {number}: expected 1 to {config.max_position_embeddings} tokens "
                f"(max_position_embeddings of the model), got {length}"
            )
        if not (0 <= min(window.input_ids) and max(window.input_ids) < config.vocab_size):
            raise ValueError(
                f"text {number}: expected ids of 0 to {config.vocab_size - 1} (vocab_size of the "
                f"model), got {min(window.input_ids)} to {max(window.input_ids)}; was it made "
                "with the model's vocabulary?"
            )
        if window.segment_ids is not None and len(window.segment_ids) != length:
            raise ValueError(
                f"text {number}: expected {length} segment ids, got {len(window.segment_ids)}"
            )
        size = vector_bytes * (1 if pooled else length)
        full = len(chunk) >= batch_size and num_bytes + size > _CHUNK_BYTES
        if full or len(chunk) == batch_size * _CHUNK_BATCHES:
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(window)
        num_bytes += size
    if chunk:
        yield chunk


def _batch(windows: Sequence[TokenWindow], batch_size: int) -> dict[str, np.ndarray]:
    """Pad windows to the longest; the inputs of an encoder, int32 [B, F]."""
    rows, length = len(windows), max(len(window.input_ids) for window in windows)
    if keras.backend.backend() == "jax":
        rows, length = batch_size, -(-length // _COMPILED_LENGTHS) * _COMPILED_LENGTHS
    batch = {name: np.zeros((rows, length), np.int32) for name in INPUT_NAMES}
    for row, window in enumerate(windows):
        end = len(window.input_ids)
        batch["input_ids"][row, :end] = window.input_ids
        batch["input_mask"][row, :end] = 1
        if window.segment_ids is not None:
            batch["segment_ids"][row, :end] = window.segment_ids
    batch["input_mask"][len(windows) :, 0] = 1  # rows of padding have a token too, for the mean
    return batch


def _converted(values: np.ndarray, dtype: str, number: int) -> np.ndarray:
    """Copy one text's values in the type of the results, so that its batch can be let go."""
    if dtype == "float32":
        return np.array(values, np.float32)
    largest = np.abs(values).max()
    if largest > np.finfo(np.float16).max:
        raise ValueError(f"text {number}: {largest:g} does not fit float16; use float32")
    return values.astype(np.float16)


# === On disk ===


@dataclasses.dataclass(frozen=True)
class StoredFeatures:
    """Features of texts in a memory-mapped file.

    Attributes:
        values: [T, K, D] float16 or float32, the texts one after the other.
        offsets: int64 [N + 1]; text i has values[offsets[i] : offsets[i + 1]].
        layers: the K hidden states, 0 the embeddings.
        computed: whether they were computed now rather than found.
    """

    values: np.ndarray
    offsets: np.ndarray
    layers: tuple[int, ...]
    computed: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return text `index`'s values [F, K, D]."""
        if not 0 <= index < len(self):
            raise IndexError(f"text {index}: expected 0 to {len(self) - 1}")
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def features_fingerprint(
    encoder: keras.Model, windows: Sequence[TokenWindow], layers: Sequence[int], dtype: str
) -> str:
    """Return a digest of all that features depend on: texts, weights, configuration, settings.

    Args:
        encoder: as in `encoder_features`.
        windows: the texts.
        layers: as in `encoder_features`.
        dtype: of the results.

    Returns:
        64 hexadecimal digits. It is of contents: names, places and times of files do not matter.
    """
    bert = bert_layer(encoder)
    settings = {
        "format": _FORMAT,
        "layers": hidden_state_indexes(layers, bert.config.num_hidden_layers),
        "dtype": dtype,
        "computed_in": bert.compute_dtype,
        "config": bert.config.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(weights_by_name(encoder).items()):
        array = np.ascontiguousarray(to_numpy(weight))
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    for window in windows:
        segments = window.segment_ids
        segments = (0,) * len(window.input_ids) if segments is None else segments
        # With its length, so that a token cannot move from one text to the next unnoticed.
        digest.update(np.array([len(window.input_ids)], "<i8").tobytes())
        digest.update(np.asarray([window.input_ids, segments], "<i4").tobytes())
    return digest.hexdigest()


def stored_features(
    folder: str | os.PathLike[str],
    encoder: keras.Model,
    windows: Sequence[TokenWindow],
    layers: Sequence[int],
    *,
    batch_size: int = 32,
    dtype: str = "float16",
    on_text: Callable[[], None] | None = None,
) -> StoredFeatures:
    """Return features from a folder, after computing them where they are not there.

    They lie in a subfolder that is named by `features_fingerprint`, so what is found is always of
    these texts, weights and settings; it gets that name when it is complete.

    Args:
        folder: the cache, made where it is missing. Nothing in it is ever deleted here.
        encoder: as in `encoder_features`.
        windows: the texts.
        layers: as in `encoder_features`.
        batch_size: as in `encoder_features`.
        dtype: "float16" (default) or "float32", on disk.
        on_text: called after each text that is computed.

    Returns:
        The features.

    Raises:
        ValueError: as for `encoder_features`; or there are no texts.
        OSError: the folder cannot be written to.
    """
    if not windows:
        raise ValueError("windows: expected at least one text, got none")
    config = bert_layer(encoder).config
    indexes = hidden_state_indexes(layers, config.num_hidden_layers)
    lengths = [len(window.input_ids) for window in windows]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    shape = (int(offsets[-1]), len(indexes), config.hidden_size)
    target = local_path(folder) / features_fingerprint(encoder, windows, layers, dtype)

    values = _open_values(target, shape, dtype)
    if values is not None:
        return StoredFeatures(values, offsets, indexes, computed=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-"))
    try:
        written = np.lib.format.open_memmap(
            temporary / "values.npy", mode="w+", dtype=dtype, shape=shape
        )
        computed = encoder_features(encoder, windows, layers, batch_size=batch_size, dtype=dtype)
        for start, one in zip(offsets.tolist(), computed, strict=False):
            written[start : start + len(one)] = one
            if on_text is not None:
                on_text()
        written.flush()
        del written
        (temporary / "features.json").write_text(
            json.dumps({"layers": indexes, "dtype": dtype, "texts": len(windows)}) + "\n",
            encoding="utf-8",
        )
        if target.exists():  # what is there cannot be read, see _open_values
            shutil.rmtree(target)
        try:
            os.rename(temporary, target)
        except OSError as error:
            # Another process was faster, and has put the same there.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    values = _open_values(target, shape, dtype)
    if values is None:
        raise OSError(f"{target}: what was just written there cannot be read")
    return StoredFeatures(values, offsets, indexes, computed=True)


def _open_values(folder: pathlib.Path, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """Map the values of a folder; None where they are missing or cut off, as by a full disk."""
    try:
        values = np.load(folder / "values.npy", mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return values if values.shape == shape and values.dtype == dtype else None
