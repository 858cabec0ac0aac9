"""A folder that one process at a time works in."""

import os
from contextlib import AbstractContextManager

from filelock import FileLock, Timeout


def lock_folder(folder: str | os.PathLike[str]) -> AbstractContextManager[object] | None:
    """Lock a folder until the returned context ends, or the process.

    The system takes back the lock of a process that is killed; the file "lock" in the folder, which
    stays, locks nothing by itself.

    Returns:
        The lock, which is held already, or None if another process holds it.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        return FileLock(os.path.join(folder, "lock")).acquire(blocking=False)
    except Timeout:
        return None
