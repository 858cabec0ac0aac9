"""python_docs: prose out of sources and topics, without code and without importing anything."""

import pathlib
import subprocess
import sys

import pytest

from data_prep.corpus import python_docs

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

SOURCE = '''"""Read things that are
worth reading.

Usage of the module, which is not hard at all::

    value = read(file, 'what is it')

    more = of(that)

>>> read("it is in the file")
'and this is what the example prints'

The ``built-
in`` *value* of :func:`read` is what you get.

- The first item of the list goes
  over two lines.
- The second item of the list is short.

A heading of the text
=====================
read(a, b) -> what is in the file
"""

# This is a comment of two lines
# that reads as prose, so it is kept.
x = """
# This is in a string and it is not a comment at all,
# whatever it may look like to the reader.
"""
# value = compute(the[0], of=this) if it == 5 else None
# other = {that: is_not, prose: at_all}


def f():
    # a note of one line that is not kept
    \'\'\'Say what it is that you do.\'\'\'
'''


def test_prose_of_a_source():
    texts = python_docs.source_texts(SOURCE)
    paragraphs = [p for text in texts for p in python_docs.prose_paragraphs(text)]
    assert paragraphs == [
        "Read things that are worth reading.",
        "Usage of the module, which is not hard at all:",
        'The "built-in" value of read is what you get.',
        "The first item of the list goes over two lines.",
        "The second item of the list is short.",
        "This is a comment of two lines that reads as prose, so it is kept.",
        "Say what it is that you do.",
    ]


@pytest.fixture
def stdlib(tmp_path):
    folder = tmp_path / "lib"
    prose = "".join(f"It is the case that {w} is in the list. " for w in ("one", "two", "three"))
    (folder / "pydoc_data").mkdir(parents=True)
    (folder / "test").mkdir()
    (folder / "a.py").write_text(f'"""{prose}"""\nraise SystemExit("imported")\n')
    (folder / "b.py").write_text(f'"""{prose}"""\n')
    (folder / "broken.py").write_text("def :")
    (folder / "test" / "c.py").write_text('"""It is the test that is not a document of ours."""')
    (folder / "pydoc_data" / "topics.py").write_text(
        "topics = {'t': 'It is the topic.\\n\\nIt has to be read as it is, and so on.'}"
    )
    return folder


def test_documents(stdlib, tmp_path):
    names = [name for name, _ in python_docs.python_documents(str(stdlib))]
    assert [n for n in names if not n.startswith("builtin:")] == ["module:a", "module:b", "topic:t"]
    assert "builtin:builtins" in names


def test_repeated_paragraphs_are_written_once(stdlib, tmp_path):
    output = tmp_path / "out.txt"
    python_docs.write_python_docs(str(output), stdlib=str(stdlib), min_document_sentences=1)
    text = output.read_text()
    assert text.count("the case that two is in the list") == 1
    assert "It has to be read as it is, and so on." in text


def test_documents_that_are_held_out(stdlib, tmp_path, capsys):
    outputs = {}
    for fraction in (0.0, 0.5):
        files = [str(tmp_path / name) for name in ("train.txt", "heldout.txt")]
        counts = python_docs.write_python_docs(
            *files, heldout_fraction=fraction, stdlib=str(stdlib), min_document_sentences=1
        )
        texts = [pathlib.Path(file).read_text() for file in files]
        outputs[fraction] = texts
        assert texts[0].count("\n\n") == counts.documents
        assert texts[1].count("\n\n") == counts.heldout_documents
        assert len(texts[1].encode()) == counts.heldout_bytes
        assert texts[1].count("\n") == counts.heldout_sentences + counts.heldout_documents
    (whole, none), (train, heldout) = outputs.values()
    assert not none and train and heldout
    documents = [set(text.split("\n\n")) - {""} for text in (whole, train, heldout)]
    assert documents[0] == documents[1] | documents[2] and not documents[1] & documents[2]
    with pytest.raises(ValueError, match="heldout_fraction: expected 0 <= fraction < 1, got 1"):
        python_docs.write_python_docs("x", heldout_fraction=1)


def test_folder_without_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Python sources"):
        list(python_docs.python_documents(str(tmp_path)))
    assert python_docs._topics("# Of no topics.\nother = 3\n") == {}


@pytest.mark.slow
def test_corpus_of_this_python(tmp_path):
    command = [sys.executable, str(REPOSITORY / "data_prep/python_docs.py")]
    outputs = []
    for name in ("1", "2"):  # Twice, in new processes, whose hash seeds differ.
        train, heldout = tmp_path / f"train{name}", tmp_path / f"heldout{name}"
        done = subprocess.run(
            [*command, f"--output_file={train}", f"--heldout_output_file={heldout}"],
            cwd=REPOSITORY,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        outputs.append((train.read_text(), heldout.read_text()))
    assert outputs[0] == outputs[1]
    train, heldout = outputs[0]
    assert len(train) > 1_500_000
    assert 0.02 < len(heldout) / len(train) < 0.12
    documents = train.split("\n\n")[:-1]
    assert len(documents) > 300
    assert "\n>>>" not in train
    lines = set(filter(None, train.split("\n")))
    assert len(lines & set(heldout.split("\n"))) < 0.02 * len(heldout.split("\n"))
    assert "Return true if" in train or "Return True if" in train


def test_the_command_tells_what_it_wrote(monkeypatch, capsys):
    def write(output_file, heldout_output_file, heldout_fraction):
        assert (output_file, heldout_output_file, heldout_fraction) == ("a.txt", heldout, 0.25)
        return python_docs.Counts(
            documents=1234,
            sentences=56789,
            bytes=7_650_000,
            heldout_documents=12,
            heldout_sentences=3456,
            heldout_bytes=80_000,
        )

    monkeypatch.setattr(python_docs, "write_python_docs", write)
    lines = [
        "a.txt: 1,234 documents, 56,789 sentences, 7.65 MB",
        "b.txt: 12 documents, 3,456 sentences, 0.08 MB",
    ]
    for heldout in ("b.txt", None):
        python_docs.run(python_docs.CommandOptions("a.txt", heldout, heldout_fraction=0.25))
        *found, last = capsys.readouterr().out.splitlines()
        assert found == lines[: 2 if heldout else 1]
        assert last.startswith(f"documentation of Python {sys.version.split()[0]}, read in ")
