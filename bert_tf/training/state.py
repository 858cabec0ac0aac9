"""The exact state of a training run, in checkpoints that a kill or damage cannot lose.

A training checkpoint holds the weights under the names of the original's checkpoints, so it loads
wherever a released one does; what resuming needs besides lies beside them (`<variable>/adam_m`,
`global_step`, `training/...`).
"""

import logging
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras

from bert_tf.files import local_path, write_text
from bert_tf.models.variables import abbreviate, unique_names
from bert_tf.weights.tensor_bundle import list_tensors, read_tensors, write_tensors
from bert_tf.weights.tensor_files import CorruptCheckpointError, checkpoint_steps

_log = logging.getLogger(__name__)


def training_variables(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return all that a run carries from step to step, by checkpoint name.

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
    counts: dict[str, int] = {}
    for variable in optimizer.variables:
        name = _optimizer_name(variable, flat)
        # A loss-scale optimizer and the one within it each have their count of iterations.
        count = counts[name] = counts.get(name, -1) + 1
        pairs.append((f"{name}_{count}" if count else name, variable))
    # The states of random generators are among the variables of a Keras model, not its weights.
    weights = {id(variable) for variable in model.weights}
    seeds = [v for v in model.variables if id(v) not in weights and "seed" in v.path]
    pairs.extend((f"training/seed_generator/{i}", v) for i, v in enumerate(seeds))
    return unique_names(pairs)


def _optimizer_name(variable: Any, flat: Mapping[str, str]) -> str:
    """Return the name of a slot, `<path>/<slot>`, or of another variable of an optimizer."""
    # Keras names a slot `<optimizer>/<path with underscores>_<slot>`.
    last = variable.path.rsplit("/", 1)[-1]
    best = max((name for name in flat if last.startswith(name + "_")), key=len, default=None)
    if best is None:
        return f"training/optimizer/{last}"
    return f"{flat[best]}/{last[len(best) + 1 :]}"


class CheckpointKeeper:
    """Saves and restores the exact state of a run as `model.ckpt-<step>`, keeping the newest few.

    Safe against a kill at any point, since a checkpoint exists only once its index has been
    renamed into place, and against damage found later, since every tensor is verified against its
    checksum before anything is assigned: a damaged checkpoint is put aside and the one before it
    taken.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        variables: Mapping[str, Any],
        *,
        keep: int,
        after_save: Callable[[], object] | None = None,
    ):
        """Prepare a folder.

        Args:
            directory: made where it is missing.
            variables: name -> Keras or TensorFlow variable; the whole state.
            keep: how many checkpoints to keep, at least 1.
            after_save: called when a checkpoint is there whole.

        Raises:
            ValueError: keep is less than 1.
        """
        if keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, got {keep}")
        self.directory = local_path(directory)
        self.variables = dict(variables)
        self.keep = keep
        self.after_save = after_save
        self.directory.mkdir(parents=True, exist_ok=True)

    def prefix(self, step: int) -> pathlib.Path:
        """Path of the checkpoint of a step, without `.index`."""
        return self.directory / f"model.ckpt-{step}"

    def save(self, step: int, also_keep: Collection[int] = ()) -> pathlib.Path:
        """Write the state and delete what exceeds `keep`.

        Args:
            step: steps taken.
            also_keep: steps whose checkpoints stay, however old they are.

        Returns:
            The prefix written.

        Raises:
            OSError: the files cannot be written.
        """
        prefix = self.prefix(step)
        write_tensors(prefix, self.variables)
        steps = checkpoint_steps(self.directory)
        old = [x for x in steps[: -self.keep] if x not in also_keep]
        self._write_index_of_checkpoints([x for x in steps if x not in old])
        for each in old:
            self._delete(each)
        if self.after_save is not None:
            self.after_save()
        return prefix

    def _write_index_of_checkpoints(self, steps: Sequence[int]) -> None:
        """Write the file `checkpoint`, from which tf.train.latest_checkpoint tells the newest."""
        names = [self.prefix(step).name for step in steps]
        lines = [f'model_checkpoint_path: "{names[-1]}"']
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
        write_text(self.directory / "checkpoint", "\n".join(lines) + "\n")

    def restore(self) -> int | None:
        """Restore the newest undamaged checkpoint.

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
                self.restore_step(step)
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
            return step
        if damaged:
            raise CorruptCheckpointError(
                f"{self.directory}: all checkpoints are damaged: {', '.join(damaged)}; "
                "use another --output_dir to start anew"
            )
        return None

    def restore_step(self, step: int) -> None:
        """Restore the checkpoint of a step, or leave everything as it is.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it holds other variables or shapes than this run.
            CorruptCheckpointError: it is damaged.
        """
        prefix = self.prefix(step)
        self._check_names(prefix, list_tensors(prefix))
        for name, value in read_tensors(prefix, self.variables).items():
            self.variables[name].assign(value)

    def _check_names(self, prefix: pathlib.Path, stored: Mapping[str, tuple]) -> None:
        missing = [name for name in self.variables if name not in stored]
        extra = [name for name in stored if name not in self.variables]
        shapes = [
            f"{name}: run {tuple(v.shape)}, checkpoint {stored[name][0]}"
            for name, v in self.variables.items()
            if name in stored and tuple(v.shape) != stored[name][0]
        ]
        problems = [
            f"{text}: {abbreviate(names)}"
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
