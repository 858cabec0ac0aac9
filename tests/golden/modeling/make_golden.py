"""Make pretraining.npz: loss and gradients of transformers' BertForPreTraining.

    python tests/golden/modeling/make_golden.py

Needs torch and transformers (made with torch 2.13.0, transformers 5.23.0). Runs their model in
float64, dropout off, on a padded batch, once with the exact gelu and once with its tanh form, and
stores weights, batch, losses and gradients in float32 under the names and shapes of Google's
checkpoints. `tests/test_heads.py` uses the same functions for a live comparison.
"""

import pathlib
import re

import numpy as np

# Distinct primes, but for the hidden size, which is a multiple of the number of heads.
SIZES = dict(
    vocab_size=37,
    hidden_size=14,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=19,
    max_position_embeddings=13,
    type_vocab_size=2,
)
BATCH, LENGTH, PREDICTIONS = 5, 11, 3
# This package's names of activations to theirs.
ACTIVATIONS = {"gelu_erf": "gelu", "gelu_tanh": "gelu_new"}
# Their names to Google's; kernels are transposed.
RENAMES = (
    (r"^bert\.encoder\.layer\.(\d+)\.", r"bert.encoder.layer_\1."),
    (r"(word|position|token_type)_embeddings\.weight$", r"\1_embeddings"),
    (r"LayerNorm\.weight$", "LayerNorm.gamma"),
    (r"LayerNorm\.bias$", "LayerNorm.beta"),
    (r"^cls\.predictions\.bias$", "cls.predictions.output_bias"),
    (r"^cls\.seq_relationship\.weight$", "cls.seq_relationship.output_weights"),
    (r"^cls\.seq_relationship\.bias$", "cls.seq_relationship.output_bias"),
    (r"(dense|query|key|value)\.weight$", r"\1.kernel"),
    (r"\.", "/"),
)


def google_name(name):
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def google_array(name, array):
    return array.T if google_name(name).endswith("/kernel") else array


def make_batch(rng, vocab_size, batch, length, predictions):
    """Make padded sequences whose last predictions are padding too."""
    lengths = rng.integers(length // 2, length + 1, batch)
    lengths[0] = length
    mask = np.arange(length) < lengths[:, None]
    ids = rng.integers(1, vocab_size, (batch, length)) * mask
    ids[:, 1] = ids[:, 2]  # Word pieces that occur twice.
    segments = (np.arange(length) >= lengths[:, None] // 2) & mask
    positions = np.zeros((batch, predictions), np.int64)
    weights = np.zeros((batch, predictions))
    for row in range(batch):
        real = predictions - row % 2
        chosen = np.sort(rng.choice(np.arange(1, lengths[row]), real, replace=False))
        positions[row, :real], weights[row, :real] = chosen, 1
    labels = rng.integers(0, vocab_size, (batch, predictions)) * weights
    return {
        "input_ids": ids.astype(np.int32),
        "input_mask": mask.astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "masked_lm_positions": positions.astype(np.int32),
        "masked_lm_ids": labels.astype(np.int32),
        "masked_lm_weights": weights.astype(np.float32),
        "next_sentence_labels": rng.integers(0, 2, (batch, 1)).astype(np.int32),
    }


def hf_model(sizes, activation, dtype):
    """Make their model, dropout off, with weights far enough from 0 that every part matters."""
    import torch
    import transformers

    torch.manual_seed(7)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            **sizes,
            hidden_act=ACTIVATIONS[activation],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
            # Values that float32 holds, so that both sides start from the same.
            parameter.copy_(parameter.float())
    return model.to(dtype)


def hf_loss_and_gradients(model, batch):
    """Return ({"masked_lm", "next_sentence"} losses, gradients by Google's names)."""
    import torch

    labels = np.full(batch["input_ids"].shape, -100)
    for row, column in zip(*np.nonzero(batch["masked_lm_weights"]), strict=True):
        position = batch["masked_lm_positions"][row, column]
        labels[row, position] = batch["masked_lm_ids"][row, column]
    tensors = {name: torch.tensor(value, dtype=torch.long) for name, value in batch.items()}
    outputs = model(
        input_ids=tensors["input_ids"],
        attention_mask=tensors["input_mask"],
        token_type_ids=tensors["segment_ids"],
    )
    cross_entropy = torch.nn.functional.cross_entropy
    masked_lm = cross_entropy(outputs.prediction_logits.flatten(0, 1), torch.tensor(labels.ravel()))
    next_sentence = cross_entropy(
        outputs.seq_relationship_logits, tensors["next_sentence_labels"][:, 0]
    )
    # Their own sum of the two must be the same thing.
    theirs = model(
        input_ids=tensors["input_ids"],
        attention_mask=tensors["input_mask"],
        token_type_ids=tensors["segment_ids"],
        labels=torch.tensor(labels),
        next_sentence_label=tensors["next_sentence_labels"][:, 0],
    ).loss
    model.zero_grad()
    theirs.backward()
    losses = {"masked_lm": masked_lm.item(), "next_sentence": next_sentence.item()}
    np.testing.assert_allclose(sum(losses.values()), theirs.item(), rtol=1e-6)
    gradients = {
        google_name(name): google_array(name, parameter.grad.numpy())
        for name, parameter in model.named_parameters()
    }
    return losses, gradients


def hf_weights(model):
    return {
        google_name(name): google_array(name, parameter.detach().numpy())
        for name, parameter in model.named_parameters()
    }


def main():
    import torch

    rng = np.random.default_rng(11)
    batch = make_batch(rng, SIZES["vocab_size"], BATCH, LENGTH, PREDICTIONS)
    arrays = {f"batch:{name}": value for name, value in batch.items()}
    for activation in ACTIVATIONS:
        model = hf_model(SIZES, activation, torch.float64)
        for name, value in hf_weights(model).items():
            arrays[f"weights:{name}"] = value.astype(np.float32)
        losses, gradients = hf_loss_and_gradients(model, batch)
        for name, value in losses.items():
            arrays[f"{activation}:loss:{name}"] = np.float64(value)
        for name, value in gradients.items():
            arrays[f"{activation}:gradient:{name}"] = value.astype(np.float32)
    path = pathlib.Path(__file__).with_name("pretraining.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
