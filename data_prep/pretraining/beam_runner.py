"""Jobs of data preparation on a runner of Apache Beam."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.cluster.files import ClusterFiles
from data_prep.cluster.jobs import Runner, Step
from data_prep.corpus import text_files
from data_prep.pretraining import cluster_jobs
from data_prep.pretraining.cluster_steps import Job
from data_prep.pretraining.options import Options
from data_prep.processes.worker_pool import available_cores

_TIDYING_SECONDS = 20  # that a runner has whose process was killed
# What DirectRunner is, once it has tried to download another runner, Prism. That does not know
# several processes; --runner=PrismRunner asks for it.
_DIRECT_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class BeamFiles(ClusterFiles):
    """Files of any file system that Beam knows."""

    def exists(self, path: str) -> bool:
        """See the base class."""
        return FileSystems.exists(path)

    def open(self, path: str) -> IO[bytes]:
        """See the base class."""
        return text_files.open_input(path)

    def create(self, path: str) -> Any:
        """See the base class."""
        return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)

    def make_folder(self, path: str) -> None:
        """See the base class."""
        FileSystems.mkdirs(path)

    def remove(self, path: str) -> None:
        """See the base class."""
        FileSystems.delete([path])

    def rename_remote(self, source: str, target: str) -> None:
        """See the base class."""
        FileSystems.rename([source], [target])


def create_pretraining_data(
    options: Options,
    runner: str,
    num_workers: int = 0,
    beam_arguments: Sequence[str] = (),
    show_progress: bool = True,
) -> dict[str, Any]:
    """Write pre-training records and their manifest, on a runner of Apache Beam.

    Args:
        options: what is made from what; paths of text and records of any file system Beam knows.
        runner: its name, such as DirectRunner or DataflowRunner.
        num_workers: workers; 0 for the runner's default, one per core where it is DirectRunner.
        beam_arguments: options of Beam and its runner, each "--name=value".
        show_progress: report on standard error.

    Returns:
        The manifest.

    Raises:
        ValueError: bad input, naming file and line; nothing is left behind.
        OSError: a file cannot be read or written.
        RuntimeError: a job failed, or another run is at work on the same output.
    """
    cluster_jobs.check_options(options)
    arguments = _pipeline_arguments(runner, num_workers, beam_arguments)
    return cluster_jobs.create_pretraining_data(
        options, BeamFiles(), lambda job: _BeamRunner(job, show_progress, arguments)
    )


def _pipeline_arguments(runner: str, num_workers: int, more: Sequence[str]) -> list[str]:
    names = {argument.split("=")[0].lstrip("-") for argument in more}
    if runner != "DirectRunner":
        workers = [f"--num_workers={num_workers}"] if num_workers else []
        return [f"--runner={runner}", *workers, *more]
    defaults = []
    num_workers = num_workers or available_cores()
    if num_workers > 1 and not names & {"direct_num_workers", "direct_running_mode"}:
        defaults += ["--direct_running_mode=multi_processing"]
        defaults += [f"--direct_num_workers={num_workers}"]
    if "default_sdk_harness_log_level" not in names:
        defaults.append("--default_sdk_harness_log_level=WARNING")
    return [f"--runner={_DIRECT_RUNNER}", *defaults, *more]


class _BeamRunner(Runner[Job]):
    """Runs jobs on a runner of Beam."""

    def __init__(self, job: Job, show: bool, arguments: Sequence[str]):
        super().__init__(job, show)
        self._arguments = arguments

    def carry_out(self, name: str, items: Sequence[Any], steps: Sequence[Step], path: str) -> None:
        """See the base class."""
        options = PipelineOptions(list(self._arguments))
        with _failing_with_workers(), beam.Pipeline(options=options) as pipeline:
            elements = pipeline | "items" >> beam.Create(list(items))
            for step in steps:
                elements = elements | step.label >> _transform(step)
            results = elements | "results" >> beam.combiners.ToList()
            # A worker writes them: not every runner gives its results back.
            _ = results | "write results" >> beam.Map(_write_results, path, self.job.files)


def _transform(step: Step) -> beam.PTransform:
    if step.kind == "spread":
        return beam.Reshuffle()
    if step.kind == "group":
        return beam.GroupByKey()
    transform = beam.Map if step.kind == "map" else beam.FlatMap
    return transform(step.function, *step.arguments)


def _write_results(results: list[Any], path: str, files: ClusterFiles) -> None:
    files.write_json(path, sorted(results))


@contextlib.contextmanager
def _failing_with_workers() -> Iterator[None]:
    """End a job of the direct runner when one of its processes is killed; it would wait for ever.

    Raises:
        RuntimeError: a thread of the runner failed, which has one for each process.
    """
    messages: list[str] = []
    before = threading.excepthook

    def give_up() -> None:
        # The runner may also wait for ever where it tidies up. All that is whole has its name.
        print(f"create_pretraining_data: a job failed: {messages[0]}", file=sys.stderr, flush=True)
        os._exit(1)

    ending = threading.Timer(_TIDYING_SECONDS, give_up)
    ending.daemon = True

    main_thread = threading.main_thread().ident
    assert main_thread is not None  # noqa: S101  (it has started)

    def stop(arguments: threading.ExceptHookArgs) -> None:
        if not messages:  # once: the workers that are left fail next
            messages.append(str(arguments.exc_value) or arguments.exc_type.__name__)
            ending.start()
            # A real signal: the main thread may wait where nothing else wakes it.
            signal.pthread_kill(main_thread, signal.SIGINT)

    threading.excepthook = stop
    try:
        yield
    except KeyboardInterrupt:
        if not messages:
            raise
        raise RuntimeError(messages[0]) from None
    finally:
        ending.cancel()
        threading.excepthook = before
