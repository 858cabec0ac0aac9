"""The pre-training step that several benchmarks measure: its batch, and who takes it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from bert_tf.config import BertConfig


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The model and the batch of a step.

    Attributes:
        config: the model's.
        batch_size: sequences.
        length: word pieces of each; none is padding.
        predictions: masked positions of each.
        sequences: of a packed row, where `batch_size`, `length` and `predictions` are of rows; 1
            for rows that are no packed ones.
    """

    config: BertConfig
    batch_size: int
    length: int
    predictions: int
    sequences: int = 1

    def batch(self) -> dict[str, np.ndarray]:
        """Return a batch of random word pieces, int32; the same each time."""
        rng = np.random.default_rng(0)
        rows, vocab_size = self.batch_size, self.config.vocab_size
        segments = np.arange(self.length) >= self.length // 2
        positions = [1 + rng.permutation(self.length - 1)[: self.predictions] for _ in range(rows)]
        batch = {
            "input_ids": rng.integers(0, vocab_size, (rows, self.length)),
            "input_mask": np.ones((rows, self.length)),
            "segment_ids": np.broadcast_to(segments, (rows, self.length)),
            "masked_lm_positions": np.sort(np.stack(positions)),
            "masked_lm_ids": rng.integers(0, vocab_size, (rows, self.predictions)),
            "next_sentence_labels": rng.integers(0, 2, (rows, 1)),
        }
        if self.sequences > 1:
            count = self.sequences
            sequences = np.arange(self.length) * count // self.length  # of each token, from 0
            starts = np.searchsorted(sequences, np.arange(count))
            packed = {
                "sequence_ids": sequences + 1,
                "position_ids": np.arange(self.length) - starts[sequences],
                "pooled_positions": starts,
            }
            for name, row in packed.items():
                batch[name] = np.broadcast_to(row, (rows, len(row)))
            batch["next_sentence_labels"] = rng.integers(0, 2, (rows, count))
        return {name: value.astype(np.int32) for name, value in batch.items()}


def keras_step(
    model: Any, arguments: dict[str, Any], shapes: Shapes, names: dict[str, str] | None = None
) -> Callable[[], float]:
    """Compile a Keras model; return a function that takes a step and returns the loss.

    Args:
        model: with outputs "masked_lm_logits" and "next_sentence_logits".
        arguments: of `compile`.
        shapes: of the batch.
        names: input of the model -> its name in the batch, where they differ.
    """
    import keras

    model.compile(**arguments)
    batch = shapes.batch()
    names = names or {name: name for name in model.input}
    labels = {
        "masked_lm_logits": batch["masked_lm_ids"],
        "next_sentence_logits": batch["next_sentence_labels"],
    }
    weights = {name: np.ones(value.shape, np.float32) for name, value in labels.items()}
    # Made tensors once, so that no step pays for it.
    inputs, labels, weights = keras.tree.map_structure(
        keras.ops.convert_to_tensor,
        ({name: batch[ours] for name, ours in names.items()}, labels, weights),
    )
    return lambda: float(model.train_on_batch(inputs, labels, weights, return_dict=True)["loss"])


def our_step(
    shapes: Shapes,
    *,
    jit_compile: bool | str,
    accuracy: bool = False,
    recompute: str = "none",
    precision: str = "float32",
) -> Callable[[], float]:
    """Return a step of this package's model in Keras' own training loop.

    Args:
        shapes: of the model and the batch.
        jit_compile: whether XLA compiles the step, or "pointwise".
        accuracy: whether to count accuracies too.
        recompute: of `bert_pretrainer`.
        precision: a Keras dtype policy.
    """
    from bert_tf.models import fusion
    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training.objectives import pretraining_compile_arguments
    from bert_tf.training.optimizers import create_optimizer

    arguments = pretraining_compile_arguments(shapes.config)
    if not accuracy:
        del arguments["weighted_metrics"]
    arguments.update(optimizer=create_optimizer(1e-4, 1000, 10), jit_compile=jit_compile is True)
    model = bert_pretrainer(shapes.config, recompute=recompute, dtype=precision)
    step = keras_step(model, arguments, shapes)

    def traced() -> float:
        with fusion.fusing(jit_compile == "pointwise"):
            return step()

    return traced


def jax_train_step(model: Any, optimizer: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return the pure function of a step on Keras' JAX backend.

    Args:
        model: a `bert_pretrainer`.
        optimizer: built with the model's trainable variables.

    Returns:
        (state, batch) -> (state, loss), where a state is the values of the model's trainable and
        other variables and the optimizer's, three lists, and a batch is that of `Shapes`.
    """
    import jax
    from keras import ops

    from bert_tf.training import losses

    def loss_of(trainable, others, batch):
        inputs = {name: batch[name] for name in model.input}
        outputs, others = model.stateless_call(trainable, others, inputs, training=True)
        weights = ops.ones_like(batch["masked_lm_ids"], dtype="float32")
        mlm = losses.masked_lm_loss(outputs["masked_lm_logits"], batch["masked_lm_ids"], weights)
        labels = batch["next_sentence_labels"]
        nsp = losses.next_sentence_loss(
            outputs["next_sentence_logits"], labels, ops.ones_like(labels, dtype="float32")
        )
        return mlm[0] / mlm[1] + nsp[0] / nsp[1], others

    def train_step(state, batch):
        trainable, others, slots = state
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            trainable, others, batch
        )
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, others, slots), loss

    return train_step


# A step that begins, and a wait that returns the last loss once all that was begun is done.
Asynchronous = tuple[Callable[[], None], Callable[[], float]]


def _torch_model(config: BertConfig, device: str) -> Any:
    """Return a BertForPreTraining of transformers."""
    import torch
    import transformers

    # All but the activation: its own default, the exact gelu, is what its users train with.
    known = set(transformers.BertConfig().to_dict()) - {"hidden_act"}
    values = {name: value for name, value in config.to_dict().items() if name in known}
    model = transformers.BertForPreTraining._from_config(
        transformers.BertConfig(**values), attn_implementation="sdpa"
    )
    torch.nn.Module.to(model, device)
    return model


def torch_step(
    shapes: Shapes,
    *,
    mixed_precision: bool = False,
    compiled: bool = False,
    gathered: bool = False,
    clip_norm: float | None = None,
) -> Asynchronous:
    """Make a step of transformers' BertForPreTraining with AdamW, on the GPU where there is one.

    Args:
        shapes: of the model and the batch.
        mixed_precision: whether to compute in bfloat16, by autocast.
        compiled: whether to compile the model.
        gathered: whether logits are computed at the masked positions alone, as ours are.
        clip_norm: largest norm of the gradients; None does not clip.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = _torch_model(shapes.config, device)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=device == "cuda"
    )
    batch = {
        name: torch.tensor(value, dtype=torch.long, device=device)
        for name, value in shapes.batch().items()
    }
    everywhere = torch.full_like(batch["input_ids"], -100)
    everywhere.scatter_(1, batch["masked_lm_positions"], batch["masked_lm_ids"])
    cross_entropy = torch.nn.functional.cross_entropy
    next_sentence = batch["next_sentence_labels"][:, 0]

    def loss_of() -> Any:
        inputs = (batch["input_ids"], batch["input_mask"], batch["segment_ids"])
        if not gathered:
            return model(*inputs, labels=everywhere, next_sentence_label=next_sentence).loss
        sequence, pooled = model.bert(*inputs, return_dict=False)[:2]
        places = batch["masked_lm_positions"][..., None].expand(-1, -1, sequence.shape[-1])
        logits, relation = model.cls(sequence.gather(1, places), pooled)
        mlm = cross_entropy(logits.flatten(0, 1).float(), batch["masked_lm_ids"].flatten())
        return mlm + cross_entropy(relation.float(), next_sentence)

    loss_function = torch.compile(loss_of) if compiled else loss_of
    last: Any = None

    def step() -> None:
        nonlocal last
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed_precision):
            last = loss_function()
        last.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()

    def wait() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return float(last.detach())

    return step, wait
