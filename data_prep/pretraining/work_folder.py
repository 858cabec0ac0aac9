"""The folder in which a run keeps what it has finished, so that a killed one continues."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator

from bert_tf.files import check_output, is_remote
from bert_tf.records.files import output_base
from data_prep.pretraining.options import Options, fingerprint
from data_prep.processes import work_folder as processes_work_folder


@contextlib.contextmanager
def work_folder(options: Options, layout: str | None = None) -> Iterator[str]:
    """Make sure that the output can be written, and give the folder for unfinished work.

    Args:
        options: what is made from what.
        layout: as for `fingerprint`.

    Yields:
        The folder's path; see `processes.work_folder` for when it goes.

    Raises:
        ValueError: the output cannot be written.
        RuntimeError: another run has the folder.
    """
    for path in options.output_files:
        check_output(path, "output_file")
    base = _base(options.output_files[0])
    with processes_work_folder.work_folder(base, fingerprint(options, layout)) as work:
        yield work


def _base(output_file: str) -> str:
    """Return what the paths of work folders for an output begin with: beside it, if that is here.

    Of a remote one they lie in the system's folder of temporary files.
    """
    if not is_remote(output_file):
        return output_base(os.path.abspath(output_file)) + ".work-"
    digest = hashlib.sha256(output_file.encode()).hexdigest()[:16]
    folder = os.path.join(tempfile.gettempdir(), f"bert-tf-work-{os.getuid()}")
    return os.path.join(folder, f"{os.path.basename(output_base(output_file))}-{digest}.work-")


def piece_path(work: str, index: int) -> str:
    """Return the path of tokens of a piece of text."""
    return os.path.join(work, f"piece-{index:07d}.npz")


def pairs_path(work: str, block: int, part: int) -> str:
    """Return the path of pairs of a block."""
    return os.path.join(work, f"pairs-{block:06d}-{part:04d}")


def block_path(work: str, block: int) -> str:
    """Return the path of a block's pairs in a chunk."""
    return os.path.join(work, f"block-{block:06d}.json")


def blocks_path(work: str) -> str:
    """Return the path of the list of blocks."""
    return os.path.join(work, "blocks.json")


def plan_path(work: str) -> str:
    """Return the path of the plan of chunks."""
    return os.path.join(work, "plan.npy")


def chunk_path(work: str, chunk: int) -> str:
    """Return the path of records of a chunk."""
    return os.path.join(work, f"chunk-{chunk:07d}")


def statistics_path(work: str, chunk: int) -> str:
    """Return the path of statistics of a chunk."""
    return os.path.join(work, f"chunk-{chunk:07d}.npz")


def output_part_path(work: str, index: int) -> str:
    """Return the path of an output file while it is written."""
    return os.path.join(work, f"output-{index:05d}")


def output_bytes(options: Options, work: str) -> list[int]:
    """Return the bytes that all output files hold."""
    files = range(len(options.output_files))
    return [os.path.getsize(output_part_path(work, index)) for index in files]
