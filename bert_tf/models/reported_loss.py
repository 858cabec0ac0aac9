"""The loss that Keras reports: its mean over what is predicted, whatever the batches."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="bert_tf")
class PredictionModel(keras.Model):
    """A functional model of which a row holds any number of predictions.

    Keras reports the mean of the losses of batches, each counting by its rows. Where a loss is the
    mean cross entropy of a batch, and the metric "cross_entropy" of the same output measures that
    of all batches, this model reports the latter: in `fit`, `evaluate` and to callbacks. Losses
    that `compile` weights by the names of their outputs are added with these weights. Gradients are
    of the loss of a batch, as ever.
    """

    def get_metrics_result(self) -> dict[str, Any]:
        """Return what is reported, by name; see `keras.Model`."""
        results = super().get_metrics_result()
        loss = getattr(self, "loss", None)
        losses = loss if isinstance(loss, dict) else {"": loss}
        several = len(losses) > 1
        means = {
            f"{output}_loss": results.get(f"{output}_cross_entropy" if several else "cross_entropy")
            for output in losses
        }
        weights = getattr(self._compile_loss, "_user_loss_weights", None) or {}
        are_named = isinstance(weights, dict) and set(weights) <= set(losses)
        if not are_named or self.losses or None in means.values():
            return results
        if not all(map(_is_mean_of_batch, losses.values())):
            return results
        total = sum(weights.get(output, 1.0) * means[f"{output}_loss"] for output in losses)
        return {**results, **(means if several else {}), "loss": total}


# Keras' older format (.h5) has the names of models alone.
keras.saving.get_custom_objects()["PredictionModel"] = PredictionModel


def _is_mean_of_batch(loss: Any) -> bool:
    """Tell whether a loss is the mean cross entropy of a batch by its weights."""
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        is_of_logits = loss.from_logits and loss.ignore_class is None
        return loss.reduction == "mean_with_sample_weight" and is_of_logits
    return getattr(loss, "is_mean_cross_entropy", False)
