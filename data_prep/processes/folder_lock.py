"""A folder that one process at a time works in."""

from __future__ import annotations

import os
from typing import BinaryIO


def lock_folder(folder: str | os.PathLike[str]) -> BinaryIO | None:
    """Lock a folder until the returned file is closed or the process ends.

    Returns:
        the open lock file, or None if another process holds the lock. Where the system has no such
        locks (Windows) every process gets one.

    Raises:
        OSError: the file cannot be written.
    """
    stream = open(os.path.join(folder, "lock"), "wb")
    try:
        import fcntl
    except ImportError:
        return stream
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream
