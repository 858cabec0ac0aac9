"""How a command ends: its work done, or one line on standard error and a status that says why."""

import sys
from collections.abc import Callable

from absl import flags, logging

from bert_tf.files import original_names
from bert_tf.options import error_message
from bert_tf.training.errors import NonFiniteLossError, StoppedError
from experiments.command_line import memory, preemption


class InputError(ValueError):
    """Something about flags or data that the user can put right."""


# What the message of an error says suffices; others are mistakes of the program.
_TOLD = (ValueError, OSError, RuntimeError, ImportError, NonFiniteLossError)


def exit_on_error(
    name: str, run: Callable[[], object], values: flags.FlagValues | None = None
) -> int:
    """Run a command's work; what went wrong is one line on standard error.

    With --verbosity=1 errors keep their traceback.

    Args:
        name: of the command, with which the line begins.
        run: its work.
        values: its flags; None for the process' own.

    Returns:
        Exit status: 0, 1 after an error, `memory.OUT_OF_MEMORY_STATUS`, or `preemption.STATUS`
        where the same command goes on: the run was asked to end and has saved its state, or
        another worker was lost.
    """
    values = flags.FLAGS if values is None else values
    try:
        run()
    except StoppedError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return preemption.STATUS
    except Exception as error:
        if logging.level_debug():
            raise
        if _lost_worker(error, values):
            reason = next((x for x in str(error).splitlines() if "ollective ops" in x), str(error))
            print(
                f"{name}: another worker was lost; start all of them again with the same commands, "
                f"and training goes on from the last checkpoint. TensorFlow: {reason}",
                file=sys.stderr,
            )
            return preemption.STATUS
        status = 1
        if isinstance(error, _TOLD):
            message = error_message(error, values)
        elif memory.is_out_of_memory(error):
            message = memory.out_of_memory_message(error, values)
            status = memory.OUT_OF_MEMORY_STATUS
        else:
            raise
        print(f"{name}: {original_names(message)}", file=sys.stderr)
        return status
    return 0


def _lost_worker(error: Exception, values: flags.FlagValues) -> bool:
    """Whether an error is what TensorFlow raises where one of several workers is gone.

    Deadline exceeded: this one is who was cut off, and its heartbeats did not reach the chief.
    """
    if "distribution_strategy" not in values:
        return False
    several = values.distribution_strategy == "multi_worker_mirrored"
    return several and isinstance(
        error,
        memory.tensorflow_errors("UnavailableError", "AbortedError", "DeadlineExceededError"),
    )
