"""The end of a command that is asked to end, as by a cluster that takes its machine away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

STATUS = 75  # exit status of a stopped command, which the same command continues: EX_TEMPFAIL
_asked = threading.Event()


@contextlib.contextmanager
def _at_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Within it SIGTERM calls a function; entered by another than the main thread, it does not."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other listen
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within it SIGTERM asks for an end in place of killing the process; a second one kills it.

    Python lets only the main thread listen; entered by another one this does nothing.
    """

    def ask() -> None:
        _asked.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    _asked.clear()
    with _at_sigterm(ask):
        yield


@contextlib.contextmanager
def exiting() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit with `STATUS`, for commands that only wait for others.

    Python lets only the main thread listen; entered by another one this does nothing.
    """

    def leave() -> None:
        raise SystemExit(STATUS)

    with _at_sigterm(leave):
        yield


def is_asked() -> bool:
    """Return whether an end was asked for."""
    return _asked.is_set()
