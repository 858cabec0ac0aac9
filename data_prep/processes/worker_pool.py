"""Worker processes that carry out methods of one object, with results in order."""

import collections
import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_worker: Any = None


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(factory: Callable[..., Any], arguments: tuple) -> None:
    global _worker
    _worker = factory(*arguments)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  (the pool's)
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this process with its parent: killed, it cannot stop workers, who would wait for ever."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _call(method: str, arguments: tuple) -> Any:
    return getattr(_worker, method)(*arguments)


class WorkerPool:
    """Runs methods of an object that every worker process makes for itself.

    With one worker the object lives in this process. Use as a context manager.
    """

    def __init__(self, num_workers: int, factory: Callable[..., Any], *arguments: Any):
        """Prepare the workers; processes start with the first call.

        Args:
            num_workers: worker processes; 1 for none beside this one.
            factory: makes the object, importable.
            *arguments: of the factory, picklable.

        Raises:
            ValueError: num_workers below 1.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        self._window = 2 * num_workers  # work handed out ahead, which bounds memory
        self._pool = None
        if num_workers == 1:
            self._object = factory(*arguments)
        else:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                num_workers,
                # A fork would copy whatever threads and locks the caller has.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(factory, arguments),
            )

    def map(self, method: str, calls: Iterable[tuple]) -> Iterator[Any]:
        """Call a method once for each tuple of arguments.

        Args:
            method: name of the object's method.
            calls: arguments of each call; taken only a little ahead of the results.

        Yields:
            The results, in the order of the calls.

        Raises:
            RuntimeError: a worker process died.
        """
        if self._pool is None:
            for arguments in calls:
                yield getattr(self._object, method)(*arguments)
            return
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for arguments in calls:
                waiting.append(self._pool.submit(_call, method, arguments))
                if len(waiting) >= self._window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed; if memory was short, try a smaller --num_workers"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback):
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
