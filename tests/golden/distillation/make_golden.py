"""Make losses.npz and pretraining.npz: losses of distillation, and their gradients, by torch."""

import pathlib

import numpy as np
import torch
from torch.nn import functional

TEMPERATURES = (0.5, 1.0, 3.0)
ALPHA = 0.7


def divergence(student, teacher, temperature):
    """Return T^2 KL(teacher || student) over the last axis, for each other place."""
    ours = functional.log_softmax(student / temperature, dim=-1)
    theirs = functional.log_softmax(teacher / temperature, dim=-1)
    each = functional.kl_div(ours, theirs, reduction="none", log_target=True)
    return temperature**2 * each.sum(dim=-1)


def main() -> None:
    """Write losses.npz beside this file."""
    rng = np.random.default_rng(23)
    student = rng.normal(0, 3, (7, 5)).astype(np.float32)
    teacher = rng.normal(0, 3, (7, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 7)
    weights = np.array([1, 2, 0, 0.5, 1, 1, 3], np.float32)
    found = {"student": student, "teacher": teacher, "labels": labels, "weights": weights}
    w = torch.tensor(weights, dtype=torch.float64)
    theirs = torch.tensor(teacher, dtype=torch.float64)
    for temperature in TEMPERATURES:
        for name in ("one", "several", "whole"):
            logits = torch.tensor(student, dtype=torch.float64, requires_grad=True)
            if name == "several":
                pairs = [torch.stack([x, torch.zeros_like(x)], -1) for x in (logits, theirs)]
                losses = divergence(*pairs, temperature).mean(dim=-1)
            else:
                losses = divergence(logits, theirs, temperature)
            if name == "whole":
                task = functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
                losses = (1 - ALPHA) * task + ALPHA * losses
            loss = (losses * w).sum() / w.sum()
            loss.backward()
            found[f"{name}_{temperature}"] = loss.item()
            found[f"{name}_{temperature}_gradient"] = logits.grad.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("losses.npz"), **found)


def pretraining() -> None:
    """Write pretraining.npz beside this file: masked language modelling with hidden states."""
    rng = np.random.default_rng(29)
    rows, length, predictions, pieces, ours, theirs = 3, 5, 2, 7, 4, 6
    found = {
        "student": rng.normal(0, 2, (rows, predictions, pieces)),
        "teacher": rng.normal(0, 2, (rows, predictions, pieces)),
        "states": rng.normal(0, 1, (2, rows, length, ours)),  # of two layers
        "matrices": rng.normal(0, 1, (2, ours, theirs)),
        "teacher_states": rng.normal(0, 1, (2, rows, length, theirs)),
    }
    found = {name: value.astype(np.float32) for name, value in found.items()}
    found |= {
        "ids": rng.integers(0, pieces, (rows, predictions)),
        "weights": np.array([[1, 1], [1, 0], [1, 1]], np.float32),
        "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
    }
    tensors = {name: torch.tensor(value) for name, value in found.items()}
    t = {n: x.double() if x.is_floating_point() else x for n, x in tensors.items()}
    learnt = ("student", "states", "matrices")
    for name in learnt:
        t[name].requires_grad_()
    each = functional.cross_entropy(t["student"].transpose(1, 2), t["ids"], reduction="none")
    count = t["weights"].sum()
    task = (each * t["weights"]).sum() / (count + 1e-5)
    soft = (divergence(t["student"], t["teacher"], 3.0) * t["weights"]).sum() / (count + 1e-5)
    hidden = 0.0
    for states, matrix, target in zip(t["states"], t["matrices"], t["teacher_states"], strict=True):
        for row in range(rows):
            real = t["mask"][row].bool()
            difference = states[row][real] @ matrix - target[row][real]
            hidden = hidden + functional.mse_loss(difference, torch.zeros_like(difference))
    hidden = hidden / (2 * rows)
    loss = (1 - ALPHA) * task + ALPHA * soft + 0.3 * hidden
    loss.backward()
    found |= {"loss": loss.item(), "soft": soft.item(), "hidden": hidden.item()}
    found |= {f"{name}_gradient": t[name].grad.numpy() for name in learnt}
    np.savez_compressed(pathlib.Path(__file__).with_name("pretraining.npz"), **found)


if __name__ == "__main__":
    main()
    pretraining()
