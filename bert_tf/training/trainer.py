"""A Trainer that takes steps, logs, saves, evaluates on the way and resumes to the bit.

Losses, optimizer and schedule are those that `compile` and `fit` use; what the Trainer adds is
resuming exactly, metrics that stay on the device between two log lines, and one step that runs on
one device or, under a strategy, on many, in one piece or in several that follow each other.

Shapes: B batch.
"""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bert_tf.files import local_path
from bert_tf.training import distribution
from bert_tf.training.callbacks import FitCalls, prepare_callbacks
from bert_tf.training.errors import NonFiniteLossError, StoppedError
from bert_tf.training.log import METRICS_NAME, append_metrics, cut_metrics, read_metrics_or_nothing
from bert_tf.training.objectives import Objective
from bert_tf.training.options import JIT_CHOICES, TrainerOptions
from bert_tf.training.progress import RunLog
from bert_tf.training.state import CheckpointKeeper, training_variables
from bert_tf.training.step import MakeDataset, TrainStep, innermost
from bert_tf.training.step_profile import StepProfile
from bert_tf.weights.tensor_files import checkpoint_steps

_log = logging.getLogger(__name__)
_BATCH_PARTS = ("inputs", "labels", "weights")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class BestStep:
    """A step whose evaluation was better than the others'."""

    step: int
    value: float


def set_precision(precision: str) -> None:
    """Set the Keras policy under which models are built from now on.

    Raises:
        ValueError: not one of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    keras.config.set_dtype_policy(precision)


def resolve_jit_compile(choice: str | bool) -> bool | str:
    """Return whether to compile the step with XLA, or "pointwise" for what `fusion` compiles of it.

    "auto" is true on a GPU and false on CPU. On CPU a compiled step takes somewhat less processor
    time, but compiling takes as much as dozens of steps, and it uses several cores less well (see
    experiments/LOG.md): worth it for long runs.

    Args:
        choice: "auto", "true", "false", "pointwise" or a bool.

    Raises:
        ValueError: anything else.
    """
    if isinstance(choice, bool):
        return choice
    if choice not in JIT_CHOICES:
        names = f"{', '.join(JIT_CHOICES[:-1])} or {JIT_CHOICES[-1]}"
        raise ValueError(f"jit_compile: expected {names}, got {choice!r}")
    if choice == "auto":
        return bool(tf.config.list_physical_devices("GPU"))
    return choice if choice == "pointwise" else choice == "true"


class Trainer:
    """Trains a model step by step, with logs, checkpoints and an exact continuation.

    The output folder receives `metrics.jsonl` (one object a log line), `model.ckpt-<step>.*` and,
    under `tensorboard/`, summaries.

    Attributes:
        train_step: the graphs of a step, and its counters.
        step_profile: profiles the steps that the options name.
        keeper: saves and restores `keeper.variables`, the whole state.
        is_chief: whether this process writes logs and checkpoints; of several hosts one does.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        objective: Objective,
        output_dir: str | os.PathLike,
        options: TrainerOptions | None = None,
        *,
        strategy: tf.distribute.Strategy | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ):
        """Build the optimizer on the model; nothing is read or written yet but the folder.

        Args:
            model: takes the first part of a batch, its outputs go to `objective`.
            optimizer: a Keras optimizer, under mixed_float16 a LossScaleOptimizer.
            objective: loss and metrics.
            output_dir: made where it is missing.
            options: None for the defaults of TrainerOptions.
            strategy: of `distribution.create_strategy`; model and optimizer must have been made
                within its scope. None for one device. Batches are global ones in any case.
            callbacks: Keras callbacks; `bert_tf.training.callbacks` says what they are told. A
                model that is not compiled is compiled with the optimizer, for them to see it. Of
                several hosts each calls its own, and all or none have some.

        Raises:
            ValueError: model or optimizer do not suit the strategy or the callbacks.
        """
        self.options = options or TrainerOptions()
        self.model = model
        self.optimizer = optimizer
        self.objective = objective
        self.output_dir = local_path(output_dir)
        self.strategy = strategy
        self.is_chief = distribution.is_chief(strategy)
        self.jit_compile = resolve_jit_compile(self.options.jit_compile)
        self.train_step = TrainStep(
            model,
            optimizer,
            objective,
            strategy,
            jit_compile=self.jit_compile,
            gradient_accumulation_steps=self.options.gradient_accumulation_steps,
            loss_normalization=self.options.loss_normalization,
        )
        self.keeper = CheckpointKeeper(
            self.output_dir,
            {
                **training_variables(model, optimizer),
                "global_step": self.train_step.steps,
                # A checkpoint may fall between two log lines, whose means cover both sides of it.
                "training/metric_sums": self.train_step.train_sums,
                "training/tokens": self.train_step.tokens,
            },
            keep=self.options.keep_checkpoints,
            after_save=self.options.after_save,
        )
        self.callbacks = prepare_callbacks(callbacks, model, optimizer)
        self.step_profile = StepProfile(self.output_dir / "tensorboard", self.options.profile_steps)
        self._averaging = False

    # === State ===

    @property
    def step(self) -> int:
        """Steps taken, those before a resume included."""
        return int(self.train_step.steps.numpy())

    def restore(self) -> int | None:
        """Go back to the newest undamaged checkpoint of the output folder, where there is one.

        Of several hosts all must call it; they read the one that the chief finds undamaged.
        Log lines after its step are cut, so that the log becomes that of a run never stopped.

        Returns:
            The step restored, or None where training begins anew.

        Raises:
            ValueError: the checkpoint is of another model or optimizer.
            CorruptCheckpointError: all checkpoints are damaged.
        """
        restored = None
        if self.is_chief:
            restored = self.keeper.restore()
            cut_metrics(self.output_dir / METRICS_NAME, self.step)
        step = distribution.value_of_chief(self.strategy, -1 if restored is None else restored)
        if step < 0:
            return None
        if not self.is_chief:
            self.keeper.restore_step(step)
        elif self.step_profile.first <= self.step_profile.last <= step:
            _log.warning("profile_steps: all lie before step %d, so no profile is written", step)
        return step

    def save(self) -> pathlib.Path:
        """Write a checkpoint of the present state; of several hosts, the chief alone.

        Raises:
            NonFiniteLossError: the loss is not finite, so the state is not worth keeping.
            OSError: the files cannot be written.
        """
        self._check_finite()
        if not self.is_chief:
            return self.keeper.prefix(self.step)
        best = self.best
        return self.keeper.save(self.step, also_keep=() if best is None else (best.step,))

    @property
    def best(self) -> BestStep | None:
        """Where `keep_best_by` was lowest of all evaluations whose checkpoint is there, if any."""
        figure = self.options.keep_best_by
        return None if figure is None else _best_step(self.output_dir, figure)

    def _check_finite(self) -> None:
        bad = int(self.train_step.first_bad_step.numpy())
        if bad >= 0:
            raise _non_finite_loss(bad, self.output_dir)

    def log_line(self, kind: str, values: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl, stamped with the present step; the chief alone.

        Args:
            kind: "train", "eval", or a kind of the caller's own.
            values: name -> figure.
        """
        if self.is_chief:
            append_metrics(self.output_dir / METRICS_NAME, kind, {"step": self.step, **values})

    # === Training and evaluation ===

    def train(
        self,
        make_dataset: MakeDataset,
        num_train_steps: int,
        *,
        sequences_per_batch: float,
        rows_per_batch: int | None = None,
        eval_every_steps: int | None = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        should_stop: Callable[[], bool] | None = None,
        interrupted: Callable[[], bool] | None = None,
    ) -> dict[str, float]:
        """Train until `num_train_steps` steps have been taken in all.

        Args:
            make_dataset: step -> endless dataset of (inputs, labels, weights) from that step on:
                global batches, the same on each host and for any number of replicas.
            num_train_steps: where to stop, counted from the very beginning.
            sequences_per_batch: B, for the rates that are logged; the mean number of sequences,
                where it differs.
            rows_per_batch: B of packed rows; 0 where B differs from batch to batch, but is a
                multiple of replicas times accumulation steps; None for `sequences_per_batch`.
            eval_every_steps: steps between two evaluations on the way; None means none. Where there
                are callbacks, the end of training is evaluated too.
            evaluate: what to call then; its figures are logged with the prefix "eval_".
            should_stop: asked after each such evaluation; True ends the training there, with a
                checkpoint, as a callback does that sets `model.stop_training`.
            interrupted: asked after each call of the graph, on each host: where any says True,
                the machine is needed otherwise. Training saves its state and raises StoppedError;
                it goes on from there as if it had never been stopped.

        Returns:
            The last log line; empty where there was nothing to do.

        Raises:
            NonFiniteLossError: the loss became infinite or not a number.
            StoppedError: see `interrupted`.
        """
        if (step := self.step) >= num_train_steps:
            return {}
        last: dict[str, float] = {}
        rows = _whole(sequences_per_batch) if rows_per_batch is None else rows_per_batch
        batches = iter(self.train_step.training_batches(make_dataset, step, rows))
        every, evals = self.options.save_checkpoints_steps, eval_every_steps if evaluate else None
        epoch = evals or self.options.log_steps
        calls = FitCalls(
            self.callbacks, self.train_step, num_train_steps=num_train_steps, steps_per_epoch=epoch
        )
        log = _open_log(self, step, num_train_steps)
        try:
            while step < num_train_steps:
                step += _take_steps(self, batches, calls, step, (num_train_steps, every, evals))
                is_last = step == num_train_steps or calls.stop_training
                is_best, figures = False, {}
                if is_logged := step % self.options.log_steps == 0 or is_last:
                    last = self._write_log_line(log, sequences_per_batch)
                if evaluate and evals and (bool(calls) if is_last else step % evals == 0):
                    with log.paused(), self.averaged_weights():
                        figures = calls.evaluate(evaluate)
                        if self.is_chief and self.options.keep_best_by:
                            is_best = _is_better(figures, self.options.keep_best_by, self.best)
                        log.write_eval(step, figures)
                    is_last = is_last or (should_stop is not None and should_stop())
                if calls.ends_epoch(step, is_last=is_last):
                    with log.paused(), self.averaged_weights():
                        calls.end_epoch(figures)
                    is_last = is_last or calls.stop_training
                if is_last and not is_logged:
                    last = self._write_log_line(log, sequences_per_batch)
                asked = None if interrupted is None else interrupted()
                stops = asked is not None and distribution.any_worker(self.strategy, asked)
                # Last, so that a checkpoint never stands before a log line of its own step.
                if (every and (step % every == 0 or is_last or is_best)) or (stops and not is_last):
                    with log.paused():
                        self.save()
                if is_last:
                    break
                if stops:
                    raise _stopped(step, self.output_dir)
            calls.end()
        except NonFiniteLossError as error:
            raise _with_batch(error, self, make_dataset) from None
        finally:
            log.close()
            self.step_profile.close()  # last: another may have stopped the profiler, which raises
        return last

    def _write_log_line(self, log: RunLog, sequences_per_batch: float) -> dict[str, float]:
        self._check_finite()
        loss_scaling = {}
        if (scale := getattr(self.optimizer, "dynamic_scale", None)) is not None:
            loss_scaling = {"loss_scale": float(scale.numpy()), "skipped_steps": self.skipped_steps}
        return log.write(
            self.step,
            self.train_step.take_means(),
            learning_rate=float(self.train_step.learning_rate.numpy()),
            loss_scaling=loss_scaling,
            sequences_per_batch=sequences_per_batch,
            tokens=int(self.train_step.tokens.numpy()),
        )

    def evaluate(self, dataset: tf.data.Dataset) -> dict[str, float]:
        """Return the mean of every metric over a finite dataset, dropout off.

        Where the optimizer averages weights, it is the averages that are evaluated.

        Args:
            dataset: of (inputs, labels, weights), global batches; of several hosts all must
                evaluate the same.

        Returns:
            name -> sum / weight; "loss" is the mean of the batches' losses, as the original has it.

        Raises:
            ValueError: the dataset is empty, or its batches cannot be divided among the replicas.
        """
        with self.averaged_weights():
            return self.train_step.evaluate(self.train_step.evaluation_batches(dataset))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averages of an optimizer with `use_ema` in the model's weights for a while.

        Does nothing where the optimizer has none, or has not taken a step yet.
        """
        optimizer = innermost(self.optimizer)
        averages = getattr(optimizer, "_model_variables_moving_average", None)
        if not averages or self._averaging or not int(optimizer.iterations.numpy()):
            yield
            return
        self._averaging = True
        try:
            with _assigned(self.model.trainable_variables, averages):
                yield
        finally:
            self._averaging = False

    @property
    def skipped_steps(self) -> int:
        """Steps whose gradients were not finite, so that a loss-scale optimizer left them out."""
        return self.step - int(innermost(self.optimizer).iterations.numpy())


def _take_steps(
    trainer: Trainer,
    batches: Any,
    calls: FitCalls,
    step: int,
    ends: tuple[int, int | None, int | None],
) -> int:
    """Call the graph once after `step` steps, and return how many it took.

    They go to the end of training at most, the first of `ends`, or to a multiple of the others.
    """
    end, *others = ends
    count = min(
        trainer.options.steps_per_call,
        end - step,
        trainer.step_profile.steps_left(step),
        *(steps - step % steps for steps in (trainer.options.log_steps, *others) if steps),
    )
    calls.begin_batch(step)
    trainer.step_profile.begin_batch(step)
    trainer.train_step.run(batches, tf.constant(count, tf.int32))
    trainer.step_profile.end_batch(step + count)
    calls.end_batch(step + count)
    return count


@contextlib.contextmanager
def _assigned(
    variables: Sequence[keras.Variable], values: Sequence[keras.Variable]
) -> Iterator[None]:
    """Within it variables have the values of others."""
    kept = [variable.numpy() for variable in variables]
    try:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value.numpy())
        yield
    finally:
        for variable, value in zip(variables, kept, strict=True):
            variable.assign(value)


def _best_step(folder: pathlib.Path, figure: str) -> BestStep | None:
    """Return where a figure was lowest of all evaluations whose checkpoint is in a folder."""
    steps, name = set(checkpoint_steps(folder)), f"eval_{figure}"
    lines = read_metrics_or_nothing(folder / METRICS_NAME, "eval")
    lines = [x for x in lines if x["step"] in steps and math.isfinite(x.get(name, math.nan))]
    if not lines:
        return None
    best = min(lines, key=lambda line: line[name])
    return BestStep(int(best["step"]), best[name])


def _stopped(step: int, folder: pathlib.Path) -> StoppedError:
    return StoppedError(
        f"stopped by a signal after step {step}, whose state is saved in {folder}; the same "
        "command goes on from there"
    )


def _open_log(trainer: Trainer, start: int, target: int) -> RunLog:
    return RunLog(
        trainer.output_dir,
        trainer.objective.metric_names,
        start=start,
        target=target,
        tokens=int(trainer.train_step.tokens.numpy()),
        verbose=trainer.options.verbose,
        tensorboard=trainer.options.tensorboard,
        is_chief=trainer.is_chief,
    )


def _whole(sequences_per_batch: float) -> int:
    if sequences_per_batch != int(sequences_per_batch):
        raise ValueError(
            f"sequences_per_batch: {sequences_per_batch} is a mean, which needs rows_per_batch"
        )
    return int(sequences_per_batch)


def _is_better(figures: Mapping[str, float], name: str, best: BestStep | None) -> bool:
    """Tell whether an evaluation is better than the best before it, if there was one."""
    if name not in figures:
        raise ValueError(f"keep_best_by: expected one of {', '.join(figures)}, got {name!r}")
    value = figures[name]
    return math.isfinite(value) and (best is None or value < best.value)


def _non_finite_loss(bad: int, folder: pathlib.Path) -> NonFiniteLossError:
    steps = [step for step in checkpoint_steps(folder) if step < bad]
    last = f"model.ckpt-{steps[-1]}" if steps else "none"
    return NonFiniteLossError(
        f"the loss is not finite at step {bad}; the newest checkpoint before it is {last}. "
        "Lower the learning rate or lengthen the warm-up; under mixed_float16 try "
        "mixed_bfloat16 or float32"
    )


def _with_batch(
    error: NonFiniteLossError, trainer: Trainer, make_dataset: MakeDataset
) -> NonFiniteLossError:
    """Save the batch of the bad step, which follows from its number."""
    if not trainer.is_chief:
        return error
    bad = int(trainer.train_step.first_bad_step.numpy())
    path = trainer.output_dir / f"nonfinite-batch-{bad}.npz"
    _save_batch(path, make_dataset(bad - 1))
    return NonFiniteLossError(f"{error}. The batch of that step is in {path}")


def _save_batch(path: pathlib.Path, dataset: tf.data.Dataset) -> None:
    """Write the first batch of a dataset, each array under its path, "inputs/input_ids"."""
    batch = next(dataset.take(1).as_numpy_iterator())
    np.savez_compressed(path, **_flat(dict(zip(_BATCH_PARTS, batch, strict=True))))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings of arrays with one name each, "inputs/input_ids"."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        name: array
        for key, part in values.items()
        for name, array in _flat(part, f"{prefix}/{key}" if prefix else str(key)).items()
    }
