"""Ends a script that is asked to, as by a cluster that takes its machine away, without loss."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STATUS = 75  # exit status of a stopped script, which the same command continues: EX_TEMPFAIL
_asked = threading.Event()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within it SIGTERM asks for an end in place of killing the process; a second one kills it.

    Python lets only the main thread listen; entered by another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number, frame):
        del number, frame
        _asked.set()
        signal.signal(signal.SIGTERM, before)

    _asked.clear()
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exiting() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit with `STATUS`, for scripts that only wait for others.

    Python lets only the main thread listen; entered by another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number, frame):
        del number, frame
        raise SystemExit(STATUS)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_asked() -> bool:
    """Return whether an end was asked for."""
    return _asked.is_set()
