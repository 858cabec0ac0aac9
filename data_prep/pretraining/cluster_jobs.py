"""create_pretraining_data on a cluster: the jobs that follow each other, whatever runs them.

Three jobs follow each other, with a work folder beside the output:

1. Tokens: pieces of text become files of ids. Of the lengths of their sentences this process makes
   an index of the corpus, 8 bytes a sentence and a document.
2. Pairs: a worker draws those of a block of documents. It needs the index alone, which it maps from
   its own disk: a random next text is any sentence of any other document of the whole corpus, found
   by its number. Neither text nor tokens are read.
3. Records: pairs are cut into ranges of tokens, each is sent to the bundle of text that holds it,
   and from there its tokens go to the chunk of the output that the plan gives the pair to. A chunk
   is shuffled, masked and encoded, and chunks are joined to output files.

Files appear under their names once they are whole, and the output once all of it is: a job that
fails leaves only its work folder, and the same command continues in it. Paths are of any file
system that the runner knows; the work folder must be one that all workers reach.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bert_tf.records.files import manifest_path, output_base
from data_prep.cluster.files import ClusterFiles
from data_prep.cluster.jobs import Runner, Step, remote_work_folder
from data_prep.corpus import text_files
from data_prep.pretraining import cluster_steps, token_store
from data_prep.pretraining.cluster_steps import Job
from data_prep.pretraining.manifest import Statistics, make_manifest
from data_prep.pretraining.options import (
    Options,
    fingerprint,
    warn_about_corpus,
    warn_about_records,
)
from data_prep.pretraining.stages import block_bounds, chunk_sizes, deal_pairs, open_tokenizer
from data_prep.pretraining.work_folder import work_folder

PIECE_BYTES = 1 << 23  # larger than the local runner's: on object stores each file costs time
_LAYOUT = "beam 2"  # of the work folder; the first runner had this name


def check_options(options: Options) -> None:
    """See before any work that a cluster can make the records.

    Raises:
        ValueError: it cannot, or the input cannot be read.
        OSError: a file cannot be read.
    """
    if options.compatible:
        raise ValueError("compatible: the original's records are made in one process; drop runner")
    schemes = {path.rpartition("://")[0] for path in options.output_files}
    if len(schemes) > 1:
        raise ValueError(
            f"output_file: expected files on one file system with runner, got "
            f"{', '.join(options.output_files)}"
        )
    open_tokenizer(options)


def create_pretraining_data(
    options: Options, files: ClusterFiles, make_runner: Callable[[Job], Runner[Job]]
) -> dict[str, Any]:
    """Write pre-training records and their manifest.

    Args:
        options: what is made from what, as `check_options` wants them.
        files: the runner's file systems.
        make_runner: job -> what carries it out.

    Returns:
        The manifest, which is also written to `records.manifest_path` of the output files.

    Raises:
        ValueError: bad input, naming file and line; nothing is left behind.
        OSError: a file cannot be read or written.
        RuntimeError: a job failed, or another run is at work on the same output.
    """
    with _work_folder(options, files) as work:
        manifest = _run(make_runner(Job(work, files, options)))
        for path in sorted(set(map(manifest_path, options.output_files))):
            with files.write_whole(path, replace=True) as stream:
                stream.write((json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    warn_about_records(options, manifest["counts"])
    return manifest


@contextlib.contextmanager
def _work_folder(options: Options, files: ClusterFiles) -> Iterator[str]:
    """Give the work folder, on any file system; without a lock where that has none."""
    first = options.output_files[0]
    if not text_files.is_remote(first):
        with work_folder(options, _LAYOUT) as work:
            yield work
        return
    base = f"{output_base(first)}.work-"
    with remote_work_folder(files, base + fingerprint(options, _LAYOUT)) as work:
        yield work


def _run(runner: Runner[Job]) -> dict[str, Any]:
    """Run all jobs, each unless an earlier run did; return the manifest."""
    job = runner.job
    finished = job.path("finished.json")
    if not job.files.exists(finished):
        copies = {cluster_steps.VOCABULARY_NAME: job.options.vocab_file}
        if job.options.word_list is not None:
            copies[cluster_steps.WORD_LIST_NAME] = job.options.word_list
        for name, path in copies.items():
            with text_files.open_input(path) as source:
                content = source.read()
            with job.files.write_whole(job.path(name)) as stream:
                stream.write(content)
        counts = _tokenize(runner)
        warn_about_corpus(job.options, counts)
        parts = _draw_pairs(runner)
        file_chunks = _plan(job, [pairs for _, pairs in parts])
        statistics, sizes = _write_records(runner, [name for name, _ in parts], file_chunks)
        job.files.write_json(finished, make_manifest(job.options, counts, statistics, sizes))
    for index, path in enumerate(job.options.output_files):
        part = job.path(f"output-{index:05d}")
        if job.files.exists(part):
            job.files.rename(part, path)
        elif not job.files.exists(path):
            raise OSError(f"{path}: neither it nor {part} is there")
    return job.files.read_json(finished)


def _tokenize(runner: Runner[Job]) -> dict[str, int]:
    """First job: text to files of tokens, and the index; returns the store's counts."""
    job = runner.job
    # Workers are in folders of their own. Links stay: .gz is known by the name.
    paths = [
        path if text_files.is_remote(path) else os.path.abspath(path)
        for path in job.options.input_files
    ]
    groups = list(enumerate(_groups(paths)))
    steps = [
        Step("spread files", "spread"),
        Step("pieces", "flat_map", cluster_steps.file_pieces, (PIECE_BYTES, job)),
        Step("spread pieces", "spread"),
        Step("tokenize", "map", cluster_steps.tokenize_piece, (job,)),
    ]
    pieces = runner.run("tokens", groups, steps)
    ends = {group: piece for group, piece, tokens in pieces if tokens == cluster_steps.END}
    pieces = [numbered for numbered in pieces if numbered[2] != cluster_steps.END]
    if [(group, piece) for group, piece, _ in pieces] != [
        (group, piece) for group, _ in groups for piece in range(ends.get(group, 1))
    ]:
        job.files.remove(job.path("tokens.json"))
        raise RuntimeError("the job of tokens lost some of its results")
    return _write_index(job, pieces)


def _groups(paths: Sequence[str]) -> list[list[str]]:
    """Put small files together: each would give two files of tokens and their lengths."""
    groups: list[list[str]] = []
    room = 0
    for path in paths:
        size = text_files.input_bytes(path)
        if not groups or size > room:
            groups.append([])
            room = PIECE_BYTES
        groups[-1].append(path)
        room -= size
    return groups


def _write_index(job: Job, pieces: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    """Make the index of the lengths of sentences; return the store's counts."""
    counts_path = job.path(token_store.OFFSET_FILES[-1])
    if not job.files.exists(counts_path):
        with tempfile.TemporaryDirectory() as temporary:
            remote = text_files.is_remote(job.work)
            folder = temporary if remote else job.work
            with token_store.StoreWriter(folder) as writer:
                for group, piece, _ in pieces:
                    name = f"{cluster_steps.tokens_name(group, piece)}.lengths.npz"
                    writer.append(job.load(name, token_store.TokenizedPiece))
            for name in token_store.OFFSET_FILES if remote else ():
                with open(os.path.join(folder, name), "rb") as source:
                    with job.files.write_whole(job.path(name)) as target:
                        shutil.copyfileobj(source, target, 1 << 20)
    counts = job.files.read_json(counts_path)
    del counts["token_dtype"]
    return counts


def _draw_pairs(runner: Runner[Job]) -> list[tuple[str, int]]:
    """Second job: documents to files of pairs; returns their names, and the pairs in each."""
    job = runner.job
    bounds = block_bounds(cluster_steps.index_of(job), job.options)
    blocks = [(number, first, end) for number, (first, end) in enumerate(bounds)]
    steps = [
        Step("spread blocks", "spread"),
        Step("draw", "map", cluster_steps.draw_block, (job,)),
    ]
    return [
        (cluster_steps.pairs_name(block, part), pairs)
        for block, part_pairs in runner.run("pairs", blocks, steps, len(blocks))
        for part, pairs in enumerate(part_pairs)
    ]


def _plan(job: Job, part_pairs: Sequence[int]) -> list[range]:
    """Write the plan, a file for each file of pairs; return the chunks of each output file."""
    sizes, file_chunks = chunk_sizes(job.options, sum(part_pairs))
    job.files.write_json(job.path("sizes.json"), sizes)
    for number, row in enumerate(deal_pairs(job.options, part_pairs, sizes)):
        with job.files.write_whole(job.path(f"plan-{number:06d}")) as stream:
            stream.write(row.astype("<i8").tobytes())
    return file_chunks


def _write_records(
    runner: Runner[Job], parts: Sequence[str], file_chunks: Sequence[range]
) -> tuple[Statistics, list[int]]:
    """Third job: pairs to output files; returns the counts, and the bytes of each file."""
    job = runner.job
    numbered = list(enumerate(parts))
    steps = [
        Step("spread parts", "spread"),
        Step("ranges", "flat_map", cluster_steps.part_fragments, (job,)),
        Step("to bundles", "group"),
        Step("send", "flat_map", cluster_steps.send, (job, numbered)),
        Step("to chunks", "group"),
        Step("records", "map", cluster_steps.write_chunk, (job, file_chunks)),
        Step("to outputs", "group"),
        Step("join", "map", cluster_steps.join_file, (job, file_chunks)),
    ]
    joined = runner.run("records", numbered, steps, sum(map(bool, file_chunks)))
    for file, chunks in enumerate(file_chunks):
        if not chunks:  # there are more files than records
            joined.append(list(cluster_steps.join_file((file, ()), job, file_chunks)))
    statistics = Statistics()
    for file, _ in joined:
        statistics.merge(job.load(f"output-{file:05d}.npz", Statistics))
    return statistics, [size for _, size in sorted(joined)]
