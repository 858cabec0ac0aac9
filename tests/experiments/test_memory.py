"""The largest batch that fits, and what is said where memory runs out."""

import sys

import pytest
from absl import flags

from experiments.command_line.memory import (
    OUT_OF_MEMORY_STATUS,
    available_bytes,
    is_out_of_memory,
    out_of_memory_message,
)
from experiments.pretraining.batch_size import largest_batch_size, try_within

MIB = 2**20


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("multiple", [1, 6])
def test_largest_batch_is_found(largest, multiple):
    tried = []

    def fits(batch_size):
        assert batch_size % multiple == 0 and batch_size not in tried
        tried.append(batch_size)
        return batch_size <= largest * multiple

    assert largest_batch_size(fits, multiple) == largest * multiple
    assert len(tried) <= 2 + 2 * largest.bit_length()


def python(code):
    return [sys.executable, "-c", code]


def test_trials_end_at_their_limit_without_taking_this_process_along():
    hold = "import time; x = bytearray({}); x[::4096] = b'1' * len(x[::4096]); time.sleep({})"
    small = try_within(python(hold.format(64 * MIB, 0.2)), 1024 * MIB)
    assert small.fits and small.peak_bytes > 64 * MIB
    large = try_within(python(hold.format(256 * MIB, 60)), 128 * MIB)
    assert not large.fits and large.peak_bytes > 128 * MIB
    assert not try_within(python("import os; os.kill(os.getpid(), 9)"), None).fits
    status = f"raise SystemExit({OUT_OF_MEMORY_STATUS})"
    assert not try_within(python(status), None).fits
    with pytest.raises(ValueError, match="failed with status 1: ValueError: bad flag"):
        try_within(python("raise ValueError('bad flag')"), None)
    assert available_bytes() > MIB


def test_message_names_what_the_script_has():
    values = flags.FlagValues()
    flags.DEFINE_integer("train_batch_size", 32, "", flag_values=values)
    flags.DEFINE_string("precision", "float32", "", flag_values=values)
    values(["script.py"])
    message = out_of_memory_message(MemoryError(), values)
    assert message == (
        "out of memory with train_batch_size 32; lower --train_batch_size, "
        "use --precision=mixed_bfloat16: MemoryError"
    )
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError())
