"""What to do about too little memory: the message that says so, and the largest batch that fits."""

import os
import pathlib
import sys

from absl import flags

OUT_OF_MEMORY_STATUS = 3  # exit status of a command that ran out of memory
_SIZES = (
    *("train_batch_tokens", "train_batch_size", "eval_batch_size", "batch_size"),
    "max_seq_length",
)
# Flag -> what else helps, where a command has it, in the order of what is tried first.
_REMEDIES = (
    ("gradient_accumulation_steps", "raise --gradient_accumulation_steps"),
    ("precision", "use --precision=mixed_bfloat16"),
    ("find_batch_size", "--find_batch_size measures the largest batch that fits"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory did not suffice."""
    return isinstance(error, (MemoryError, *tensorflow_errors("ResourceExhaustedError")))


def tensorflow_errors(*names: str) -> tuple[type[Exception], ...]:
    """Return classes of `tf.errors`; none where TensorFlow is not loaded and so raised nothing."""
    tensorflow = sys.modules.get("tensorflow")
    return tuple(getattr(tensorflow.errors, name) for name in names) if tensorflow else ()


def out_of_memory_message(error: BaseException, values: flags.FlagValues) -> str:
    """Return one line that names the batch, the length and what would help.

    Args:
        error: what was raised.
        values: flags of the command.
    """
    sizes = [name for name in _SIZES if name in values and values[name].value is not None]
    if "train_batch_tokens" in sizes:
        sizes.remove("train_batch_size")
    shown = ", ".join(
        f"{name} {values[name].value}"
        for name in (*sizes, "gradient_accumulation_steps")
        if name in values
    )
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


def free_bytes() -> int | None:
    """Return the memory that processes can still take, or None where the system does not say."""
    return _bytes_in("/proc/meminfo", "MemAvailable:")


def available_bytes() -> int:
    """Return the memory that this machine has left; all of it where the system does not say."""
    return free_bytes() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes(pid: int) -> int:
    """Return the largest resident memory of a process so far; 0 where that cannot be read.

    Of this program alone: the peak that getrusage tells outlives the start of a program.
    """
    return _bytes_in(f"/proc/{pid}/status", "VmHWM:") or 0


def _bytes_in(path: str, name: str) -> int | None:
    try:
        text = pathlib.Path(path).read_text(encoding="ascii")
    except OSError:
        return None
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return int(lines[0].split()[1]) * 1024 if lines else None
