"""BERT's optimizer, LAMB for large batches, the learning rate, and rules over variable paths."""

import contextlib
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    from bert_tf.training import adam_kernel, variable_scope
else:
    adam_kernel = variable_scope = None

_log = logging.getLogger(__name__)

# What the original leaves out of weight decay, searched for anywhere in a variable's path. Note
# that "bias" also finds `cls/predictions/output_bias`, and that embeddings are decayed.
EXCLUDE_FROM_WEIGHT_DECAY = ("LayerNorm", "layer_norm", "bias")


def first_match(rules: Sequence[tuple[str, Any]], path: str) -> Any:
    """Return the value of the first rule whose pattern occurs in a variable's path.

    Args:
        rules: (regular expression, value) pairs, searched for with `re.search`, in order.
        path: the variable's path, as "bert/pooler/dense/kernel".

    Returns:
        The value of the first rule that matches.

    Raises:
        ValueError: if no rule matches: a variable that a rule forgot is an error, not a default.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise ValueError(
        f"no rule covers variable {path!r}; the patterns are "
        f"{', '.join(repr(pattern) for pattern, _ in rules) or '(none)'}"
    )


def global_norm(tensors):
    """Return the square root of the sum of squares over all tensors, a float32 scalar."""
    tensors = [ops.cast(t, "float32") for t in tensors]
    if adam_kernel is not None:
        return ops.sqrt(sum(adam_kernel.sum_of_squares(t) for t in tensors))
    return ops.sqrt(sum(ops.sum(ops.square(t)) for t in tensors))


def clip_by_global_norm(tensors, clip_norm):
    """Scale tensors so that their common norm is at most `clip_norm`.

    Args:
        tensors: a list of float tensors.
        clip_norm: the largest norm; a positive number.

    Returns:
        (list of tensors, norm): the norm, a float32 scalar, is that before clipping. If it is not
        finite all tensors become NaN, so that the fault shows.

    Reference: `tf.clip_by_global_norm`.
    """
    norm = global_norm(tensors)
    # Written so that a norm of 0 gives a scale of 1 without a 0 / 0.
    scale = clip_norm * ops.minimum(1.0 / norm, ops.ones_like(norm) / clip_norm)
    scale = ops.where(ops.isfinite(norm), scale, ops.full_like(norm, float("nan")))
    return [t * ops.cast(scale, t.dtype) for t in tensors], norm


def dense_gradient(gradient, variable):
    """Return a gradient as a tensor, with the rows of repeated indices summed.

    Args:
        gradient: a tensor, or a sparse gradient with `values`, `indices` and `dense_shape`
            (`tf.IndexedSlices`, which Keras' `convert_to_tensor` returns as they are), or None.
        variable: the variable, whose first axis the indices count.

    Returns:
        A tensor of the variable's shape, or None.
    """
    # Tensors of torch have methods called indices and values, and no dense_shape.
    if hasattr(gradient, "dense_shape"):
        return ops.segment_sum(gradient.values, gradient.indices, num_segments=variable.shape[0])
    return gradient


@keras.saving.register_keras_serializable(package="bert_tf")
class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The original's learning rate: linear warm-up, then linear decay to 0.

    Step t (from 0) of T has `init_lr * (1 - t / T)`, and during the W warm-up steps
    `init_lr * t / W` instead. So the first step's rate is 0, and at t = W the rate jumps from
    nearly `init_lr` down to `init_lr * (1 - W / T)`: decay counts from step 0.

    Args:
        init_lr: the peak rate; a positive number.
        num_train_steps: T; from there on the rate is 0.
        num_warmup_steps: W; 0 (default) for no warm-up.

    Raises:
        ValueError: if a number is out of its range.

    Reference: `create_optimizer` of google-research/bert `optimization.py`.
    """

    def __init__(self, init_lr: float, num_train_steps: int, num_warmup_steps: int = 0):
        super().__init__()
        if init_lr <= 0:
            raise ValueError(f"init_lr must be positive, got {init_lr}")
        if num_train_steps < 1:
            raise ValueError(f"num_train_steps must be at least 1, got {num_train_steps}")
        if num_warmup_steps < 0:
            raise ValueError(f"num_warmup_steps must be at least 0, got {num_warmup_steps}")
        self.init_lr = float(init_lr)
        self.num_train_steps = int(num_train_steps)
        self.num_warmup_steps = int(num_warmup_steps)

    def __call__(self, step):
        """Return the float32 rate of a step.

        Args:
            step: integer scalar, the number of updates already made.
        """
        step = ops.cast(step, "float32")
        done_fraction = ops.minimum(step, self.num_train_steps) / self.num_train_steps
        rate = self.init_lr * (1.0 - done_fraction)
        if self.num_warmup_steps:
            warmup_rate = self.init_lr * (step / self.num_warmup_steps)
            rate = ops.where(step < self.num_warmup_steps, warmup_rate, rate)
        return rate

    def get_config(self):
        """Return the arguments."""
        return {
            "init_lr": self.init_lr,
            "num_train_steps": self.num_train_steps,
            "num_warmup_steps": self.num_warmup_steps,
        }


@keras.saving.register_keras_serializable(package="bert_tf")
class TwoPhases(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of a first phase and, from its last step on, that of a second.

    Args:
        first: schedule of the first phase, with its number of steps.
        second: schedule of the second, whose steps count from 0 again.
    """

    def __init__(self, first: WarmupLinearDecay, second: WarmupLinearDecay):
        super().__init__()
        self.first, self.second = first, second

    def __call__(self, step):
        """Return the float32 rate of a step, an integer scalar."""
        step = ops.cast(step, "float32")
        boundary = float(self.first.num_train_steps)
        later = self.second(ops.maximum(step - boundary, 0.0))
        return ops.where(step < boundary, self.first(step), later)

    def get_config(self):
        """Return the arguments."""
        serialize = keras.saving.serialize_keras_object
        return {"first": serialize(self.first), "second": serialize(self.second)}

    @classmethod
    def from_config(cls, config):
        """Make it of what `get_config` returns."""
        return cls(*(keras.saving.deserialize_keras_object(config[n]) for n in ("first", "second")))


@keras.saving.register_keras_serializable(package="bert_tf")
class AdamWeightDecay(keras.optimizers.Optimizer):
    """BERT's Adam: no bias correction, epsilon outside the root, decoupled weight decay.

    One update, in this order: gradients are made dense, summed over replicas, clipped by their
    global norm; then for each variable p with gradient g

        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        p -= learning_rate * (m / (sqrt(v) + epsilon) + weight_decay_rate * p)

    Dense first, because Keras gives the second moment of an embedding row that a batch uses twice
    the sum of squares instead of the square of the sum. Summed before clipping, because Keras clips
    each replica by itself. (The original's clip counts the duplicates of a sparse embedding
    gradient one by one; dense gradients, as it has on TPUs, are what the released models had.)

    More than eight arguments, since Keras makes an optimizer of what its `get_config` returns, and
    users know each from other optimizers by its name.

    Args:
        learning_rate: a number or a schedule. Default 1e-3 as other Keras optimizers; see
            `create_optimizer` for BERT's.
        weight_decay_rate: decay of all variables that are not excluded.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the second moment.
        exclude_from_weight_decay: regular expressions, searched for in `variable.path`; what one
            finds is not decayed.
        decay_rules: (regular expression, rate) pairs that replace the two arguments above; the
            first match wins, and a variable that none matches raises on `build`.
        clip_norm: largest global norm of the gradients, or None not to clip.
        bias_correction: whether to divide the moments by 1 - beta ** t, t counted from 1, as Adam
            does and BERT does not. Makes fine-tuning on little data less likely to fail
            (arXiv 2006.04884, 2006.05987).
        learning_rate_rules: (regular expression, factor) pairs that multiply the rate of the
            variables whose paths they find; the first match wins, and a variable that none matches
            raises on `build`. None (default) for 1 everywhere. See `layer_wise_rules`.
        name: name of the optimizer.
        **kwargs: `gradient_accumulation_steps`, `use_ema` and such of `keras.optimizers.Optimizer`,
            but not its ways to clip and to decay.

    Raises:
        ValueError: if an argument is out of range, or is one of Keras' that this class replaces.

    Attributes:
        gradients_are_reduced: set to True by a training loop that itself sums gradients over
            replicas before it calls `apply`, as it must where their finiteness decides whether
            `apply` is called; False, so that this class sums them, as `fit` needs.

    Reference: `AdamWeightDecayOptimizer` of google-research/bert `optimization.py`.
    """

    slot_names = ("adam_m", "adam_v")  # as they end in checkpoints
    gradients_are_reduced = False

    def __init__(
        self,
        learning_rate=1e-3,
        weight_decay_rate=0.01,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        exclude_from_weight_decay=EXCLUDE_FROM_WEIGHT_DECAY,
        decay_rules=None,
        clip_norm: float | None = 1.0,
        bias_correction: bool = False,
        learning_rate_rules=None,
        name="adam_weight_decay",
        **kwargs,
    ):
        for argument in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm"):
            if kwargs.pop(argument, None) is not None:
                raise ValueError(
                    f"{argument} is not an argument of {type(self).__name__}: use "
                    "weight_decay_rate and clip_norm"
                )
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
        if weight_decay_rate < 0:
            raise ValueError(f"weight_decay_rate must be at least 0, got {weight_decay_rate}")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.weight_decay_rate = weight_decay_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.clip_norm = clip_norm
        self.bias_correction = bias_correction
        self._learning_rate_rules = learning_rate_rules
        self._excluded = tuple(exclude_from_weight_decay or ())
        self._decay_rules = decay_rules

    @property
    def decay_rules(self) -> tuple[tuple[str, float], ...]:
        """The (regular expression, rate) pairs that give each variable its decay."""
        if self._decay_rules is not None:
            return tuple((pattern, rate) for pattern, rate in self._decay_rules)
        return (*((pattern, 0.0) for pattern in self._excluded), ("", self.weight_decay_rate))

    def build(self, variables):
        """Make the moments of each variable and look up its decay.

        Args:
            variables: list of the trainable variables.

        Raises:
            ValueError: if no decay or learning rate rule covers a variable.
        """
        if self.built:
            return
        scope = contextlib.nullcontext()
        if variable_scope is not None:
            scope = variable_scope.outside_of_functions(self._iterations)
        with scope:
            super().build(variables)
            self._m, self._v = self.add_optimizer_variables(variables, list(self.slot_names))
        rules = self.decay_rules
        self._decay_rates = [first_match(rules, variable.path) for variable in variables]
        rules = self._learning_rate_rules
        rules = (("", 1.0),) if rules is None else rules
        self._rate_factors = [first_match(rules, variable.path) for variable in variables]

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Refuse: Keras' method would change nothing here.

        Raises:
            ValueError: always; give the constructor patterns over paths instead.
        """
        raise ValueError(
            f"{type(self).__name__} takes exclude_from_weight_decay (or decay_rules) when it is "
            "made; it matches variable.path, which Keras' method does not"
        )

    def apply(self, grads, trainable_variables=None):
        """Update the variables.

        Args:
            grads: list of gradients: tensors, `tf.IndexedSlices`, or None for an unused variable.
            trainable_variables: the variables, in the same order; needed on the first call unless
                the optimizer is built.

        Raises:
            ValueError: there are more gradients than variables, or fewer.
        """
        variables = trainable_variables or self._trainable_variables
        if grads and variables:  # Keras raises otherwise, but takes the first of more gradients
            if len(grads) != len(variables):
                raise ValueError(
                    f"grads: expected {len(variables)}, one for each variable, got {len(grads)}"
                )
            grads = [dense_gradient(g, v) for g, v in zip(grads, variables, strict=True)]
        super().apply(grads, trainable_variables)

    def reduce_gradients(self, grads):
        """Sum gradients over replicas.

        Args:
            grads: list of dense gradients of this replica.

        Returns:
            List of the gradients to clip and apply, the same on each replica.
        """
        # Only Keras' TensorFlow optimizer has this step of its own, and takes it after clipping.
        reduce = getattr(super(), "_all_reduce_sum_gradients", None)
        if reduce is None or self.gradients_are_reduced:
            return grads
        return [grad for grad, _ in reduce([(grad, None) for grad in grads])]

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Do not sum again what `reduce_gradients` has summed."""
        return list(grads_and_vars)

    def _clip_gradients(self, grads):
        """Sum over replicas, then clip: Keras calls this once an update, before `update_step`."""
        grads = self.reduce_gradients(grads)
        if self.clip_norm is None:
            return grads
        return clip_by_global_norm(grads, self.clip_norm)[0]

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable and its moments.

        Args:
            gradient: dense gradient.
            variable: the variable.
            learning_rate: scalar.
        """
        index = self._get_variable_index(variable)
        m, v, decay_rate = self._m[index], self._v[index], self._decay_rates[index]
        gradient = ops.cast(gradient, m.dtype)
        learning_rate = ops.cast(learning_rate, m.dtype)
        if self._rate_factors[index] != 1.0:
            learning_rate = learning_rate * self._rate_factors[index]
        correction_1 = correction_2 = 1.0
        if self.bias_correction:
            step = ops.cast(self.iterations + 1, m.dtype)
            correction_1 = _one_minus_power(self.beta_1, step)
            correction_2 = _one_minus_power(self.beta_2, step)
        is_adapted = type(self).adapted is not AdamWeightDecay.adapted
        if adam_kernel is not None and not is_adapted and variable.dtype == m.dtype:
            if decay_rate:
                decay = learning_rate * decay_rate
                self.assign_sub(variable, decay * ops.convert_to_tensor(variable))
            adam_kernel.apply_adam(
                variable,
                m,
                v,
                gradient,
                learning_rate=learning_rate,
                betas=(self.beta_1, self.beta_2),
                epsilon=self.epsilon,
                corrections=(correction_1, correction_2),
            )
            return
        next_m = self.beta_1 * m + (1.0 - self.beta_1) * gradient
        next_v = self.beta_2 * v + (1.0 - self.beta_2) * ops.square(gradient)
        corrected_m, corrected_v = next_m, next_v
        if self.bias_correction:
            corrected_m, corrected_v = next_m / correction_1, next_v / correction_2
        update = corrected_m / (ops.sqrt(corrected_v) + self.epsilon)
        if decay_rate:
            update = update + decay_rate * ops.convert_to_tensor(variable)
        self.assign(m, next_m)
        self.assign(v, next_v)
        self.assign_sub(variable, learning_rate * self.adapted(update, variable, index))

    def adapted(self, update, variable, index: int):
        """Return the update of a variable, decay included, as the learning rate multiplies it.

        Args:
            update: tensor of the variable's shape.
            variable: the variable before the update.
            index: its number among those the optimizer was built with.
        """
        return update

    def get_config(self):
        """Return the arguments."""
        config = super().get_config()
        for argument in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm"):
            config.pop(argument, None)
        config.update(
            weight_decay_rate=self.weight_decay_rate,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            exclude_from_weight_decay=list(self._excluded),
            decay_rules=None if self._decay_rules is None else [list(r) for r in self._decay_rules],
            clip_norm=self.clip_norm,
            bias_correction=self.bias_correction,
            learning_rate_rules=None
            if self._learning_rate_rules is None
            else [list(rule) for rule in self._learning_rate_rules],
        )
        return config


@keras.saving.register_keras_serializable(package="bert_tf")
class Lamb(AdamWeightDecay):
    """LAMB: Adam's update of each variable, scaled to the norm of the variable, for large batches.

    All is as in `AdamWeightDecay` but for two things: the moments are bias-corrected, as in the
    paper; and the update, decay included, is multiplied by the trust ratio

        norm(p) / norm(m / (sqrt(v) + epsilon) + weight_decay_rate * p)

    computed in float32, and 1 where either norm is 0. The paper's bounds of norm(p) are left out,
    as in all published code.

    What is excluded from weight decay is not adapted either: its ratio is 1. So have it the code of
    the paper's authors (in google-research/albert), TensorFlow Addons and TF Model Garden; the
    paper's text does not speak of exclusions.

    Args:
        learning_rate: a number or a schedule. The paper's for BERT grow with the root of the batch
            size, from 8.8e-4 at 512 to 5e-3 at 32768 sequences, with longer warm-ups.
        bias_correction: False for none, as in google-research/albert.
        exclude_from_layer_adaptation: regular expressions, searched for in `variable.path`; what
            one finds is not adapted. None (default) for those of `exclude_from_weight_decay`.
        name: name of the optimizer.
        **kwargs: the other arguments of AdamWeightDecay.

    Raises:
        ValueError: if an argument is out of range, or is one of Keras' that this class replaces.

    Reference: arXiv 1904.00962, algorithm 2.
    """

    slot_names = ("lamb_m", "lamb_v")

    def __init__(
        self,
        learning_rate=1e-3,
        *,
        bias_correction: bool = True,
        exclude_from_layer_adaptation: Sequence[str] | None = None,
        name="lamb",
        **kwargs,
    ):
        super().__init__(learning_rate, bias_correction=bias_correction, name=name, **kwargs)
        self._not_adapted = exclude_from_layer_adaptation

    def build(self, variables):
        """Make the moments, and look up which variables are adapted; see `AdamWeightDecay`."""
        if self.built:
            return
        super().build(variables)
        patterns = self._excluded if self._not_adapted is None else self._not_adapted
        rules = (*((pattern, False) for pattern in patterns), ("", True))
        self._is_adapted = [first_match(rules, variable.path) for variable in variables]

    def adapted(self, update, variable, index: int):
        """Return the update times the trust ratio."""
        if not self._is_adapted[index]:
            return update
        norm, update_norm = global_norm([ops.convert_to_tensor(variable)]), global_norm([update])
        usable = ops.logical_and(norm > 0, update_norm > 0)
        # A divisor that is never 0: a NaN of the branch not taken would reach debuggers.
        ratio = norm / ops.where(usable, update_norm, ops.ones_like(update_norm))
        ratio = ops.where(usable, ratio, ops.ones_like(ratio))
        return update * ops.cast(ratio, update.dtype)

    def get_config(self):
        """Return the arguments."""
        patterns = self._not_adapted
        return {
            **super().get_config(),
            "exclude_from_layer_adaptation": None if patterns is None else list(patterns),
        }


def _one_minus_power(beta: float, step):
    """Return 1 - beta ** step."""
    # Computed as it is written it loses five digits in float32 if beta is near 1 and step small.
    return -ops.expm1(step * math.log(beta)) if beta > 0 else 1.0


def layer_wise_rules(num_layers: int, decay: float) -> tuple[tuple[str, float], ...]:
    """Return the rules by which each layer learns less than the one above it.

    Args:
        num_layers: layers of the encoder, n.
        decay: factor from a layer to the next lower one, in (0, 1].

    Returns:
        (regular expression, factor) pairs for `AdamWeightDecay(learning_rate_rules=...)`: 1 for
        the pooler and what is above the encoder, decay ** (n - i) for layer i (from 0),
        decay ** (n + 1) for the embeddings.

    Raises:
        ValueError: decay is out of range.

    Reference: arXiv 2003.10555 (ELECTRA), its appendix on fine-tuning; its code begins at
    decay ** 2 for the top layer.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1], got {decay}")
    layers = ((f"/encoder/layer_{i}/", decay ** (num_layers - i)) for i in range(num_layers))
    return (("/embeddings/", decay ** (num_layers + 1)), *layers, ("", 1.0))


OPTIMIZERS = {"adamw": AdamWeightDecay, "lamb": Lamb}


def create_optimizer(
    init_lr: float,
    num_train_steps: int,
    num_warmup_steps: int,
    weight_decay_rate: float = 0.01,
    clip_norm: float | None = 1.0,
    optimizer: str = "adamw",
    then: WarmupLinearDecay | None = None,
    **arguments: Any,
) -> AdamWeightDecay:
    """Make the original's optimizer, or another, with its learning rate schedule.

    Args:
        init_lr: peak learning rate; 1e-4 in the paper's pre-training.
        num_train_steps: steps after which the rate is 0.
        num_warmup_steps: steps of linear warm-up.
        weight_decay_rate: decay of all but LayerNorm and biases.
        clip_norm: largest global norm of the gradients, or None not to clip.
        optimizer: key of OPTIMIZERS.
        then: schedule of a second phase, which begins after num_train_steps.
        **arguments: others of the optimizer.

    Returns:
        The optimizer.

    Raises:
        ValueError: if a number is out of its range, or there is no such optimizer.

    Reference: `create_optimizer` of google-research/bert `optimization.py`.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    schedule = WarmupLinearDecay(init_lr, num_train_steps, num_warmup_steps)
    _warn_of_endless_warmup(schedule)
    if then is not None:
        _warn_of_endless_warmup(then)
        schedule = TwoPhases(schedule, then)
    return OPTIMIZERS[optimizer](
        schedule, weight_decay_rate=weight_decay_rate, clip_norm=clip_norm, **arguments
    )


def _warn_of_endless_warmup(schedule: WarmupLinearDecay) -> None:
    """Warn where training ends before its learning rate has reached the peak."""
    steps, warmup = schedule.num_train_steps, schedule.num_warmup_steps
    if warmup > steps:
        _log.warning(
            "num_warmup_steps: %d is more than the %d steps of training, so the learning rate "
            "reaches only %.3g of %.3g; a tenth of the steps is usual",
            warmup,
            steps,
            schedule.init_lr * (steps - 1) / warmup,
            schedule.init_lr,
        )
