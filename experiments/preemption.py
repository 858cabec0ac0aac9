"""Ends a script that is asked to, as by a cluster that takes its machine away, without loss."""

from __future__ import annotations

import signal
import threading

STATUS = 75  # exit status of a stopped script, which the same command continues: EX_TEMPFAIL
_asked = threading.Event()


def listen() -> None:
    """Let SIGTERM ask for an end, in place of killing the process; a second one kills it.

    Python lets only the main thread listen; called by another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def ask(number, frame):
        del number, frame
        _asked.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    _asked.clear()
    signal.signal(signal.SIGTERM, ask)


def is_asked() -> bool:
    """Return whether an end was asked for."""
    return _asked.is_set()
