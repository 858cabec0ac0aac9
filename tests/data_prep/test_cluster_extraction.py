"""Extraction on a cluster: the local run's files, from parts of files and files together."""

import bz2
import dataclasses
import gzip
import json
import pathlib
import sys

import pytest

from bert_tf import files as bert_files
from data_prep.cluster import jobs
from data_prep.cluster.files import FsspecFiles
from data_prep.corpus import cluster_extraction, extraction
from data_prep.corpus.cluster_extraction import plan_units
from data_prep.corpus.extraction import FilePart, Options

WIKI = "".join(
    f'<doc id="{i}" url="u" title="T{i}">\nT{i}\n\nHéllo {i}. '
    + "It is so. " * (i % 5)
    + "\n</doc>\n"
    for i in range(23)
)
JSON = "".join(
    json.dumps({"text": f"One {i} is here.\nAnd " + "two " * (i % 7)}) + "\n" * (i % 3 + 1)
    for i in range(29)
)
TEXT = "".join(f"Line {i} stands.\r\n" + "\n" * (i % 4 == 0) for i in range(31))
BROKEN = {
    "not closed": WIKI.replace("</doc>\n", "", 12).replace("<doc", "x<doc", 0).encode(),
    "outside": WIKI.replace("</doc>\n", "</doc>\nxx\n", 17).replace("\nxx", "", 16).encode(),
    "bytes": WIKI.encode().replace(b"H\xc3\xa9llo 19", b"H\xe9llo 19"),
    "json": JSON.replace('{"text": "One 19', '{"text: "One 19').encode(),
    "field": JSON.replace('{"text": "One 19', '{"texts": "One 19').encode(),
}


class InTurn(jobs.Runner):
    """Carries jobs out in this process, the last element first; fails after some of them."""

    ends_after: int | None = None

    def carry_out(self, name, items, steps, path):
        done = []
        for item in reversed(items):
            if len(done) == self.ends_after:
                raise OSError("the machine is gone")
            (function,) = [step.function for step in steps if step.function]
            done.append(function(item, *steps[-1].arguments))
        self.job.files.write_json(path, sorted(done))


def extract(paths, folder, options, ends_after=None):
    """Return the files and counts of a run on a cluster."""
    outputs = [str(folder / "train.txt.gz"), str(folder / "heldout.txt")]
    heldout = outputs[1] if options.heldout_fraction else None

    def runner(job):
        made = InTurn(job, False)
        made.ends_after = ends_after
        return made

    paths = extraction.check_arguments(paths, outputs[0], options, heldout)
    counts = cluster_extraction.extract_corpus(
        paths, outputs[0], options, heldout, FsspecFiles(), runner
    )
    return files_in(folder), counts


def extract_locally(paths, folder, options):
    heldout = str(folder / "heldout.txt") if options.heldout_fraction else None
    counts = extraction.extract_corpus(
        paths, str(folder / "train.txt.gz"), options=options, heldout_output_file=heldout
    )
    return files_in(folder), counts


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("unit_bytes", "held_out"), [(59, 0.3), (61, 0.0), (499, 0.3)])
def test_text_and_counts_are_the_local_ones(tmp_path, monkeypatch, unit_bytes, held_out):
    monkeypatch.setattr(cluster_extraction, "UNIT_BYTES", unit_bytes)
    monkeypatch.setattr(extraction, "_BATCH_BYTES", 211)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(b"\xef\xbb\xbf" + WIKI.encode())
    (folder / "b.jsonl").write_text("\n \n" + JSON)
    (folder / "c.gz").write_bytes(gzip.compress(WIKI.encode()))
    (folder / "d.bz2").write_bytes(bz2.compress(JSON.encode()))
    (folder / "e").write_text(" \n\n")
    (folder / "f.txt").write_bytes(TEXT.encode() + b"no end of line")
    (folder / "g").write_bytes(b"\xef\xbb\xbfOne.\n\nTwo.")
    for documents in ("blank_line", "file"):
        options = Options(
            text_documents=documents, heldout_fraction=held_out, min_document_sentences=2
        )
        found = []
        for name, run in (("local", extract_locally), ("cluster", extract)):
            out = tmp_path / f"{documents}-{name}"
            out.mkdir()
            found.append(run([f"{folder}/*"], out, options))
        assert found[0] == found[1]
        assert found[0][1].documents_read > 100 and len(found[0][0]) == 1 + (held_out > 0)


@pytest.mark.parametrize("name", list(BROKEN))
@pytest.mark.parametrize("unit_bytes", [97, 307])
def test_what_is_wrong_is_told_as_locally(tmp_path, monkeypatch, name, unit_bytes):
    monkeypatch.setattr(cluster_extraction, "UNIT_BYTES", unit_bytes)
    (tmp_path / "in").write_bytes(BROKEN[name])
    said = []
    for run in (extract_locally, extract):
        out = tmp_path / run.__name__
        out.mkdir()
        with pytest.raises(ValueError) as caught:
            run([str(tmp_path / "in")], out, Options())
        said.append(str(caught.value))
        assert not list(out.iterdir())
    assert said[0] == said[1]
    assert not said[0].startswith(f"{tmp_path}/in:1:")


def test_small_files_share_units_and_large_ones_are_parted(tmp_path):
    paths = []
    for number, size in enumerate([3, 4, 2, 25, 1, 1]):
        paths.append(str(tmp_path / f"{number}"))
        pathlib.Path(paths[-1]).write_bytes(b"x" * size)
    paths.append(str(tmp_path / "large.gz"))
    pathlib.Path(paths[-1]).write_bytes(b"x" * 40)
    units = plan_units(paths, 10)
    assert units == [
        (0, [(paths[0], None), (paths[1], None), (paths[2], None)]),
        (1, [(paths[3], FilePart(0, 10))]),
        (2, [(paths[3], FilePart(10, 20))]),
        (3, [(paths[3], FilePart(20, 25))]),
        (4, [(paths[4], None), (paths[5], None), (paths[6], None)]),
    ]


def test_a_mended_splitter_begins_anew(tmp_path, monkeypatch):
    """Of units by the old one and units by the new one nothing is joined."""
    monkeypatch.setattr(cluster_extraction, "UNIT_BYTES", 101)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "in").write_text(WIKI)
    options = Options(sentence_splitter="mended_splitter:split")
    out, module = tmp_path / "out", tmp_path / "mended_splitter.py"
    out.mkdir()
    module.write_text("def split(text):\n    return ['old ' + text]\n")
    with pytest.raises(RuntimeError, match="the machine is gone"):
        extract([str(tmp_path / "in")], out, options, ends_after=5)
    module.write_text("def split(text):\n    return ['mended ' + text]\n")
    monkeypatch.delitem(sys.modules, "mended_splitter")  # as in the process of the next command
    extraction.load_splitter.cache_clear()
    found, counts = extract([str(tmp_path / "in")], out, options)
    text = gzip.decompress(found["train.txt.gz"]).decode()
    assert text.count("mended ") == counts.sentences > 20 and "old " not in text
    extraction.load_splitter.cache_clear()


def test_a_job_that_failed_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_extraction, "UNIT_BYTES", 101)
    (tmp_path / "in").write_text(WIKI)
    before, out = tmp_path / "local", tmp_path / "out"
    before.mkdir()
    out.mkdir()
    (out / "train.txt.gz").write_bytes(b"earlier")
    expected = extract_locally([str(tmp_path / "in")], before, Options())
    with pytest.raises(RuntimeError, match="the job of extract failed: the machine is gone"):
        extract([str(tmp_path / "in")], out, Options(), ends_after=5)
    assert (out / "train.txt.gz").read_bytes() == b"earlier"
    (work,) = out.glob("train.txt.gz.work-*")
    assert len(list(work.glob("counts-*.json"))) == 5
    done = []
    process = cluster_extraction._process
    monkeypatch.setattr(
        cluster_extraction, "_process", lambda *given: done.append(1) or process(*given)
    )
    assert extract([str(tmp_path / "in")], out, Options()) == expected
    assert 0 < len(done) < expected[1].documents_read - 1
    # Other options are another work folder, and the one that was left goes.
    with pytest.raises(RuntimeError):
        extract([str(tmp_path / "in")], out, Options(), ends_after=5)
    other = dataclasses.replace(Options(), drop_titles=False)
    assert len(extract([str(tmp_path / "in")], out, other)[0]) == 1


def test_nothing_but_markup_leaves_nothing(tmp_path):
    (tmp_path / "in").write_text('<doc id="1" title="T">\nT\n\n</doc>\n' * 3)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"no documents with text in 1 input .* \(3 were read"):
        extract([str(tmp_path / "in")], tmp_path / "out", Options())
    assert not list((tmp_path / "out").iterdir())


def test_an_error_in_the_first_lines_and_one_that_the_whole_file_has_not(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_extraction, "UNIT_BYTES", 97)
    path = tmp_path / "in"
    path.write_bytes(WIKI.encode().replace(b"H\xc3\xa9llo 0", b"H\xe9llo 0"))
    said = []
    for run in (extract_locally, extract):
        out = tmp_path / run.__name__
        out.mkdir()
        with pytest.raises(ValueError) as caught:
            run([str(path)], out, Options())
        said.append(str(caught.value))
    assert said[0] == said[1] and said[0].startswith(f"{path}:4: byte 2 is not UTF-8")

    def read(path, options, part=None):  # as of a file that is mended meanwhile
        if part is not None and part.start:
            raise ValueError("of the part")
        return iter(())

    monkeypatch.setattr(extraction, "read_documents", read)
    with pytest.raises(ValueError, match="^of the part$"):
        extract([str(path)], out, Options(format="wikiextractor"))


def test_text_may_go_to_another_file_system(tmp_path):
    (tmp_path / "in").write_text(WIKI)
    files, folder = FsspecFiles(), f"memory://{tmp_path}"
    files.make_folder(folder)
    counts = cluster_extraction.extract_corpus(
        [str(tmp_path / "in")],
        f"{folder}/out.txt",
        Options(),
        None,
        files,
        lambda job: InTurn(job, False),
    )
    assert extraction.extract_corpus([str(tmp_path / "in")], str(tmp_path / "out.txt")) == counts
    assert files.read(f"{folder}/out.txt") == (tmp_path / "out.txt").read_bytes()
    system, name = bert_files.file_system(folder)
    assert [found.rpartition("/")[2] for found in system.ls(name, False)] == ["out.txt"]
