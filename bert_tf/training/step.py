"""One step of training and of evaluation, as graphs that run on one device or on many replicas.

A replica computes loss, metrics and gradients of its share of a batch, in one piece or in parts
that follow each other. The sums over replicas are then applied and recorded once.

Shapes: B batch, R replicas, N accumulation steps, L sequence length, K metrics.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bert_tf.models import fusion
from bert_tf.training import distribution
from bert_tf.training.objectives import Objective, StepResult

MakeDataset = Callable[[int], tf.data.Dataset]  # step -> batches from that step on

_SEED_STRIDE = 7919  # between the seeds of two replicas; seeds are below 1e9, so sums fit in int32


class ReplicaResult(NamedTuple):
    """What a replica computes of its share of a batch."""

    loss: tf.Tensor  # float32 []
    metrics: tf.Tensor  # float64 [K, 2]: sum and weight
    tokens: tf.Tensor  # int64 []: padding left out
    gradients: list[tf.Tensor | None]  # one a trainable variable; None where it has no part


class TrainStep:
    """The graphs of a step, and the variables in which it counts and sums.

    Attributes:
        steps: int64 variable, steps taken.
        first_bad_step: int64 variable, the first step whose loss was not finite; -1 for none.
        learning_rate: float32 variable, rate of the last step.
        tokens: int64 variable, tokens trained on.
        train_sums: float64 variable [K, 2], metrics since `take_means`.
        run: (iterator of batches, int32 count) -> None; takes so many steps.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        objective: Objective,
        strategy: tf.distribute.Strategy | None,
        *,
        jit_compile: bool | str,
        gradient_accumulation_steps: int,
        loss_normalization: str,
    ):
        """Build the optimizer on the model, and the graphs; nothing is traced yet.

        The arguments are those of `Trainer` and `TrainerOptions`.

        Raises:
            ValueError: model or optimizer do not suit the strategy, or the devices "pointwise".
        """
        self.model = model
        self.optimizer = optimizer
        self.objective = objective
        self.strategy = strategy
        self.num_replicas = distribution.num_replicas_of(strategy)
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.loss_normalization = loss_normalization
        self._loss_factor = 1.0 if loss_normalization == "global" else 1.0 / self.num_replicas
        self._is_split = strategy is not None or gradient_accumulation_steps > 1
        self._fuses = jit_compile == "pointwise"
        if self._fuses:
            _check_fusible(model, strategy)
        if strategy is not None:
            _check_made_within(strategy, model, optimizer)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            optimizer.build(model.trainable_variables)
        self._seeds = [v for v in model.variables if "seed" in v.path]
        names = objective.metric_names
        # An objective of a user's own need not know of others in evaluation.
        self._eval_names = getattr(objective, "evaluation_metric_names", names)
        self._taught = getattr(objective, "taught", None)  # of one with a teacher
        # float64: a sum over a large evaluation exceeds float32's 24 bits.
        self.train_sums = tf.Variable(tf.zeros([len(names), 2], tf.float64), trainable=False)
        self._sums_taken = np.zeros([len(names), 2])
        sums = tf.zeros([len(self._eval_names), 2], tf.float64)
        self._eval_sums = tf.Variable(sums, trainable=False)
        self.steps, self.first_bad_step = _counter(0), _counter(-1)
        self.learning_rate = tf.Variable(tf.constant(0.0), trainable=False)
        self.tokens = _counter(0)

        # Of a replica only what needs no other one is compiled: XLA knows no merging of replicas.
        compiles = jit_compile is True and not isinstance(strategy, tf.distribute.TPUStrategy)
        self._own_result = self._result
        self._own_metrics = self._metrics
        # AutoGraph would rewrite all that is called, to find nothing; Keras' own steps go without.
        own = {"jit_compile": compiles, "autograph": False}
        if strategy is None:
            step = tf.function(self.single_step, **own)
            evaluation = tf.function(self._single_evaluation, **own)
        else:
            step = tf.autograph.experimental.do_not_convert(self._strategy_step)
            evaluation = tf.function(self._strategy_evaluation, autograph=False)
            if compiles:
                self._own_result = tf.function(self._result, **own)
                self._own_metrics = tf.function(self._metrics, **own)
        self.run = tf.function(_repeated(step))
        self._evaluate_batch = evaluation

    # === One step ===

    def single_step(self, batch: Any) -> None:
        """Take a step where there is one replica."""
        result = self._result(batch)
        # Read before the optimizer counts the step.
        self.learning_rate.assign(tf.cast(self.optimizer.learning_rate, tf.float32))
        _apply(self.optimizer, self.model.trainable_variables, result.gradients)
        self._record(result.loss, result.metrics, result.tokens)

    def _strategy_step(self, batch: Any) -> None:
        """Take a step on all replicas."""
        strategy = self.strategy
        assert strategy is not None  # noqa: S101
        figures, learning_rate = tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0],  # all have the same
            strategy.run(self._replica_step, (batch,)),
        )
        self.learning_rate.assign(learning_rate)
        self._record(figures[0], tf.reshape(figures[2:], [-1, 2]), figures[1])

    def _replica_step(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Return (loss, tokens, metrics) [2 + 2 K], summed over replicas, and the learning rate."""
        with self._masks_of_replica():
            result = self._own_result(batch)
        learning_rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        figures = tf.concat(
            [
                tf.stack([result.loss, tf.cast(result.tokens, tf.float32)]),
                tf.reshape(tf.cast(result.metrics, tf.float32), [-1]),
            ],
            axis=0,
        )  # [2 + 2 K]
        # Before the optimizer, so that all replicas skip a step whose gradients are not finite.
        present = [gradient for gradient in result.gradients if gradient is not None]
        *present, figures = _sum_over_replicas([*present, figures])
        reduced = iter(present)
        gradients = [None if x is None else next(reduced) for x in result.gradients]
        _apply(self.optimizer, self.model.trainable_variables, gradients)
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

    def _result(self, batch: Any) -> ReplicaResult:
        if not self._is_split:
            return self._result_of_part(batch, None)
        parts, whole = batch
        if self.gradient_accumulation_steps == 1:
            return self._result_of_part(_part(parts, 0), whole)
        return self._accumulated(parts, whole)

    def _accumulated(self, parts: Any, whole: Any) -> ReplicaResult:
        """Sum over micro-batches; one after another, so that each may use the same memory."""
        has_gradient: list[bool] = []  # known once the body of the loop is traced

        def add(index: Any, loss: Any, metrics: Any, tokens: Any, sums: list[tf.Tensor]) -> tuple:
            more = self._result_of_part(_part(parts, index), whole)
            has_gradient[:] = [gradient is not None for gradient in more.gradients]
            sums = [x if y is None else x + y for x, y in zip(sums, more.gradients, strict=True)]
            return index + 1, loss + more.loss, metrics + more.metrics, tokens + more.tokens, sums

        start = (
            tf.constant(0),
            tf.constant(0.0),
            tf.zeros([len(self.objective.metric_names), 2], tf.float64),
            tf.constant(0, tf.int64),
            [tf.zeros(v.shape, v.dtype) for v in self.model.trainable_variables],
        )
        _, loss, metrics, tokens, sums = tf.while_loop(
            lambda index, *_: index < self.gradient_accumulation_steps,
            add,
            start,
            parallel_iterations=1,
            maximum_iterations=self.gradient_accumulation_steps,
        )
        gradients = [x if has else None for x, has in zip(sums, has_gradient, strict=True)]
        return ReplicaResult(loss, metrics, tokens, gradients)

    def _result_of_part(self, batch: Any, whole: Any) -> ReplicaResult:
        inputs, labels, weights = batch
        with fusion.fusing(self._fuses):  # gradients too, which trace recomputed layers anew
            if self._taught is not None:  # outside of the tape: a teacher does not learn
                labels = self._taught(inputs, labels)
            with tf.GradientTape() as tape:
                outputs = self.model(inputs, training=True)
                loss, metrics = self._objective_of(outputs, labels, weights, whole)
                if self._loss_factor != 1:
                    loss *= self._loss_factor
                scaled = self.optimizer.scale_loss(loss)
            found = tape.gradient(scaled, self.model.trainable_variables)
        # Dense, since a loss-scale optimizer cannot look into slices.
        gradients = [None if x is None else tf.convert_to_tensor(x) for x in found]
        metrics = _stack(metrics, self.objective.metric_names)
        return ReplicaResult(loss, metrics, _real_tokens(inputs), gradients)

    def _objective_of(self, outputs: Any, labels: Any, weights: Any, whole: Any) -> StepResult:
        # An objective of a user's own need not know of parts where there are none.
        whole = () if whole is None else (whole,)
        return self.objective(outputs, labels, weights, *whole)

    def _record(self, loss: tf.Tensor, metrics: tf.Tensor, tokens: tf.Tensor) -> None:
        bad = tf.logical_and(self.first_bad_step < 0, tf.logical_not(tf.math.is_finite(loss)))
        self.steps.assign_add(1)
        self.first_bad_step.assign(tf.where(bad, self.steps, self.first_bad_step))
        self.train_sums.assign_add(tf.cast(metrics, tf.float64))
        self.tokens.assign_add(tf.cast(tokens, tf.int64))

    def take_means(self) -> dict[str, float]:
        """Return the means of the metrics since this was called last."""
        sums = self.train_sums.numpy()
        self._sums_taken += sums
        self.train_sums.assign(tf.zeros_like(self.train_sums))
        return _means(self.objective.metric_names, sums)

    @property
    def sums(self) -> np.ndarray:
        """Sums and weights of the metrics, float64 [K, 2]; only their differences tell something.

        They are of the steps that this object took, and of a log window that it found.
        """
        return self._sums_taken + self.train_sums.numpy()

    def means_since(self, sums: np.ndarray) -> dict[str, float]:
        """Return the means of the metrics since the sums were these."""
        return _means(self.objective.metric_names, self.sums - sums)

    # === Evaluation ===

    def evaluate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Return the means of the metrics over batches of `evaluation_batches`, dropout off.

        Raises:
            ValueError: there is no batch.
        """
        self._eval_sums.assign(tf.zeros_like(self._eval_sums))
        count = 0
        for batch in batches:
            self._evaluate_batch(batch)
            count += 1
        if not count:
            raise ValueError("dataset: expected at least one batch to evaluate, got none")
        return _means(self._eval_names, self._eval_sums.numpy())

    def _single_evaluation(self, batch: Any) -> None:
        self._eval_sums.assign_add(self._metrics(batch, None))

    def _strategy_evaluation(self, batch: Any) -> None:
        strategy = self.strategy
        assert strategy is not None  # noqa: S101

        def of_replica(batch):
            parts, whole = batch
            metrics = self._own_metrics(_part(parts, 0), whole)
            return _sum_over_replicas([tf.cast(metrics, tf.float32)])[0]

        metrics = strategy.experimental_local_results(strategy.run(of_replica, (batch,)))[0]
        self._eval_sums.assign_add(tf.cast(metrics, tf.float64))

    def _metrics(self, batch: Any, whole: Any) -> tf.Tensor:
        inputs, labels, weights = batch
        outputs = self.model(inputs, training=False)
        _, metrics = self._objective_of(outputs, labels, weights, whole)
        return _stack(metrics, self._eval_names)

    # === Batches in the form that the graphs take ===

    def training_batches(self, make_dataset: MakeDataset, step: int, batch_size: int) -> Any:
        """Return the batches from a step on, cut for replicas and accumulation steps.

        Args:
            make_dataset: step -> batches from it on.
            step: the first.
            batch_size: B; 0 where it differs from batch to batch, but is a multiple of R * N.

        Raises:
            ValueError: B is not a multiple of R * N.
        """
        if not self._is_split:
            return _weighted(make_dataset(step))
        if batch_size:
            distribution.check_batch_size(
                "sequences_per_batch or rows_per_batch",
                batch_size,
                self.num_replicas,
                self.gradient_accumulation_steps,
            )
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return distribution.distribute_batches(
            self.strategy,
            # Of a stream that may end workers would ask each other at every step whether it has.
            lambda: _weighted(make_dataset(step)).apply(endless),
            batch_size=batch_size or None,
            loss_weights=self.objective.loss_weights,
            accumulation_steps=self.gradient_accumulation_steps,
            loss_normalization=self.loss_normalization,
        )

    def evaluation_batches(self, dataset: tf.data.Dataset) -> Any:
        """Return the batches of a dataset, cut for replicas.

        Raises:
            ValueError: B is not known, or not a multiple of R.
        """
        if self.strategy is None:
            return _weighted(dataset)
        size = tf.nest.flatten(dataset.element_spec)[0].shape[0]
        if size is None:
            raise ValueError(
                "dataset: expected batches of one size that is known, got any size; make it with "
                "fill_last_batch=True"
            )
        distribution.check_batch_size("the evaluation batch", size, self.num_replicas)
        return distribution.distribute_batches(
            self.strategy,
            lambda: _weighted(dataset),
            batch_size=size,
            loss_weights=self.objective.loss_weights,
        )


def _weighted(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a dataset, once its elements are known to hold weights.

    Raises:
        ValueError: they do not.
    """
    parts = dataset.element_spec
    if not isinstance(parts, tuple) or len(parts) != 3:
        raise ValueError(
            "dataset: expected elements (inputs, labels, weights), got others; make that of "
            "TaskRecords with with_weights=True"
        )
    return dataset


def innermost(optimizer: Any) -> Any:
    """Return the optimizer within a loss-scale optimizer, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _repeated(step: Callable[[Any], None]) -> Callable[[Any, Any], None]:
    def run(iterator, count):
        for _ in tf.range(count):
            step(next(iterator))

    return run


def _part(parts: Any, index: Any) -> Any:
    """Return one micro-batch, [B / R / N, ...], of tensors [N, B / R / N, ...]."""
    return tf.nest.map_structure(lambda x: x[index], parts)


def _apply(optimizer: Any, variables: Sequence[Any], gradients: Sequence[Any]) -> None:
    # Without next sentence prediction the pooler has no gradient, and stays as it was.
    pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
    optimizer.apply(*map(list, zip(*pairs, strict=True)))


def _check_fusible(model: keras.Model, strategy: tf.distribute.Strategy | None) -> None:
    """Refuse what jit_compile="pointwise" is not for."""
    if strategy is not None or tf.config.list_physical_devices("GPU"):
        raise ValueError("jit_compile: pointwise is for one CPU; use true or false here")
    if any(layer.compute_dtype == "float16" for layer in model.layers):
        raise ValueError("jit_compile: pointwise is for float32 and mixed_bfloat16")


def _check_made_within(
    strategy: tf.distribute.Strategy, model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> None:
    for name, owner in (("model", model), ("optimizer", optimizer)):
        for variable in owner.variables:
            if not strategy.extended.variable_created_in_scope(variable.value):
                raise ValueError(
                    f"{name}: expected one made within strategy.scope(), but {variable.path} was "
                    "not"
                )
    inner = innermost(optimizer)
    if not hasattr(inner, "gradients_are_reduced"):
        raise ValueError(
            "optimizer: expected one with the attribute gradients_are_reduced, as those of "
            f"bert_tf.training, since gradients are summed before; got {type(inner).__name__}"
        )
    inner.gradients_are_reduced = True


def _stack(metrics: Mapping[str, tuple[Any, Any]], names: Sequence[str]) -> tf.Tensor:
    """Return (sum, weight) of the metrics of these names, float64 [K, 2]."""
    return tf.stack(
        [tf.stack([tf.cast(part, tf.float64) for part in metrics[name]]) for name in names]
    )


def _sum_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    context = tf.distribute.get_replica_context()
    assert context is not None  # noqa: S101
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))


def _counter(start: int) -> tf.Variable:
    return tf.Variable(tf.constant(start, tf.int64), trainable=False)


def _real_tokens(inputs: Any) -> tf.Tensor:
    """Return the tokens of a batch without padding, int64; 0 where the inputs have no mask."""
    if isinstance(inputs, Mapping) and "input_mask" in inputs:
        return tf.reduce_sum(tf.cast(inputs["input_mask"], tf.int64))
    return tf.constant(0, tf.int64)


def _means(names: Sequence[str], sums: np.ndarray) -> dict[str, float]:
    return {
        name: float(total / weight) if weight else math.nan
        for name, (total, weight) in zip(names, sums, strict=True)
    }
