"""extract_corpus on Apache Spark."""

from collections.abc import Sequence

from data_prep.cluster.files import FsspecFiles
from data_prep.cluster.spark_jobs import SparkRunner, spark_context
from data_prep.corpus import cluster_extraction
from data_prep.corpus.extraction import Counts, Options, check_arguments


def extract_corpus(
    input_files: Sequence[str],
    output_file: str,
    *,
    options: Options | None = None,
    heldout_output_file: str | None = None,
    master: str | None = None,
    num_workers: int = 0,
    spark_arguments: Sequence[str] = (),
    show_progress: bool = False,
) -> Counts:
    """Write one sentence per line, with an empty line after each document, on Apache Spark.

    Args:
        input_files: names and globs of files, as for `extraction.extract_corpus`; these and the
            output are reached by all workers, on any file system that fsspec knows.
        output_file: text file to write.
        options: how documents are read and split; by default `Options()`.
        heldout_output_file: where documents chosen by `options.heldout_fraction` go.
        master: as of `spark_context`, and so are the next two.
        num_workers: executors, of one core each; 0 for what the cluster gives.
        spark_arguments: settings of Spark, each "--spark.name=value".
        show_progress: report on standard error.

    Returns:
        Counts of documents and sentences.

    Raises:
        ValueError: for bad options or input, naming file and line, or there is no Java.
        OSError: for files that cannot be read or written.
        RuntimeError: a job failed, or another run is at work on the same output.
    """
    options = options or Options()
    paths = check_arguments(input_files, output_file, options, heldout_output_file)
    with spark_context(
        "extract_corpus", master, num_workers, spark_arguments, show_progress
    ) as context:
        return cluster_extraction.extract_corpus(
            paths,
            output_file,
            options,
            heldout_output_file,
            FsspecFiles(),
            lambda job: SparkRunner(job, show_progress, context),
        )
