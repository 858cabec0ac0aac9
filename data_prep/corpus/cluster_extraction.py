"""extract_corpus on a cluster: the files of the local run, byte for byte.

A unit of work is a part of a large file, or some small files one after another. A worker writes the
text of a unit's documents beside the output; this process joins them in order, at the speed of its
disk. Files appear under their names once they are whole: a job that fails leaves only its work
folder, and the same command continues in it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from bert_tf.files import absolute, is_remote, size_of, stamp_of, write_whole
from data_prep.cluster import jobs
from data_prep.cluster.files import ClusterFiles
from data_prep.corpus import extraction
from data_prep.corpus.extraction import Counts, FilePart, Options, RawDocument
from data_prep.processes.work_folder import work_folder

UNIT_BYTES = 1 << 23  # some ten seconds of work, and 125,000 units of a terabyte
_KINDS = ("train", "heldout")
_BLOCK_BYTES = 1 << 20

Unit = tuple[int, list[tuple[str, FilePart | None]]]  # its number, and files or parts of them


@dataclasses.dataclass(frozen=True)
class Job(jobs.Job):
    """What every worker is told.

    Attributes:
        options: how documents are turned into sentences.
    """

    options: Options

    def text_path(self, kind: str, unit: int) -> str:
        """Path of a unit's text, of a kind of `_KINDS`."""
        return self.path(f"{kind}-{unit:07d}")

    def counts_path(self, unit: int) -> str:
        """Path of a unit's counts, which are written when its text is."""
        return self.path(f"counts-{unit:07d}.json")


def extract_corpus(
    paths: Sequence[str],
    output_file: str,
    options: Options,
    heldout_output_file: str | None,
    files: ClusterFiles,
    make_runner: Callable[[Job], jobs.Runner[Job]],
) -> Counts:
    """Write one sentence per line, with an empty line after each document.

    Args:
        paths: input files, as of `extraction.check_arguments`, which all workers reach.
        output_file: text file to write; compressed, by this process, when it ends in .gz.
        options: how documents are read and split.
        heldout_output_file: where documents chosen by `options.heldout_fraction` go.
        files: the runner's file systems.
        make_runner: job -> what carries it out.

    Returns:
        Counts of documents and sentences.

    Raises:
        ValueError: for bad input, naming file and line.
        OSError: for files that cannot be read or written.
        RuntimeError: a job failed, or another run is at work on the same output.
    """
    # Workers are in folders of their own. Links stay: .gz is known by the name.
    paths = [path if is_remote(path) else os.path.abspath(path) for path in paths]
    units = plan_units(paths, UNIT_BYTES)
    outputs = [output_file, *([heldout_output_file] if heldout_output_file else [])]
    with _work_folder(files, outputs, _digest(paths, outputs, options)) as work:
        job = Job(work, files, options)
        steps = [
            jobs.Step("spread units", "spread"),
            jobs.Step("extract", "map", extract_unit, (job,)),
        ]
        results = make_runner(job).run("extract", units, steps, len(units))
        counts = Counts()
        for _, values in results:
            counts.add(Counts(*values))
        extraction.check_found(counts, paths)
        _join(job, len(units), outputs)
    return counts


def _join(job: Job, num_units: int, outputs: Sequence[str]) -> None:
    """Put the texts of the units together, in order."""
    with contextlib.ExitStack() as stack:
        for kind, path in zip(_KINDS, outputs, strict=False):
            stream = stack.enter_context(write_whole(path))
            for unit in range(num_units):
                with job.files.open(job.text_path(kind, unit)) as source:
                    shutil.copyfileobj(source, stream, _BLOCK_BYTES)


def plan_units(paths: Sequence[str], unit_bytes: int) -> list[Unit]:
    """Cut the input into units of about so many bytes.

    Args:
        paths: files; of those that are compressed each is read by one worker.
        unit_bytes: size of a part of a file, and the least of small files together.
    """
    units: list[list[tuple[str, FilePart | None]]] = []
    group: list[tuple[str, FilePart | None]] = []
    group_bytes = 0
    for path in paths:
        size = size_of(path)
        if size > unit_bytes and not path.endswith((".gz", ".bz2")):
            units += [group] if group else []
            group, group_bytes = [], 0
            for start in range(0, size, unit_bytes):
                units.append([(path, FilePart(start, min(start + unit_bytes, size)))])
            continue
        group.append((path, None))
        group_bytes += size
        if group_bytes >= unit_bytes:
            units.append(group)
            group, group_bytes = [], 0
    units += [group] if group else []
    return list(enumerate(units))


def _digest(paths: Sequence[str], outputs: Sequence[str], options: Options) -> str:
    """Return 16 hexadecimal digits of all that the output depends on."""
    dependencies = {
        "input_files": [stamp_of(path) for path in paths],
        "output_files": list(map(absolute, outputs)),
        "options": dataclasses.asdict(options),
        "unit_bytes": UNIT_BYTES,
        "splitter": extraction.splitter_digest(options.sentence_splitter),
        "versions": [metadata.version(name) for name in ("bert-tf", "sentencex")],
    }
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:16]


def _work_folder(
    files: ClusterFiles, outputs: Sequence[str], digest: str
) -> contextlib.AbstractContextManager[str]:
    if is_remote(outputs[0]):
        return jobs.remote_work_folder(files, f"{outputs[0]}.work-{digest}")
    return work_folder(f"{os.path.abspath(outputs[0])}.work-", digest)


# === Work of one worker ===


def extract_unit(unit: Unit, job: Job) -> tuple[int, list[int]]:
    """Write the text of a unit's documents; return its number and the values of its counts."""
    number, parts = unit
    counts_path = job.counts_path(number)
    if not job.files.exists(counts_path):
        with job.telling():
            counts = Counts()
            with contextlib.ExitStack() as stack:
                streams = [
                    stack.enter_context(job.files.write_whole(job.text_path(kind, number)))
                    for kind in _KINDS[: 1 + (job.options.heldout_fraction > 0)]
                ]
                for batch in extraction.batches(_documents(parts, job.options)):
                    *texts, batch_counts = _process(batch, parts, job.options)
                    for stream, text in zip(streams, texts, strict=False):
                        stream.write(text)
                    counts.add(batch_counts)
        job.files.write_json(counts_path, list(dataclasses.astuple(counts)))
    return number, job.files.read_json(counts_path)


def _documents(
    parts: Sequence[tuple[str, FilePart | None]], options: Options
) -> Iterator[RawDocument]:
    for path, part in parts:
        try:
            yield from extraction.read_documents(path, options, part=part)
        except ValueError:
            if part is not None:  # the whole file tells its true lines
                for _ in extraction.read_documents(path, options):
                    pass
            raise


def _process(
    batch: Sequence[RawDocument],
    parts: Sequence[tuple[str, FilePart | None]],
    options: Options,
) -> tuple[bytes, bytes, Counts]:
    try:
        return extraction.process_batch(batch, options)
    except ValueError:
        path, part = parts[0]
        if part is not None and part.start:
            before = _first_line(path, part.start) - 1
            numbered = [dataclasses.replace(x, line=x.line + before) for x in batch]
            extraction.process_batch(numbered, options)
        raise


def _first_line(path: str, start: int) -> int:
    """Return the number of the first line that begins at an offset of a file or behind it."""
    number = 1
    with extraction.open_file(path) as stream:
        left = start - 1
        while left > 0 and (block := stream.read(min(left, _BLOCK_BYTES))):
            left -= len(block)
            number += block.count(b"\n")
    return number + 1
