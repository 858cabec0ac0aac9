"""The largest batch that fits, and what is said where memory runs out or the loss diverges."""

import sys

import pytest
import tensorflow as tf
from absl import flags

from bert_tf.training.errors import NonFiniteLossError
from experiments.command_line import preemption
from experiments.command_line.exit_status import exit_on_error
from experiments.command_line.memory import (
    OUT_OF_MEMORY_STATUS,
    available_bytes,
    is_out_of_memory,
    out_of_memory_message,
)
from experiments.pretraining import batch_size
from experiments.pretraining.batch_size import Trial, largest_batch_size, try_within
from experiments.pretraining.options import PretrainingOptions
from tests.support import command_options

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
    flags.DEFINE_integer("train_batch_tokens", None, "", flag_values=values)
    assert out_of_memory_message(MemoryError(), values) == message
    values.train_batch_tokens = 4096
    assert out_of_memory_message(MemoryError(), values).startswith(
        "out of memory with train_batch_tokens 4096; lower --train_batch_tokens, use"
    )
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError())


def test_a_loss_that_is_not_finite_ends_a_command_with_one_line(capsys):
    def diverge():
        raise NonFiniteLossError("the loss of step 7 is nan; lower the learning rate")

    def overflow():
        raise FloatingPointError("overflow")

    assert exit_on_error("script", diverge, flags.FlagValues()) == 1
    assert capsys.readouterr().err == (
        "script: the loss of step 7 is nan; lower the learning rate\n"
    )
    with pytest.raises(FloatingPointError):  # a mistake of the program, not of its user
        exit_on_error("script", overflow, flags.FlagValues())


@pytest.mark.parametrize(
    ("strategy", "name", "status"),
    [
        ("multi_worker_mirrored", "UnavailableError", preemption.STATUS),
        ("multi_worker_mirrored", "DeadlineExceededError", preemption.STATUS),
        ("mirrored", "DeadlineExceededError", None),
    ],
)
def test_a_lost_worker_ends_a_command_with_the_status_of_what_goes_on(
    capsys, strategy, name, status
):
    values = flags.FlagValues()
    flags.DEFINE_string("distribution_strategy", strategy, "", flag_values=values)
    values(["script.py"])
    text = "Graph execution error:\n\nCollective ops is aborted by: Deadline Exceeded\nRPC: x"
    error = getattr(tf.errors, name)(None, None, text)

    def lose():
        raise error

    if status is None:
        with pytest.raises(type(error)):
            exit_on_error("script", lose, values)
        return
    assert exit_on_error("script", lose, values) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("script: another worker was lost; start all of them again")
    assert line.endswith("TensorFlow: Collective ops is aborted by: Deadline Exceeded")


def test_trials_run_the_command_again_with_another_batch(monkeypatch, capsys, tmp_path):
    tried = []

    def try_one(command, limit_bytes):
        assert limit_bytes == 2**30
        tried.append(command)
        return Trial("--train_batch_size=1" in command or "--train_batch_size=2" in command, MIB)

    command = tmp_path / "run_pretraining.py"
    monkeypatch.setattr(sys, "argv", [str(command), "--input_file=x", "--do_train"])
    monkeypatch.setattr(batch_size, "try_within", try_one)
    given = {"input_file": "x", "output_dir": "y", "do_train": True, "memory_limit_gib": 1}
    batch_size.find_batch_size(command_options.of(PretrainingOptions, **given))
    assert "largest train_batch_size that fits: 2 (0.00 GiB)" in capsys.readouterr().out
    for arguments in tried:
        assert arguments[:4] == [sys.executable, str(command), "--input_file=x", "--do_train"]
        assert "--measure_only=True" in arguments and "--find_batch_size=False" in arguments
