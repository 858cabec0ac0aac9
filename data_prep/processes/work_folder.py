"""The folder in which a run keeps what it has finished, so that a killed one continues."""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator

from data_prep.processes.folder_lock import lock_folder


@contextlib.contextmanager
def work_folder(base: str, digest: str) -> Iterator[str]:
    """Give the folder for unfinished work, and hold it.

    The folder goes when all is done, and when the input turns out to be bad; it stays when the run
    is stopped or a disk is full, for the next run to continue. Those that killed runs left, on
    other input or with other options, go at once.

    Args:
        base: what the paths of such folders begin with.
        digest: 16 hexadecimal digits, of all that the work depends on.

    Yields:
        The folder's path.

    Raises:
        RuntimeError: another run has the folder.
    """
    work = base + digest
    os.makedirs(work, exist_ok=True)
    lock = lock_folder(work)
    if lock is None:
        raise RuntimeError(f"another run is making the same output; it holds {work}")
    with lock:
        for removed in glob.glob(f"{glob.escape(base)}*.removed"):
            shutil.rmtree(removed, ignore_errors=True)
        for other in set(glob.glob(glob.escape(base) + "?" * 16)) - {work}:
            other_lock = lock_folder(other)
            if other_lock is not None:
                with other_lock:
                    _remove_folder(other)
        try:
            yield work
        except ValueError:
            _remove_folder(work)
            raise
        _remove_folder(work)


def _remove_folder(work: str) -> None:
    """Remove a work folder so that nobody takes half of it for a whole one."""
    removed = f"{work}-{os.getpid()}.removed"
    os.rename(work, removed)
    shutil.rmtree(removed)
