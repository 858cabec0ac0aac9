"""Data preparation for pre-training on Apache Spark."""

from collections.abc import Sequence
from typing import Any

from data_prep.cluster.files import FsspecFiles
from data_prep.cluster.spark_jobs import SparkRunner, spark_context
from data_prep.pretraining import cluster_jobs
from data_prep.pretraining.options import Options


def create_pretraining_data(
    options: Options,
    master: str | None,
    num_workers: int = 0,
    spark_arguments: Sequence[str] = (),
    show_progress: bool = True,
) -> dict[str, Any]:
    """Write pre-training records and their manifest, on Apache Spark.

    Args:
        options: what is made from what; paths that all workers reach, of any file system that
            fsspec knows.
        master: as of `spark_context`, and so are the next two.
        num_workers: executors, of one core each; 0 for what the cluster gives.
        spark_arguments: settings of Spark, each "--spark.name=value".
        show_progress: report on standard error.

    Returns:
        The manifest.

    Raises:
        ValueError: bad input, naming file and line, or there is no Java; nothing is left behind.
        OSError: a file cannot be read or written.
        RuntimeError: a job failed, or another run is at work on the same output.
    """
    cluster_jobs.check_options(options)
    with spark_context(
        "create_pretraining_data", master, num_workers, spark_arguments, show_progress
    ) as context:
        return cluster_jobs.create_pretraining_data(
            options, FsspecFiles(), lambda job: SparkRunner(job, show_progress, context)
        )
