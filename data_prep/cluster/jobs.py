"""Jobs of a cluster: steps that workers carry out on elements, whatever runs them."""

import abc
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar

from data_prep.cluster.files import ClusterFiles

ERROR_NAME = "error.txt"


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker is told.

    Attributes:
        work: the work folder, which all workers reach.
        files: the runner's file systems.
    """

    work: str
    files: ClusterFiles

    def path(self, name: str) -> str:
        """Path of a file in the work folder."""
        return f"{self.work}/{name}"

    @contextlib.contextmanager
    def telling(self, copy: str = "", original: str = "") -> Iterator[None]:
        """Write down what is wrong with the input, since runners say it in ways of their own.

        Args:
            copy: a path on the worker's machine, which the user does not know.
            original: what it is a copy of.
        """
        try:
            yield
        except ValueError as error:
            message = str(error).replace(copy, original) if copy else str(error)
            with self.files.write_whole(self.path(ERROR_NAME)) as stream:
                stream.write(message.encode())
            raise


J = TypeVar("J", bound=Job)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a job.

    Attributes:
        label: what it is called.
        kind: "map" gives one element for each, "flat_map" any number; "spread" deals the elements
            out to the workers anew; "group" makes of pairs of a key and a value pairs of a key and
            all its values.
        function: of "map" and "flat_map": of an element and the arguments.
        arguments: what follows the element.
    """

    label: str
    kind: Literal["map", "flat_map", "spread", "group"]
    function: Callable[..., Any] | None = None
    arguments: tuple[Any, ...] = ()


class Runner(abc.ABC, Generic[J]):
    """What carries out jobs.

    Attributes:
        job: what every worker is told.
        show: report on standard error.
    """

    def __init__(self, job: J, show: bool):
        self.job = job
        self.show = show

    @abc.abstractmethod
    def carry_out(self, name: str, items: Sequence[Any], steps: Sequence[Step], path: str) -> None:
        """Run a job, and write its elements, in order, as a list to a JSON file.

        Args:
            name: of the job.
            items: its first elements.
            steps: what is done with them.
            path: the file.

        Raises:
            Exception: the job failed; the first line that matters is the last.
        """

    def run(
        self, name: str, items: Sequence[Any], steps: Sequence[Step], num_results: int | None = None
    ) -> list[Any]:
        """Run a job, unless an earlier run did, and return its elements in order.

        Args:
            name: of the job.
            items: its first elements.
            steps: what is done with them.
            num_results: elements that there must be at its end, where that is known.

        Raises:
            ValueError: a worker found bad input.
            RuntimeError: the job failed, or lost a result.
        """
        files, path = self.job.files, self.job.path(f"{name}.json")
        if not files.exists(path):
            begin = time.monotonic()
            error_path = self.job.path(ERROR_NAME)
            if files.exists(error_path):  # of an attempt after which another went well
                files.remove(error_path)
            try:
                self.carry_out(name, items, steps, path)
            except Exception as error:  # runners raise what they like
                if files.exists(error_path):
                    raise ValueError(files.read(error_path).decode()) from error
                raise RuntimeError(f"the job of {name} failed: {self.reason_of(error)}") from error
            if self.show:
                seconds = time.monotonic() - begin
                print(f"{name}: done in {seconds:.0f} s", file=sys.stderr, flush=True)
        results = files.read_json(path)
        if num_results is not None and len(results) != num_results:
            files.remove(path)
            lost = num_results - len(results)
            raise RuntimeError(f"the job of {name} lost {lost} of its results")
        return results

    def reason_of(self, error: Exception) -> str:
        """Return the line of an error of the runner that says why a job failed."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[-1]


@contextlib.contextmanager
def remote_work_folder(files: ClusterFiles, work: str) -> Iterator[str]:
    """Give a work folder on a file system that has no locks; it goes when the local one does."""
    if not files.exists(work):
        files.make_folder(work)
    try:
        yield work
    except ValueError:
        files.remove(work + "/")
        raise
    files.remove(work + "/")
