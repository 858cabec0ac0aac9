"""What to do about too little memory: the message that says so, and the largest batch that fits."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

OUT_OF_MEMORY_STATUS = 3  # exit status of a script that ran out of memory
_LIMIT = 1 << 20  # no batch is tried beyond this
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


def largest_batch_size(fits: Callable[[int], bool], multiple: int = 1) -> int:
    """Find the largest batch that fits: by doubling, then by bisection.

    Args:
        fits: batch size -> whether it does; assumed to be true up to some size.
        multiple: of which the batch size must be one.

    Returns:
        The largest, or 0 if not even `multiple` fits.
    """
    good, bad = 0, 1
    while bad * multiple <= _LIMIT and fits(bad * multiple):
        good, bad = bad, 2 * bad
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle * multiple) else (good, middle)
    return good * multiple


@dataclasses.dataclass(frozen=True)
class Trial:
    """How a command fared.

    Attributes:
        fits: whether it came to its end within the limit.
        peak_bytes: its largest resident memory.
    """

    fits: bool
    peak_bytes: int


def try_within(command: Sequence[str], limit_bytes: int | None) -> Trial:
    """Run a command in a process of its own, which is killed if it takes more memory.

    Args:
        command: the program and its arguments; it exits with OUT_OF_MEMORY_STATUS where it notices
            by itself.
        limit_bytes: of resident memory; None for no limit but the machine's.

    Raises:
        ValueError: it failed for another reason; the message has its last line.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peak, killed = 0, False
        while process.poll() is None:
            peak = max(peak, _peak_bytes(process.pid))
            if limit_bytes is not None and peak > limit_bytes:
                process.kill()
                process.wait()
                killed = True
            time.sleep(0.02)
        status = process.returncode
        if status == 0 and not killed:
            return Trial(True, peak)
        # SIGKILL is how the kernel ends a process where the machine's memory is used up.
        if killed or status in (OUT_OF_MEMORY_STATUS, -signal.SIGKILL):
            return Trial(False, peak)
        output.seek(0)
        last = (output.read().strip().splitlines() or ["(no output)"])[-1]
    raise ValueError(f"a trial run failed with status {status}: {last}")


def _peak_bytes(pid: int) -> int:
    """Return the largest resident memory of a process so far; 0 where that cannot be read."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def available_bytes() -> int:
    """Return the memory that this machine has left."""
    try:
        for line in pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
