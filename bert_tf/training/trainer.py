"""The train step, and a Trainer that logs, saves and resumes to the bit.

Losses, optimizer and schedule are those that `compile` and `fit` use; what the Trainer adds is
resuming exactly, metrics that stay on the device between two log lines, and one step that runs on
one device or, under a strategy, on many, in one piece or in several that follow each other.

Shapes: B batch, L sequence length, P predictions per sequence, V vocabulary, K metrics.
"""

from __future__ import annotations

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

from bert_tf.training import distribution
from bert_tf.training.log import METRICS_NAME, append_metrics, cut_metrics, read_metrics_or_nothing
from bert_tf.training.objectives import Objective, StepResult
from bert_tf.training.progress import RunLog
from bert_tf.training.state import CheckpointKeeper, training_variables
from bert_tf.weights.tensor_files import checkpoint_steps

_log = logging.getLogger(__name__)

_BATCH_PARTS = ("inputs", "labels", "weights")
_SEED_STRIDE = 7919  # between the seeds of two replicas; seeds are below 1e9, so sums fit in int32
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


def resolve_jit_compile(choice: str | bool) -> bool:
    """Whether to compile the step with XLA.

    "auto" is true on a GPU and false on CPU. On CPU a compiled step takes somewhat less processor
    time, but compiling takes as much as dozens of steps, and it uses several cores less well (see
    experiments/LOG.md): worth it for long runs.

    Args:
        choice: "auto", "true", "false" or a bool.

    Raises:
        ValueError: anything else.
    """
    if isinstance(choice, bool):
        return choice
    if choice not in ("auto", "true", "false"):
        raise ValueError(f"jit_compile: expected auto, true or false, got {choice!r}")
    if choice == "auto":
        return bool(tf.config.list_physical_devices("GPU"))
    return choice == "true"


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or not a number."""


class StoppedError(RuntimeError):
    """Training was asked to stop, and has saved its state."""


class Trainer:
    """Trains a model step by step, with logs, checkpoints and an exact continuation.

    The output folder receives `metrics.jsonl` (one object a log line), `config.json`,
    `model.ckpt-<step>.*` and, under `tensorboard/`, summaries.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        objective: Objective,
        output_dir: str | os.PathLike,
        *,
        jit_compile: str | bool = "auto",
        log_steps: int = 25,
        save_checkpoints_steps: int | None = 1000,
        keep_checkpoints: int = 5,
        keep_best_by: str | None = None,
        steps_per_call: int = 1000,
        tensorboard: bool = True,
        verbose: bool = True,
        strategy: tf.distribute.Strategy | None = None,
        gradient_accumulation_steps: int = 1,
        loss_normalization: str = "global",
    ):
        """Build the optimizer on the model; nothing is read or written yet but the folder.

        Args:
            model: takes the first part of a batch, its outputs go to `objective`.
            optimizer: a Keras optimizer, under mixed_float16 a LossScaleOptimizer.
            objective: loss and metrics.
            output_dir: made where it is missing.
            jit_compile: XLA: True, False or "auto", see `resolve_jit_compile`.
            log_steps: steps between two log lines; metrics are means over them.
            save_checkpoints_steps: steps between two checkpoints; None for none at all.
            keep_checkpoints: how many checkpoints to keep, the newest.
            keep_best_by: figure of the evaluations on the way; the checkpoint where it was lowest
                is written then and kept besides. None for none.
            steps_per_call: steps at most that run in one call of the graph; a call ends at the
                next log line, checkpoint or evaluation anyway.
            tensorboard: whether to write summaries.
            verbose: whether to show a progress bar.
            strategy: of `distribution.create_strategy`; model and optimizer must have been made
                within its scope. None for one device. Batches are global ones in any case.
            gradient_accumulation_steps: parts, one after another, in which a replica computes its
                share of a batch, to need less memory; gradients are clipped and applied once.
            loss_normalization: "global": losses are means over the global batch, so that they mean
                the same on any number of replicas. "per_replica": the mean over replicas of each
                one's own mean, as in the original on TPUs.

        Raises:
            ValueError: a number is less than 1, or model or optimizer do not suit the strategy.
        """
        for name, value in (
            ("log_steps", log_steps),
            ("save_checkpoints_steps", save_checkpoints_steps),
            ("steps_per_call", steps_per_call),
            ("gradient_accumulation_steps", gradient_accumulation_steps),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if loss_normalization not in distribution.LOSS_NORMALIZATIONS:
            raise ValueError(
                f"loss_normalization: expected one of "
                f"{', '.join(distribution.LOSS_NORMALIZATIONS)}, got {loss_normalization!r}"
            )
        self.model = model
        self.optimizer = optimizer
        self.objective = objective
        self.output_dir = pathlib.Path(output_dir)
        self.jit_compile = resolve_jit_compile(jit_compile)
        self.log_steps = log_steps
        self.save_checkpoints_steps = save_checkpoints_steps
        self.keep_best_by = keep_best_by
        self.steps_per_call = steps_per_call
        self.verbose = verbose
        self._tensorboard = tensorboard
        self.strategy = strategy
        self.num_replicas = distribution.num_replicas_of(strategy)
        self.is_chief = distribution.is_chief(strategy)
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.loss_normalization = loss_normalization
        self._loss_factor = 1.0 if loss_normalization == "global" else 1.0 / self.num_replicas
        self._is_split = strategy is not None or gradient_accumulation_steps > 1
        self._averaging = False

        if strategy is not None:
            _check_made_within(strategy, model, optimizer)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            optimizer.build(model.trainable_variables)
        self._seeds = [v for v in model.variables if "seed" in v.path]
        names = objective.metric_names
        # float64: a sum over a large evaluation exceeds float32's 24 bits.
        self._train_sums = tf.Variable(tf.zeros([len(names), 2], tf.float64), trainable=False)
        self._eval_sums = tf.Variable(tf.zeros([len(names), 2], tf.float64), trainable=False)
        self._step = _counter(0)
        self._first_bad_step = _counter(-1)
        self._learning_rate = tf.Variable(tf.constant(0.0), trainable=False)
        self._tokens = _counter(0)
        self.keeper = CheckpointKeeper(
            self.output_dir,
            {
                **training_variables(model, optimizer),
                "global_step": self._step,
                # A checkpoint may fall between two log lines, whose means cover both sides of it.
                "training/metric_sums": self._train_sums,
                "training/tokens": self._tokens,
            },
            keep=keep_checkpoints,
        )
        step = self._strategy_step
        if strategy is None:
            step = tf.function(self._train_step, jit_compile=self.jit_compile)
        self._run_steps = tf.function(self._steps_of(step))
        # Of a replica only what needs no other one is compiled: XLA knows no merging of replicas.
        compiles = self.jit_compile and not isinstance(strategy, tf.distribute.TPUStrategy)
        self._own_gradients = self._gradients
        self._own_metrics = self._metrics
        if strategy is not None and compiles:
            self._own_gradients = tf.function(self._gradients, jit_compile=True)
            self._own_metrics = tf.function(self._metrics, jit_compile=True)
        evaluates = self._eval_step if strategy is None else self._strategy_eval_step
        self._run_eval = tf.function(evaluates, jit_compile=compiles and strategy is None)

    # === Graph ===

    def _train_step(self, batch: Any) -> None:
        """One step where there is one replica."""
        loss, found, tokens, gradients = self._gradients(batch)
        self._learning_rate.assign(tf.cast(self.optimizer.learning_rate, tf.float32))
        self._apply(gradients)
        self._record(loss, found, tokens)

    def _strategy_step(self, batch: Any) -> None:
        """One step of all replicas."""
        strategy = self.strategy
        assert strategy is not None  # noqa: S101
        figures, learning_rate = tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0],
            strategy.run(self._replica_step, (batch,)),
        )
        self._learning_rate.assign(learning_rate)
        self._record(figures[0], tf.reshape(figures[2:], [-1, 2]), figures[1])

    def _replica_step(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Return what all replicas know after it: (loss, tokens, metrics) [2 + 2 K], and rate."""
        with self._masks_of_replica():
            loss, found, tokens, gradients = self._own_gradients(batch)
        learning_rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        figures = tf.concat(
            [
                tf.stack([loss, tf.cast(tokens, tf.float32)]),
                tf.reshape(tf.cast(found, tf.float32), [-1]),
            ],
            axis=0,
        )
        # Before the optimizer, lest one replica skips a step for a number that another has not.
        present = [gradient for gradient in gradients if gradient is not None]
        *present, figures = _sum_over_replicas([*present, figures])
        reduced = iter(present)
        self._apply([None if gradient is None else next(reduced) for gradient in gradients])
        return figures, learning_rate

    @contextlib.contextmanager
    def _masks_of_replica(self) -> Iterator[None]:
        """Let dropout draw other masks on each replica, and leave its state the same on all."""
        context = tf.distribute.get_replica_context()
        if self.num_replicas == 1 or context is None:
            yield
            return
        replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
        shifts = [
            tf.cast(tf.stack([replica * _SEED_STRIDE, 0]), seed.dtype) for seed in self._seeds
        ]
        for seed, shift in zip(self._seeds, shifts, strict=True):
            seed.assign(seed.value + shift)
        yield
        for seed, shift in zip(self._seeds, shifts, strict=True):
            seed.assign(seed.value - shift)

    def _gradients(self, batch: Any) -> Any:
        """Loss, metrics [K, 2], tokens and gradients, None where there is none, of a replica."""
        if not self._is_split:
            return self._gradients_of(batch, None)
        parts, whole = batch
        if self.gradient_accumulation_steps == 1:
            return self._gradients_of(tf.nest.map_structure(lambda x: x[0], parts), whole)
        return tf.autograph.experimental.do_not_convert(self._accumulated)(parts, whole)

    def _accumulated(self, parts: Any, whole: Any) -> Any:
        """Sum over micro-batches; one after another, so that each may use the same memory."""
        used: list[bool] = []

        def add(index: Any, loss: Any, found: Any, tokens: Any, gradients: Any) -> Any:
            part = tf.nest.map_structure(lambda x: x[index], parts)
            more = self._gradients_of(part, whole)
            used[:] = [gradient is not None for gradient in more[3]]
            gradients = [x if y is None else x + y for x, y in zip(gradients, more[3], strict=True)]
            return index + 1, loss + more[0], found + more[1], tokens + more[2], gradients

        start = (
            tf.constant(0),
            tf.constant(0.0),
            tf.zeros([len(self.objective.metric_names), 2], tf.float64),
            tf.constant(0, tf.int64),
            [tf.zeros(v.shape, v.dtype) for v in self.model.trainable_variables],
        )
        _, loss, found, tokens, gradients = tf.while_loop(
            lambda index, *_: index < self.gradient_accumulation_steps,
            add,
            start,
            parallel_iterations=1,
            maximum_iterations=self.gradient_accumulation_steps,
        )
        gradients = [x if is_used else None for x, is_used in zip(gradients, used, strict=True)]
        return loss, found, tokens, gradients

    def _gradients_of(self, batch: Any, whole: Any) -> Any:
        inputs, labels, weights = batch
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self.model(inputs, training=True)
            loss, found = self._objective_of(outputs, labels, weights, whole)
            if self._loss_factor != 1:
                loss *= self._loss_factor
            scaled = self.optimizer.scale_loss(loss)
        gradients = [
            # Dense, since a loss-scale optimizer cannot look into slices.
            None if gradient is None else tf.convert_to_tensor(gradient)
            for gradient in tape.gradient(scaled, variables)
        ]
        return loss, self._stack(found), _real_tokens(inputs), gradients

    def _objective_of(self, outputs: Any, labels: Any, weights: Any, whole: Any) -> StepResult:
        # An objective of a user's own need not know of parts where there are none.
        whole = () if whole is None else (whole,)
        return self.objective(outputs, labels, weights, *whole)

    def _apply(self, gradients: Sequence[Any]) -> None:
        variables = self.model.trainable_variables
        # Without next sentence prediction the pooler has no gradient, and stays as it was.
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        self.optimizer.apply(*map(list, zip(*pairs, strict=True)))

    def _record(self, loss: Any, found: Any, tokens: Any) -> None:
        bad = tf.logical_and(self._first_bad_step < 0, tf.logical_not(tf.math.is_finite(loss)))
        self._step.assign_add(1)
        self._first_bad_step.assign(tf.where(bad, self._step, self._first_bad_step))
        self._train_sums.assign_add(tf.cast(found, tf.float64))
        self._tokens.assign_add(tf.cast(tokens, tf.int64))

    def _steps_of(self, step: Callable[[Any], None]) -> Callable[[Any, Any], None]:
        def run(iterator, count):
            for _ in tf.range(count):
                step(next(iterator))

        return run

    def _eval_step(self, batch: Any) -> None:
        self._eval_sums.assign_add(self._metrics(batch, None))

    def _strategy_eval_step(self, batch: Any) -> None:
        strategy = self.strategy
        assert strategy is not None  # noqa: S101

        def of_replica(batch):
            parts, whole = batch
            found = self._own_metrics(tf.nest.map_structure(lambda x: x[0], parts), whole)
            return _sum_over_replicas([tf.cast(found, tf.float32)])[0]

        found = strategy.experimental_local_results(strategy.run(of_replica, (batch,)))[0]
        self._eval_sums.assign_add(tf.cast(found, tf.float64))

    def _metrics(self, batch: Any, whole: Any) -> tf.Tensor:
        inputs, labels, weights = batch
        outputs = self.model(inputs, training=False)
        _, found = self._objective_of(outputs, labels, weights, whole)
        return self._stack(found)

    def _stack(self, found: Mapping[str, tuple[Any, Any]]) -> tf.Tensor:
        """Metrics in the order of their names, float64 [K, 2]."""
        return tf.stack(
            [
                tf.stack([tf.cast(part, tf.float64) for part in found[name]])
                for name in self.objective.metric_names
            ]
        )

    # === State ===

    @property
    def step(self) -> int:
        """Steps taken, those before a resume included."""
        return int(self._step.numpy())

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
        if self.keep_best_by is None:
            return None
        there, name = set(checkpoint_steps(self.output_dir)), f"eval_{self.keep_best_by}"
        lines = read_metrics_or_nothing(self.output_dir / METRICS_NAME, "eval")
        lines = [x for x in lines if x["step"] in there and math.isfinite(x.get(name, math.nan))]
        if not lines:
            return None
        best = min(lines, key=lambda line: line[name])
        return BestStep(int(best["step"]), best[name])

    def _is_best(self, figures: Mapping[str, float]) -> bool:
        if self.keep_best_by is None or not self.is_chief:
            return False
        if self.keep_best_by not in figures:
            raise ValueError(
                f"keep_best_by: expected one of {', '.join(figures)}, got {self.keep_best_by!r}"
            )
        value, best = figures[self.keep_best_by], self.best
        return math.isfinite(value) and (best is None or value < best.value)

    def _check_finite(self) -> None:
        bad = int(self._first_bad_step.numpy())
        if bad < 0:
            return
        steps = [step for step in checkpoint_steps(self.keeper.directory) if step < bad]
        last = f"model.ckpt-{steps[-1]}" if steps else "none"
        raise NonFiniteLossError(
            f"the loss is not finite at step {bad}; the newest checkpoint before it is {last}. "
            "Lower the learning rate or lengthen the warm-up; under mixed_float16 try "
            "mixed_bfloat16 or float32"
        )

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
        make_dataset: Callable[[int], tf.data.Dataset],
        num_train_steps: int,
        *,
        sequences_per_batch: int,
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
            sequences_per_batch: B, for the rates that are logged.
            eval_every_steps: steps between two evaluations on the way; None means none.
            evaluate: what to call then; its figures are logged with the prefix "eval_".
            should_stop: asked after each such evaluation; True ends the training there, with a
                checkpoint.
            interrupted: asked after each call of the graph, on each host: where any says True,
                the machine is needed otherwise. Training saves its state and raises StoppedError;
                it goes on from there as if it had never been stopped.

        Returns:
            The last log line; empty where there was nothing to do.

        Raises:
            NonFiniteLossError: the loss became infinite or not a number.
            StoppedError: see `interrupted`.
        """
        step = self.step
        last: dict[str, float] = {}
        if step >= num_train_steps:
            return last
        iterator = iter(self._training_batches(make_dataset, step, sequences_per_batch))
        log = RunLog(
            self.output_dir,
            self.objective.metric_names,
            start=step,
            target=num_train_steps,
            tokens=int(self._tokens.numpy()),
            verbose=self.verbose,
            tensorboard=self._tensorboard,
            is_chief=self.is_chief,
        )
        try:
            while step < num_train_steps:
                ends = [self.log_steps, self.save_checkpoints_steps, eval_every_steps]
                count = min(
                    self.steps_per_call,
                    num_train_steps - step,
                    *(every - step % every for every in ends if every),
                )
                self._run_steps(iterator, tf.constant(count, tf.int32))
                step += count
                is_last, is_best = step == num_train_steps, False
                if step % self.log_steps == 0 or is_last:
                    self._check_finite()
                    last = log.write(
                        step,
                        self._take_means(),
                        learning_rate=float(self._learning_rate.numpy()),
                        loss_scaling=self._loss_scaling(),
                        sequences_per_batch=sequences_per_batch,
                        tokens=int(self._tokens.numpy()),
                    )
                if evaluate and eval_every_steps and step % eval_every_steps == 0 and not is_last:
                    with log.paused(), self.averaged_weights():
                        figures = evaluate()
                        is_best = self._is_best(figures)
                        log.write_eval(step, figures)
                    is_last = should_stop is not None and should_stop()
                # Last, so that a checkpoint never stands before a log line of its own step.
                every = self.save_checkpoints_steps
                stops = interrupted is not None and distribution.any_worker(
                    self.strategy, interrupted()
                )
                is_due = every and (step % every == 0 or is_last or is_best)
                if is_due or (stops and not is_last):
                    with log.paused():
                        self.save()
                if is_last:
                    break
                if stops:
                    raise StoppedError(
                        f"stopped by a signal after step {step}, whose state is saved in "
                        f"{self.output_dir}; the same command goes on from there"
                    )
        except NonFiniteLossError as error:
            raise self._with_batch(error, make_dataset) from None
        finally:
            log.close()
        return last

    def _take_means(self) -> dict[str, float]:
        """Means of the metrics since this was called last."""
        means = _means(self.objective.metric_names, self._train_sums)
        self._train_sums.assign(tf.zeros_like(self._train_sums))
        return means

    def _loss_scaling(self) -> dict[str, float]:
        """Return what a log line says of a loss-scale optimizer; nothing of others."""
        scale = getattr(self.optimizer, "dynamic_scale", None)
        if scale is None:
            return {}
        return {"loss_scale": float(scale.numpy()), "skipped_steps": self.skipped_steps}

    def _training_batches(
        self, make_dataset: Callable[[int], tf.data.Dataset], step: int, batch_size: int
    ) -> Any:
        if not self._is_split:
            return make_dataset(step)
        distribution.check_batch_size(
            "sequences_per_batch", batch_size, self.num_replicas, self.gradient_accumulation_steps
        )
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return distribution.distribute_batches(
            self.strategy,
            # Of a stream that may end workers would ask each other at every step whether it has.
            lambda: make_dataset(step).apply(endless),
            batch_size=batch_size,
            loss_weights=self.objective.loss_weights,
            accumulation_steps=self.gradient_accumulation_steps,
            loss_normalization=self.loss_normalization,
        )

    def _with_batch(
        self, error: NonFiniteLossError, make_dataset: Callable[[int], tf.data.Dataset]
    ) -> NonFiniteLossError:
        """Save the batch of the bad step, which follows from its number."""
        if not self.is_chief:
            return error
        bad = int(self._first_bad_step.numpy())
        path = self.output_dir / f"nonfinite-batch-{bad}.npz"
        batch = next(make_dataset(bad - 1).take(1).as_numpy_iterator())
        np.savez_compressed(path, **_flat(dict(zip(_BATCH_PARTS, batch, strict=True))))
        return NonFiniteLossError(f"{error}. The batch of that step is in {path}")

    def evaluate(self, dataset: tf.data.Dataset) -> dict[str, float]:
        """Mean of every metric over a finite dataset, dropout off.

        Where the optimizer averages weights, it is the averages that are evaluated.

        Args:
            dataset: of (inputs, labels, weights), global batches; of several hosts all must
                evaluate the same.

        Returns:
            name -> sum / weight; "loss" is the mean of the batches' losses, as the original has it.

        Raises:
            ValueError: the dataset is empty, or its batches cannot be divided among the replicas.
        """
        self._eval_sums.assign(tf.zeros_like(self._eval_sums))
        batches = 0
        with self.averaged_weights():
            for batch in self._eval_batches(dataset):
                self._run_eval(batch)
                batches += 1
        if not batches:
            raise ValueError("dataset: expected at least one batch to evaluate, got none")
        return _means(self.objective.metric_names, self._eval_sums)

    def _eval_batches(self, dataset: tf.data.Dataset) -> Any:
        if self.strategy is None:
            return dataset
        size = tf.nest.flatten(dataset.element_spec)[0].shape[0]
        if size is None:
            raise ValueError("dataset: expected batches of one size that is known, got any size")
        distribution.check_batch_size("the evaluation batch", size, self.num_replicas)
        return distribution.distribute_batches(
            self.strategy,
            lambda: dataset,
            batch_size=size,
            loss_weights=self.objective.loss_weights,
        )

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averages of an optimizer with `use_ema` in the model's weights for a while.

        Does nothing where the optimizer has none, or has not taken a step yet.
        """
        optimizer = _innermost(self.optimizer)
        averages = getattr(optimizer, "_model_variables_moving_average", None)
        if not averages or self._averaging or not int(optimizer.iterations.numpy()):
            yield
            return
        variables = self.model.trainable_variables
        kept = [variable.numpy() for variable in variables]
        self._averaging = True
        try:
            for variable, average in zip(variables, averages, strict=True):
                variable.assign(average.numpy())
            yield
        finally:
            self._averaging = False
            for variable, value in zip(variables, kept, strict=True):
                variable.assign(value)

    @property
    def skipped_steps(self) -> int:
        """Steps whose gradients were not finite, so that a loss-scale optimizer left them out."""
        return self.step - int(_innermost(self.optimizer).iterations.numpy())


def _innermost(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _check_made_within(
    strategy: tf.distribute.Strategy, model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> None:
    for name, made in (("model", model), ("optimizer", optimizer)):
        for variable in made.variables:
            if not strategy.extended.variable_created_in_scope(variable.value):
                raise ValueError(
                    f"{name}: expected one made within strategy.scope(), but {variable.path} was "
                    "not"
                )
    inner = _innermost(optimizer)
    if not hasattr(inner, "gradients_are_reduced"):
        raise ValueError(
            "optimizer: expected one with the attribute gradients_are_reduced, as those of "
            f"bert_tf.training, since gradients are summed before; got {type(inner).__name__}"
        )
    inner.gradients_are_reduced = True


def _sum_over_replicas(tensors: Sequence[Any]) -> list[Any]:
    context = tf.distribute.get_replica_context()
    assert context is not None  # noqa: S101
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings of arrays with one name each, "inputs/input_ids"."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        name: array
        for key, part in values.items()
        for name, array in _flat(part, f"{prefix}/{key}" if prefix else str(key)).items()
    }


def _counter(start: int) -> tf.Variable:
    return tf.Variable(tf.constant(start, tf.int64), trainable=False)


def _real_tokens(inputs: Any) -> tf.Tensor:
    """Tokens of a batch without padding, int64; 0 where the inputs have no mask."""
    if isinstance(inputs, Mapping) and "input_mask" in inputs:
        return tf.reduce_sum(tf.cast(inputs["input_mask"], tf.int64))
    return tf.constant(0, tf.int64)


def _means(names: Sequence[str], sums: tf.Variable) -> dict[str, float]:
    table = sums.numpy()
    return {
        name: float(total / weight) if weight else math.nan
        for name, (total, weight) in zip(names, table, strict=True)
    }
