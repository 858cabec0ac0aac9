"""What to do about too little memory: the message that says so, and the largest batch that fits."""

from __future__ import annotations

import os
import pathlib
from typing import Any

OUT_OF_MEMORY_STATUS = 3  # exit status of a script that ran out of memory
_SIZES = ("train_batch_size", "eval_batch_size", "batch_size", "max_seq_length")
# Flag -> what else helps, where a script has it, in the order of what is tried first.
_REMEDIES = (
    ("gradient_accumulation_steps", "raise --gradient_accumulation_steps"),
    ("precision", "use --precision=mixed_bfloat16"),
    ("find_batch_size", "--find_batch_size measures the largest batch that fits"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory did not suffice."""
    # By name: the scripts that ask have not loaded TensorFlow yet.
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


def out_of_memory_message(error: BaseException, values: Any) -> str:
    """Return one line that names the batch, the length and what would help.

    Args:
        error: what was raised.
        values: `flags.FlagValues` of the script.
    """
    sizes = [name for name in _SIZES if name in values]
    given = (*_SIZES, "gradient_accumulation_steps")
    shown = ", ".join(f"{name} {values[name].value}" for name in given if name in values)
    remedies = ["lower " + ", or ".join(f"--{name}" for name in sizes)] if sizes else []
    remedies += [text for name, text in _REMEDIES if name in values]
    lines = str(error).splitlines() or [type(error).__name__]
    reason = next((line for line in lines if "OOM" in line), lines[0])
    return (
        "out of memory"
        + (f" with {shown}" if shown else "")
        + (f"; {', '.join(remedies)}" if remedies else "")
        + f": {reason}"
    )


def available_bytes() -> int:
    """Return the memory that this machine has left."""
    try:
        for line in pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
