"""Weights to and from TF1-format checkpoint files, and the exact state of a training run.

One format serves both: a TensorFlow tensor bundle (`<prefix>.index` and `<prefix>.data-*`) whose
tensor names are the variable paths, which are the names in google-research/bert's checkpoints.
A training checkpoint therefore loads wherever a released checkpoint does; what resuming needs
besides the weights lies beside them (`<variable>/adam_m`, `global_step`, `training/...`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bert_tf.config import BertConfig

_log = logging.getLogger(__name__)

CONFIG_NAME = "bert_config.json"
VOCAB_NAME = "vocab.txt"
WEIGHTS_NAME = "bert_model.ckpt"

# What a checkpoint of the original holds besides weights, and what ours adds for resuming.
TRAINING_STATE = (
    r"/adam_[mv]$",
    r"/(Adam|AdamWeightDecayOptimizer|LAMB)(_1)?$",
    r"^global_step$",
    r"^training/",
)

# What TensorFlow raises on truncated or altered files, depending on where they are damaged.
_READ_ERRORS = (tf.errors.OpError, RuntimeError, ValueError, IndexError)
_STEP = re.compile(r"^model\.ckpt-(\d+)\.index$")


# --- tensor bundles -------------------------------------------------------------------------------


def write_tensors(prefix: str | os.PathLike, tensors: Mapping[str, Any]) -> None:
    """Writes tensors as a TF1-format checkpoint.

    The data file and then the index are each written under a temporary name and renamed, so a
    process killed at any point leaves either a whole checkpoint or one without an index.

    Args:
        prefix: path without `.index`; its folder is made where it is missing.
        tensors: name -> array, tensor or variable.

    Raises:
        OSError: the files cannot be written; the message names the prefix.
    """
    prefix = os.fspath(prefix)
    os.makedirs(os.path.dirname(prefix) or ".", exist_ok=True)
    # Were an older index left in place while its data is replaced, a kill between the two renames
    # would leave an index that describes other data.
    pathlib.Path(prefix + ".index").unlink(missing_ok=True)
    names = sorted(tensors)
    try:
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[tf.convert_to_tensor(_value(tensors[name])) for name in names],
            )
    except tf.errors.OpError as error:
        _remove_temporaries(prefix)
        raise OSError(f"{prefix}: cannot write the checkpoint: {error.message}") from error


def list_tensors(prefix: str | os.PathLike) -> dict[str, tuple[tuple[int, ...], str]]:
    """Names in a checkpoint: name -> (shape, dtype name).

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CorruptCheckpointError: its index cannot be read.
    """
    reader = _reader(prefix)
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    return {name: (tuple(shapes[name]), dtypes[name].name) for name in sorted(shapes)}


def read_tensors(
    prefix: str | os.PathLike, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads tensors from a checkpoint, each verified against its checksum.

    Args:
        prefix: path without `.index`.
        names: which to read; all by default.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CorruptCheckpointError: a file is truncated or its checksum does not match.
    """
    reader = _reader(prefix)
    wanted = list(names) if names is not None else sorted(reader.get_variable_to_shape_map())
    read = {}
    for name in wanted:
        try:
            read[name] = reader.get_tensor(name)
        except _READ_ERRORS as error:
            raise CorruptCheckpointError(f"{prefix}: cannot read {name!r}: {error}") from error
    return read


class CorruptCheckpointError(OSError):
    """A checkpoint file is truncated, damaged or incomplete."""


def _reader(prefix: str | os.PathLike):
    prefix = os.fspath(prefix)
    if not os.path.exists(prefix + ".index"):
        raise FileNotFoundError(
            f"{prefix}.index: no such file; expected the prefix of a TF checkpoint, "
            "as in .../bert_model.ckpt"
        )
    try:
        return tf.train.load_checkpoint(prefix)
    except _READ_ERRORS as error:
        raise CorruptCheckpointError(f"{prefix}: cannot read the checkpoint: {error}") from error


def _value(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _remove_temporaries(prefix: str) -> None:
    folder, base = os.path.split(prefix)
    for path in pathlib.Path(folder or ".").glob(f"{base}*.tempstate*"):
        path.unlink(missing_ok=True)


# --- weights of a model ---------------------------------------------------------------------------


def weights_by_name(model: keras.Model) -> dict[str, keras.Variable]:
    """Weights of a model by their checkpoint names (the variable paths).

    Raises:
        ValueError: two weights have one name.
    """
    return _unique((variable.path, variable) for variable in model.weights)


def save_tf1(model: keras.Model, prefix: str | os.PathLike) -> None:
    """Writes the weights of a model as a TF1-format checkpoint under the original's names.

    Args:
        model: any model whose variable paths are the names to write.
        prefix: path without `.index`.
    """
    write_tensors(prefix, weights_by_name(model))


def load_tf1(
    model: keras.Model,
    prefix: str | os.PathLike,
    *,
    ignore: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> list[str]:
    """Loads weights from a TF1-format checkpoint, strictly in both directions.

    Args:
        model: the model to fill.
        prefix: path without `.index`.
        ignore: regular expressions (`re.search`); tensors of the checkpoint that match need no
            place in the model. Optimizer slots and step counters never need one.
        allow_missing: regular expressions; weights of the model that match may be absent from the
            checkpoint and keep their values.

    Returns:
        Names of the weights that kept their values.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CorruptCheckpointError: a file is damaged.
        ValueError: names or shapes differ; the message holds both differences.
    """
    weights, stored = weights_by_name(model), list_tensors(prefix)
    missing = [name for name in weights if name not in stored]
    kept = [name for name in missing if _matches(name, allow_missing)]
    missing = [name for name in missing if name not in kept]
    extra = [
        name
        for name in stored
        if name not in weights and not _matches(name, (*TRAINING_STATE, *ignore))
    ]
    shapes = [
        f"{name}: model {tuple(weights[name].shape)}, checkpoint {stored[name][0]}"
        for name in weights
        if name in stored and tuple(weights[name].shape) != stored[name][0]
    ]
    problems = []
    if missing:
        problems.append(
            f"in the model but not in the checkpoint (allow_missing= lets them keep their initial "
            f"values): {_shorten(missing)}"
        )
    if extra:
        problems.append(
            f"in the checkpoint but not in the model (ignore= skips them): {_shorten(extra)}"
        )
    if shapes:
        problems.append(f"of another shape: {_shorten(shapes)}")
    if problems:
        raise ValueError(f"{os.fspath(prefix)}: weights differ; " + "; ".join(problems))
    values = read_tensors(prefix, [name for name in weights if name in stored])
    for name, value in values.items():
        weights[name].assign(value)
    return kept


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _shorten(names: Sequence[str], limit: int = 12) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, variable in pairs:
        if name in found:
            raise ValueError(f"two variables are named {name!r}; checkpoint names must differ")
        found[name] = variable
    return found


# --- model directories ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LocatedCheckpoint:
    """What `locate` found.

    Attributes:
        prefix: TF1-format checkpoint, without `.index`.
        config_file: bert_config.json beside it, or None.
        vocab_file: vocab.txt beside it, or None.
        description: one phrase for the log.
    """

    prefix: str
    config_file: str | None
    vocab_file: str | None
    description: str


def locate(path: str | os.PathLike) -> LocatedCheckpoint:
    """Finds the checkpoint that a user means: a prefix, one of its files, or a model directory.

    In a directory `bert_model.ckpt` comes first, then the newest `model.ckpt-<step>` of a run.

    Raises:
        FileNotFoundError: there is no checkpoint there.
        ValueError: a format that is not read.
    """
    text = os.fspath(path)
    if text.endswith((".bin", ".pt", ".pth", ".pkl")):
        raise ValueError(
            f"{text}: pickled weights are not read, since unpickling runs whatever code the file "
            "holds; convert it to a TF1-format checkpoint first"
        )
    folder = pathlib.Path(text)
    if folder.is_dir():
        if (folder / f"{WEIGHTS_NAME}.index").exists():
            prefix, what = folder / WEIGHTS_NAME, "model directory"
        elif steps := checkpoint_steps(folder):
            prefix, what = folder / f"model.ckpt-{steps[-1]}", "newest checkpoint of a run"
        else:
            raise FileNotFoundError(
                f"{text}: expected {WEIGHTS_NAME}.index or model.ckpt-<step>.index in this folder"
            )
    else:
        prefix, what = pathlib.Path(re.sub(r"\.(index|data-\d+-of-\d+|meta)$", "", text)), ""
        if not pathlib.Path(f"{prefix}.index").exists():
            raise FileNotFoundError(
                f"{prefix}.index: no such file; expected the prefix of a TF checkpoint (as in "
                ".../bert_model.ckpt) or a model directory"
            )
        what = "TF1-format checkpoint"
    beside = prefix.parent
    config, vocab = beside / CONFIG_NAME, beside / VOCAB_NAME
    return LocatedCheckpoint(
        prefix=str(prefix),
        config_file=str(config) if config.exists() else None,
        vocab_file=str(vocab) if vocab.exists() else None,
        description=f"{what} {prefix}",
    )


def load_checkpoint(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    ignore: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> LocatedCheckpoint:
    """Loads weights from whatever `locate` finds at `path`; strictness as in `load_tf1`."""
    found = locate(path)
    load_tf1(model, found.prefix, ignore=ignore, allow_missing=allow_missing)
    return found


def save_model_directory(
    directory: str | os.PathLike,
    model: keras.Model,
    config: BertConfig,
    vocab_file: str | os.PathLike | None = None,
) -> None:
    """Writes a model directory: bert_config.json, bert_model.ckpt.* and, where given, vocab.txt.

    Args:
        directory: made where it is missing.
        model: its weights are written under the original's names.
        config: the model's configuration.
        vocab_file: copied as vocab.txt.
    """
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    save_tf1(model, folder / WEIGHTS_NAME)
    save_config_and_vocabulary(folder, config, vocab_file)


def save_config_and_vocabulary(
    directory: str | os.PathLike, config: BertConfig, vocab_file: str | os.PathLike | None = None
) -> None:
    """Writes the files of a model directory other than the weights; see `save_model_directory`."""
    folder = pathlib.Path(directory)
    config.to_json_file(folder / CONFIG_NAME)
    vocab = folder / VOCAB_NAME
    if vocab_file is not None and not (vocab.exists() and vocab.samefile(vocab_file)):
        temporary = folder / f"{VOCAB_NAME}.tmp"
        shutil.copyfile(vocab_file, temporary)
        os.replace(temporary, vocab)


# --- the state of a run ---------------------------------------------------------------------------


def training_variables(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """All that a run of `model` under `optimizer` carries from step to step, by checkpoint name.

    Weights have their paths; an optimizer slot of a weight is `<path>/<slot>` (the original's
    `adam_m` and `adam_v`); other optimizer variables (iterations, loss scale) are
    `training/optimizer/...`; the states of the dropout generators are `training/seed_generator/N`
    in the model's order, since their paths depend on what else the process has built.

    Args:
        model: a built model.
        optimizer: built on the model's trainable variables.

    Raises:
        ValueError: two variables have one name.
    """
    pairs: list[tuple[str, Any]] = [(variable.path, variable) for variable in model.weights]
    flat = {path.replace("/", "_"): path for path, _ in pairs}
    seen: dict[str, int] = {}
    for variable in optimizer.variables:
        name = _optimizer_name(variable, flat)
        # A loss-scale optimizer and the one within it each have their count of iterations.
        seen[name] = seen.get(name, -1) + 1
        pairs.append((f"{name}_{seen[name]}" if seen[name] else name, variable))
    # The states of random generators are among the variables of a Keras model, not its weights.
    weights = {id(variable) for variable in model.weights}
    seeds = [v for v in model.variables if id(v) not in weights and "seed" in v.path]
    pairs.extend((f"training/seed_generator/{i}", v) for i, v in enumerate(seeds))
    return _unique(pairs)


def _optimizer_name(variable: Any, flat: Mapping[str, str]) -> str:
    """Keras names a slot `<optimizer>/<path with underscores>_<slot>`; ours is `<path>/<slot>`."""
    last = variable.path.rsplit("/", 1)[-1]
    best = max((name for name in flat if last.startswith(name + "_")), key=len, default=None)
    if best is None:
        return f"training/optimizer/{last}"
    return f"{flat[best]}/{last[len(best) + 1 :]}"


def checkpoint_steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the `model.ckpt-<step>` checkpoints in a folder, ascending."""
    folder = pathlib.Path(directory)
    if not folder.is_dir():
        return []
    return sorted(int(m.group(1)) for p in folder.iterdir() if (m := _STEP.match(p.name)))


class CheckpointKeeper:
    """Saves and restores the exact state of a run as `model.ckpt-<step>`, keeping the newest few.

    Safe against a kill at any point, since a checkpoint exists only once its index has been
    renamed into place, and against damage found later, since every tensor is verified against its
    checksum before anything is assigned: a damaged checkpoint is put aside and the one before it
    taken.
    """

    def __init__(self, directory: str | os.PathLike, variables: Mapping[str, Any], *, keep: int):
        """Prepares a folder.

        Args:
            directory: made where it is missing.
            variables: name -> Keras or TensorFlow variable; the whole state.
            keep: how many checkpoints to keep, at least 1.

        Raises:
            ValueError: keep is less than 1.
        """
        if keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, got {keep}")
        self.directory = pathlib.Path(directory)
        self.variables = dict(variables)
        self.keep = keep
        self.directory.mkdir(parents=True, exist_ok=True)

    def prefix(self, step: int) -> pathlib.Path:
        """Path of the checkpoint of a step, without `.index`."""
        return self.directory / f"model.ckpt-{step}"

    def save(self, step: int) -> pathlib.Path:
        """Writes the state and deletes what exceeds `keep`.

        Returns:
            The prefix written.

        Raises:
            OSError: the files cannot be written.
        """
        prefix = self.prefix(step)
        write_tensors(prefix, self.variables)
        steps = checkpoint_steps(self.directory)
        kept = steps[-self.keep :]
        self._write_index_of_checkpoints(kept)
        for old in steps[: -self.keep]:
            self._delete(old)
        return prefix

    def _write_index_of_checkpoints(self, steps: Sequence[int]) -> None:
        """Writes the file `checkpoint`, from which tf.train.latest_checkpoint tells the newest."""
        names = [self.prefix(step).name for step in steps]
        lines = [f'model_checkpoint_path: "{names[-1]}"']
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
        temporary = self.directory / "checkpoint.tmp"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, self.directory / "checkpoint")

    def restore(self) -> int | None:
        """Restores the newest undamaged checkpoint.

        Returns:
            Its step, or None where there is no checkpoint.

        Raises:
            ValueError: a checkpoint holds other variables or shapes than this run.
            CorruptCheckpointError: there are checkpoints, and all are damaged.
        """
        for path in self.directory.glob("model.ckpt-*.tempstate*"):
            path.unlink(missing_ok=True)  # of a write that was killed
        damaged: list[str] = []
        for step in reversed(checkpoint_steps(self.directory)):
            prefix = self.prefix(step)
            try:
                stored = list_tensors(prefix)
                self._check_names(prefix, stored)
                values = read_tensors(prefix, self.variables)
            except CorruptCheckpointError as error:
                _log.warning(
                    "checkpoint %s is damaged (%s); it is put aside as *.damaged and the one "
                    "before it is used",
                    prefix,
                    error,
                )
                damaged.append(str(prefix))
                self._put_aside(step)
                continue
            for name, value in values.items():
                self.variables[name].assign(value)
            return step
        if damaged:
            raise CorruptCheckpointError(
                f"{self.directory}: all checkpoints are damaged: {', '.join(damaged)}; "
                "use another --output_dir to start anew"
            )
        return None

    def _check_names(self, prefix: pathlib.Path, stored: Mapping[str, tuple]) -> None:
        missing = [name for name in self.variables if name not in stored]
        extra = [name for name in stored if name not in self.variables]
        shapes = [
            f"{name}: run {tuple(v.shape)}, checkpoint {stored[name][0]}"
            for name, v in self.variables.items()
            if name in stored and tuple(v.shape) != stored[name][0]
        ]
        problems = [
            f"{text}: {_shorten(names)}"
            for text, names in (
                ("in this run but not in the checkpoint", missing),
                ("in the checkpoint but not in this run", extra),
                ("of another shape", shapes),
            )
            if names
        ]
        if problems:
            raise ValueError(
                f"{prefix}: the checkpoint of another model or optimizer; {'; '.join(problems)}. "
                "Continue with the flags it was begun with, or use another output_dir "
                "(init_checkpoint takes weights alone)"
            )

    def _files(self, step: int) -> list[pathlib.Path]:
        prefix = self.prefix(step)
        return [
            prefix.with_name(prefix.name + ".index"),  # first: without it there is no checkpoint
            *sorted(self.directory.glob(f"{prefix.name}.data-*")),
        ]

    def _delete(self, step: int) -> None:
        for path in self._files(step):
            path.unlink(missing_ok=True)

    def _put_aside(self, step: int) -> None:
        for path in self._files(step):
            if path.exists() and path.suffix != ".damaged":
                os.replace(path, f"{path}.damaged")
