"""What `precision=auto` is on a machine, by what was measured (experiments/LOG.md)."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

_PRODUCTS = {"amx_bf16", "avx512_bf16"}  # flags of processors that multiply bfloat16


class Processor(NamedTuple):
    """A processor, as Linux describes it."""

    name: str
    flags: frozenset[str]


class Choice(NamedTuple):
    """How to compute, and why."""

    precision: str
    jit_compile: str
    reason: str


def this_processor(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> Processor:
    """Return this machine's processor; one without flags where no file tells them."""
    try:
        text = pathlib.Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name, flags = (
        found[1] if (found := re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)) else ""
        for key in ("model name", "flags")
    )
    return Processor(name or "this processor", frozenset(flags.split()))


def choose_precision(
    processor: Processor,
    *,
    jit_compile: str,
    on_one_cpu: bool,
    one_shape: bool,
    environment: Mapping[str, str] = os.environ,
) -> Choice:
    """Return mixed_bfloat16 where it was measured to be faster, float32 elsewhere.

    Args:
        processor: of this machine.
        jit_compile: the option of that name; "auto" is chosen as well.
        on_one_cpu: whether neither GPUs, TPUs nor replicas compute.
        one_shape: whether batches are of few shapes, so that compiling for each pays.
        environment: variables of this process.
    """
    found = ", ".join(sorted(_PRODUCTS & processor.flags))
    reason = None
    if not on_one_cpu:
        reason = "bfloat16 was measured on one CPU alone"
    elif not found:
        reason = f"{processor.name} has no bfloat16 products ({' or '.join(sorted(_PRODUCTS))})"
    elif environment.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        reason = "TF_ENABLE_ONEDNN_OPTS=0 turns off oneDNN, whose bfloat16 products are fast"
    elif jit_compile == "true":
        reason = "XLA has no bfloat16 products on CPUs"
    if reason is not None:
        return Choice("float32", jit_compile, reason)
    if jit_compile == "auto" and one_shape:
        jit_compile = "pointwise"
    return Choice(
        "mixed_bfloat16", jit_compile, f"{processor.name} has bfloat16 products ({found})"
    )
