"""A `fit` that goes on where it was stopped, in the midst of an epoch too.

The data sets of this package are functions of seed and step, so the number of steps is their place.
"""

import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from bert_tf.training.state import CheckpointKeeper, training_variables
from bert_tf.training.step import MakeDataset
from bert_tf.weights.tensor_files import checkpoint_steps


class ResumableFit(keras.callbacks.Callback):
    """Saves all that `Model.fit` carries from step to step, and lets it go on from there.

    Weights, the optimizer's state, the generators of dropout, the step and the metrics of the epoch
    are saved, so that a fit that was killed and goes on gives the losses and the weights of one
    that was never stopped, to the bit. What `fit` ends with stays in the folder, too.

    Raises:
        ValueError: a number of steps is less than 1.
    """

    def __init__(
        self, folder: str | os.PathLike, *, steps_per_epoch: int, save_steps: int, keep: int = 2
    ):
        """Read and write nothing yet.

        Args:
            folder: of the checkpoints, `model.ckpt-<step>.*`; made where it is missing.
            steps_per_epoch: batches of an epoch.
            save_steps: steps between two checkpoints within an epoch; its end is saved anyway.
            keep: newest checkpoints to keep, in case that one is damaged.
        """
        super().__init__()
        for name, steps in (("steps_per_epoch", steps_per_epoch), ("save_steps", save_steps)):
            if steps < 1:
                raise ValueError(f"{name}: expected at least 1, got {steps}")
        self.folder, self.keep = folder, keep
        self.steps_per_epoch, self.save_steps = steps_per_epoch, save_steps
        self.step = 0
        self._counter = tf.Variable(tf.constant(0, tf.int64), trainable=False)
        self._keeper: CheckpointKeeper | None = None
        self._metrics: list[Any] = []  # of an epoch in whose midst fit goes on

    def fit(
        self,
        model: keras.Model,
        make_dataset: MakeDataset,
        *,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        **arguments: Any,
    ) -> keras.callbacks.History:
        """Fit a model from the newest checkpoint of the folder on, or from its beginning.

        Args:
            model: compiled, as for `fit`.
            make_dataset: step -> endless dataset of batches from that step on.
            epochs: epochs in all.
            callbacks: others. What they know themselves begins anew with each process, and with the
                epoch after the one in whose midst fit went on.
            **arguments: others of `Model.fit`, as validation_data.

        Returns:
            The history of the epochs that were left.

        Raises:
            ValueError: the checkpoint is of another model or optimizer.
            CorruptCheckpointError: all checkpoints are damaged.
        """
        if self.steps_per_epoch % model.steps_per_execution:
            raise ValueError(
                "steps_per_epoch: expected a multiple of the model's steps_per_execution, "
                f"{model.steps_per_execution}, got {self.steps_per_epoch}"
            )
        self._restore(model, make_dataset)
        history = keras.callbacks.History()
        history.on_train_begin()
        while (epoch := self.step // self.steps_per_epoch) < epochs:
            taken = self.step % self.steps_per_epoch
            part = model.fit(
                make_dataset(self.step),
                steps_per_epoch=self.steps_per_epoch - taken,
                initial_epoch=epoch,
                epochs=epoch + 1 if taken else epochs,
                callbacks=[*callbacks, self],
                shuffle=False,
                **arguments,
            )
            history.epoch.extend(part.epoch)
            for name, values in part.history.items():
                history.history.setdefault(name, []).extend(values)
            if model.stop_training:
                break
        return history

    # === What Keras calls ===

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Give back the metrics of an epoch that goes on, which Keras has just cleared."""
        self._begin = self.step
        for variable, value in zip(self.model.metrics_variables, self._metrics, strict=False):
            variable.assign(value)
        self._metrics = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save the state where it is time to; at the end of an epoch others have their turn yet."""
        before, self.step = self.step, self._begin + batch + 1
        is_due = self.step // self.save_steps > before // self.save_steps
        if is_due and self.step % self.steps_per_epoch:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save the state, but for an epoch that a callback has ended before its time."""
        if self.step % self.steps_per_epoch == 0:
            self._save()
        elif not self.model.stop_training:
            raise ValueError(
                f"make_dataset: expected batches without an end, got one after step {self.step}"
            )

    # === State ===

    def _save(self) -> None:
        if self._keeper is None:
            self._keeper = self._make_keeper(self.model)
        self._counter.assign(self.step)
        self._keeper.save(self.step)

    def _restore(self, model: keras.Model, make_dataset: MakeDataset) -> None:
        self.step, self._keeper, self._metrics = 0, None, []
        if not checkpoint_steps(self.folder):
            return
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        model.evaluate(make_dataset(0), steps=1, verbose=0)  # makes the metrics' variables
        self._keeper = self._make_keeper(model)
        self.step = self._keeper.restore() or 0
        if self.step % self.steps_per_epoch:
            self._metrics = [variable.numpy() for variable in model.metrics_variables]

    def _make_keeper(self, model: keras.Model) -> CheckpointKeeper:
        metrics = {f"training/metrics/{i}": v for i, v in enumerate(model.metrics_variables)}
        variables = training_variables(model, model.optimizer) | metrics
        variables["global_step"] = self._counter
        return CheckpointKeeper(self.folder, variables, keep=self.keep)
