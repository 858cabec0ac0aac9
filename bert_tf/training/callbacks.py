"""Keras callbacks in a `Trainer`: they are told what `fit` would tell them.

To a callback a batch is what one call of the graph takes, as with Keras' `steps_per_execution`. An
epoch is what lies between two evaluations or, where there are none on the way, two log lines.

Shapes: K metrics.
"""

from collections.abc import Callable, Mapping, Sequence

import keras

from bert_tf.training.distribution import any_worker
from bert_tf.training.step import TrainStep, innermost


def prepare_callbacks(
    callbacks: Sequence[keras.callbacks.Callback],
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
) -> tuple[keras.callbacks.Callback, ...]:
    """Let a model show its optimizer to callbacks, which look for it there.

    Args:
        callbacks: any; may be empty, and the model stays as it is then.
        model: compiled with the optimizer where it is not compiled yet.
        optimizer: that trains it.

    Raises:
        ValueError: the model is compiled with another optimizer, or a callback restores weights
            without the rest of a `Trainer`'s state.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "callbacks: a Trainer saves and restores its whole state itself; leave "
                "BackupAndRestore out, and call restore()"
            )
    if callbacks and not model.compiled:
        model.compile(optimizer)
    elif callbacks and innermost(model.optimizer) is not innermost(optimizer):
        raise ValueError(
            "callbacks: the model is compiled with another optimizer than the Trainer's, which "
            "they would read; compile it with the same one, or not at all"
        )
    return tuple(callbacks)


class FitCalls:
    """Calls callbacks at the moments of a training.

    Without callbacks it is false, and nothing that it is told has an effect.
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        train_step: TrainStep,
        *,
        num_train_steps: int,
        steps_per_epoch: int,
    ):
        """Tell the callbacks of the model, and that training begins.

        Args:
            callbacks: of `prepare_callbacks`.
            train_step: whose model they see, and whose metrics they are told.
            num_train_steps: steps in all.
            steps_per_epoch: steps of an epoch, which begins at a multiple of it.
        """
        if any_worker(train_step.strategy, bool(callbacks)) and not callbacks:
            raise ValueError("callbacks: other hosts have some, and this one has none")
        self._train_step, self._size = train_step, steps_per_epoch
        self._epoch: int | None = None  # that has begun
        self._logs: dict[str, float] = {}
        self._list = None
        if callbacks:
            epochs = -(-num_train_steps // steps_per_epoch)
            self._list = keras.callbacks.CallbackList(
                callbacks, model=train_step.model, epochs=epochs, steps=steps_per_epoch, verbose=0
            )
            train_step.model.stop_training = False
            self._list.on_train_begin()

    def __bool__(self) -> bool:
        return self._list is not None

    @property
    def stop_training(self) -> bool:
        """Whether a callback of any host wants no further step; each host must ask."""
        step = self._train_step
        return self._list is not None and any_worker(step.strategy, step.model.stop_training)

    def begin_batch(self, step: int) -> None:
        """Say that steps are taken now, after `step` others; the first of an epoch begins it."""
        if self._list is None:
            return
        if self._epoch is None:
            self._epoch, self._sums = step // self._size, self._train_step.sums
            self._list.on_epoch_begin(self._epoch)
        self._list.on_train_batch_begin(step % self._size)

    def end_batch(self, step: int) -> None:
        """Say that `step` steps have been taken in all, and the means of metrics in the epoch."""
        if self._list is None:
            return
        self._logs = self._train_step.means_since(self._sums)
        self._list.on_train_batch_end((step - 1) % self._size, dict(self._logs))

    def evaluate(self, evaluate: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        """Return the figures of an evaluation, of which the callbacks are told."""
        if self._list is None:
            return evaluate()
        self._list.on_test_begin()
        figures = evaluate()
        self._list.on_test_end(dict(figures))
        return figures

    def ends_epoch(self, step: int, *, is_last: bool) -> bool:
        """Tell whether an epoch is over after `step` steps."""
        return self._list is not None and (is_last or step % self._size == 0)

    def end_epoch(self, figures: Mapping[str, float]) -> None:
        """Say that an epoch is over, and its figures, those of an evaluation as "val_"."""
        if self._list is None or self._epoch is None:
            return
        self._logs |= {f"val_{name}": value for name, value in figures.items()}
        self._list.on_epoch_end(self._epoch, dict(self._logs))
        self._epoch = None

    def end(self) -> None:
        """Say that training is over."""
        if self._list is not None:
            self._list.on_train_end(dict(self._logs))
