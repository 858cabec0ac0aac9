"""The largest batch that fits into memory, found by trying."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from experiments.command_line.exit_status import InputError
from experiments.command_line.memory import OUT_OF_MEMORY_STATUS, available_bytes, peak_bytes
from experiments.pretraining.options import PretrainingOptions

_LIMIT = 1 << 20  # no batch is tried beyond this


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
            peak = max(peak, peak_bytes(process.pid))
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


def find_batch_size(options: PretrainingOptions) -> None:
    """Measure the largest training batch that fits, each in a process of its own.

    Raises:
        InputError: not even the smallest fits.
    """
    training = options.training
    multiple = max(1, training.num_replicas or 1) * training.gradient_accumulation_steps
    name = "train_batch_size"
    if options.train_batch_tokens is not None:
        name = "train_batch_tokens"
        multiple *= max(x.max_seq_length for x in options.phases if x.batch_tokens is not None)
    limit = available_bytes()
    if options.memory_limit_gib is not None:
        limit = int(options.memory_limit_gib * 2**30)
    print(f"limit: {limit / 2**30:.2f} GiB of this machine's memory")
    peaks = {}

    def fits(batch_size: int) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            changes = {
                name: batch_size,
                "output_dir": folder,
                "num_train_steps": 2,
                "second_phase_steps": 1,
                "num_warmup_steps": 0,
                "measure_only": True,
                "find_batch_size": False,
                "do_train": True,
                "do_eval": False,
                "tensorboard": False,
                "profile_steps": "",
            }
            arguments = [f"--{name}={value}" for name, value in changes.items()]
            command = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:], *arguments]
            trial = try_within(command, limit)
        peaks[batch_size] = trial.peak_bytes
        verdict = "fits" if trial.fits else "does not fit"
        print(f"  {batch_size}: {verdict}, {trial.peak_bytes / 2**30:.2f} GiB at most", flush=True)
        return trial.fits

    best = largest_batch_size(fits, multiple)
    if not best:
        unit = " tokens" if name == "train_batch_tokens" else ""
        raise InputError(f"find_batch_size: not even a batch of {multiple}{unit} fits")
    print(f"largest {name} that fits: {best} ({peaks[best] / 2**30:.2f} GiB)")
