"""Make losses.npz: losses of distillation, and their gradients, by torch."""

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


if __name__ == "__main__":
    main()
