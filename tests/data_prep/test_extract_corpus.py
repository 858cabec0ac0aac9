"""extract_corpus: formats, cleaning, order, held-out documents and errors that name the line."""

import bz2
import dataclasses
import gzip
import json
import pathlib
import subprocess
import sys
import types
import unicodedata

import pytest
from absl import flags

from bert_tf.options import define
from data_prep.corpus import extraction, scripts
from data_prep.corpus.extraction import (
    CommandOptions,
    Options,
    RawDocument,
    clean_wiki_line,
    expand_inputs,
    extract_corpus,
    is_held_out,
    process_batch,
    split_paragraph,
)
from tests.support.languages import LANGUAGES

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

WIKI = """<doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="Salt &amp; Pepper">
Salt &amp; Pepper

Dr. Smith bought salt (; Latin: "sal") in the U.S. for $3.50. It was cheap!
History.
Trade routes
The <b>trade</b> ended &lt;br&gt; in [[Venice|the city]] () , they say. , nobody knows why.
{| class="wikitable"
|-
| a cell
* A list item that is long enough to be running text, as we say
[[Category:Spices]]
</doc>
<doc id="13" url="x" title="Empty">
Empty

</doc>
<doc id="14" url="x" title="Other">
Something else stands in the first line.
</doc>
"""
WIKI_LINES = [
    'Dr. Smith bought salt (Latin: "sal") in the U.S. for $3.50.',
    "It was cheap!",
    "History.",
    "The trade ended in the city, they say.",
    "nobody knows why.",
    "A list item that is long enough to be running text, as we say",
    "",
    "Something else stands in the first line.",
    "",
]


def write(path: pathlib.Path, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".bz2":
        data = bz2.compress(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def extracted(tmp_path, *inputs: str, num_workers=1, max_documents=None, **options) -> list[str]:
    output = tmp_path / "output.txt"
    extract_corpus(
        inputs,
        str(output),
        options=Options(**options),
        num_workers=num_workers,
        max_documents=max_documents,
    )
    return output.read_text(encoding="utf-8").split("\n")[:-1]


def script(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "data_prep/extract_corpus.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
    )


@pytest.mark.parametrize("name", ["wiki_00", "wiki_00.gz", "wiki_00.bz2"])
def test_wikiextractor(tmp_path, name):
    assert extracted(tmp_path, write(tmp_path / name, WIKI)) == WIKI_LINES


def test_wikiextractor_can_keep_titles_and_fragments(tmp_path):
    lines = extracted(
        tmp_path, write(tmp_path / "w", WIKI), drop_titles=False, drop_fragments=False
    )
    assert lines[0] == "Salt & Pepper"
    assert "Trade routes" in lines


def test_documents_without_titles_and_escapes_that_stay(tmp_path):
    text = '<doc id="1">\nSalt &amp; pepper are here.\n</doc>\n\n<doc id="2" title="T">\n\n</doc>\n'
    path = write(tmp_path / "w", text)
    assert extracted(tmp_path, path) == ["Salt & pepper are here.", ""]
    assert extracted(tmp_path, path, unescape_html=False) == ["Salt &amp; pepper are here.", ""]


def test_what_was_asked_for_and_did_not_happen_is_told(tmp_path):
    counts = extraction.Counts(documents=7, documents_read=7)
    report = extraction.report_lines(counts, 1.0, "out", "held")
    assert "warning: no document was held out; raise --heldout_fraction" in report
    counts.heldout_documents = 1
    assert "no document was held out" not in "".join(
        extraction.report_lines(counts, 1.0, "out", "held")
    )
    options = CommandOptions(input_file=("a",), output_file="b", runner="spark", max_documents=3)
    with pytest.raises(ValueError, match="max_documents: .*; drop --runner=spark"):
        extraction.run(options)


def test_a_splitter_lies_where_the_user_stands(tmp_path, monkeypatch):
    write(tmp_path / "splits_here.py", "def split(text):\n    return [text[:3], text[3:]]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert extraction.load_splitter("splits_here:split")("abcde") == ["abc", "de"]


def test_text_that_only_looks_like_markup_stays():
    for line in ("if a < b and c > d then", "use #include <stdio.h> first", "P<NP<EXP", "a | b"):
        assert clean_wiki_line(line) == line


def test_text_files_are_documents(tmp_path):
    one = write(tmp_path / "1.txt", "\ufeffOne is first. Two is next.\n\nThree &amp; four\n")
    two = write(tmp_path / "2.txt.gz", "Five.\r\nSix.\r\n")
    assert extracted(tmp_path, one, two) == [
        *("One is first.", "Two is next.", "Three & four", ""),
        *("Five.", "Six.", ""),
    ]


def test_text_documents_between_empty_lines(tmp_path):
    path = write(tmp_path / "1.txt", "\n\nOne.\nTwo. Three.\n \n\nFour.\n")
    lines = extracted(tmp_path, path, text_documents="blank_line")
    assert lines == ["One.", "Two.", "Three.", "", "Four.", ""]


def test_hard_wrapped_text(tmp_path):
    path = write(tmp_path / "1.txt", "One is\nfirst. Two\nis next.\n\nThree.\n")
    assert extracted(tmp_path, path, join_lines=True) == [
        *("One is first.", "Two is next.", "Three.", "")
    ]


def test_json_lines(tmp_path):
    rows = [
        {"id": 1, "body": "One. Two.\nThree\u2028and four."},
        {"id": 2, "body": None},
        {"id": 3, "body": "ha\ud83dlf is long"},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert extracted(tmp_path, path, text_field="body") == [
        *("One.", "Two.", "Three and four.", ""),
        *("ha?lf is long", ""),
    ]


def test_globs_in_order(tmp_path):
    for name in ("b/2", "b/1", "a/3"):
        write(tmp_path / name, f"File {name[-1]}.")
    patterns = [f"{tmp_path}/b/*", f"{tmp_path}/**/3", f"{tmp_path}/b/1"]
    assert [pathlib.Path(p).name for p in expand_inputs(patterns)] == ["1", "2", "3"]


def test_pieces_without_a_word_join_the_sentence_before():
    splitter = {"x": ["... ", "One.", ' "', "", "Two."]}.__getitem__
    assert split_paragraph("x", splitter) == ['One."', "Two."]


def test_splitter_of_the_user(tmp_path):
    write(tmp_path / "my_splitter.py", "def split(text):\n    return text.split(';')\n")
    write(tmp_path / "1.txt", "one; two. Three")
    done = script(
        "--input_file=1.txt",
        "--output_file=out.txt",
        "--sentence_splitter=my_splitter:split",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_text() == "one\ntwo. Three\n\n"


def many_documents(tmp_path, count=211) -> str:
    documents = [
        f'<doc id="{i}" url="u" title="T{i}">\nT{i}\n\n' + f"Sentence {i} is here. " * (i % 7 + 1)
        for i in range(count)
    ]
    return write(tmp_path / "many", "".join(f"{d}\n</doc>\n" for d in documents))


def test_output_does_not_depend_on_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_BATCH_BYTES", 499)  # So that the file makes many batches.
    path, found = many_documents(tmp_path), []
    for workers in (1, 2):
        train, heldout = tmp_path / f"{workers}.gz", tmp_path / f"h{workers}.txt"
        counts = extract_corpus(
            [path],
            str(train),
            options=Options(heldout_fraction=0.2),
            heldout_output_file=str(heldout),
            num_workers=workers,
        )
        found.append((train.read_bytes(), heldout.read_bytes(), counts))
    assert found[0] == found[1]
    assert not list(tmp_path.glob("*.tmp*"))


def test_held_out_documents_are_whole_and_chosen_by_content(tmp_path):
    path = many_documents(tmp_path)
    train, heldout = tmp_path / "t", tmp_path / "h"
    counts = extract_corpus(
        [path],
        str(train),
        options=Options(heldout_fraction=0.2),
        heldout_output_file=str(heldout),
    )
    assert counts.documents + counts.heldout_documents == counts.documents_read == 211
    assert 20 < counts.heldout_documents < 65  # Binomial(211, 0.2): 42.2 +- 5.8.
    held = heldout.read_text().split("\n\n")[:-1]
    kept = train.read_text().split("\n\n")[:-1]
    assert not set(held) & set(kept)
    for document in held + kept:
        assert len(set(document.split("\n"))) == 1
    # Whatever stands beside it, a document falls to the same side.
    documents = pathlib.Path(path).read_text().split("</doc>\n")[:-1]
    pathlib.Path(path).write_text("".join(f"{d}</doc>\n" for d in reversed(documents)))
    extract_corpus(
        [path],
        str(tmp_path / "t2"),
        options=Options(heldout_fraction=0.2),
        heldout_output_file=str(tmp_path / "h2"),
    )
    assert set((tmp_path / "h2").read_text().split("\n\n")[:-1]) == set(held)
    # Of more is held out what is held out of less, and all of all.
    for document in (str(number).encode() for number in range(211)):
        assert not is_held_out(document, 0.0) and is_held_out(document, 1.0)
        assert is_held_out(document, 0.5) >= is_held_out(document, 0.2)


def test_limits_of_documents(tmp_path):
    path = many_documents(tmp_path)
    assert extracted(tmp_path, path, max_documents=3).count("") == 3
    lines = extracted(tmp_path, path, min_document_sentences=7)
    assert lines.count("") == 211 // 7


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("w", '<doc id="1" title="T">\nText.\n', "w:1: <doc> without </doc>"),
        ("w", '<doc id="1">\na\n<doc id="2">\n', "w:3: <doc> inside the <doc> of line 1"),
        ("w", '<doc id="1">\na\n</doc>\nstray\n', "w:4: expected <doc id=...>"),
        ("w", b'<doc id="1">\nT\na\xe9z\n</doc>\n', "w:3: byte 2 is not UTF-8 (0xe9"),
        ("t.txt", b"One.\n\nTwo \xff.\n", "t.txt:3: byte 5 is not UTF-8 (0xff"),
        ("t.txt", "One.".encode("utf-16"), "t.txt:1: expected UTF-8, got UTF-16"),
        ("j", '{"text": "a"}\n{"text": \n', "j:2: broken JSON"),
        ("j", '{"text": "a"}\n\n{"body": "b"}\n', "j:3: no field 'text'"),
        ("j", '{"text": 5}\n', "j:1: field 'text': expected text, got int"),
        ("j", '{"text": "a"}\n[1]\n', "j:2: expected a JSON object, got list"),
        ("j.json", '[{"text": "a"}]', "j.json:1: expected JSON lines"),
        ("j", '{"text": "a"}\n{"text": ' + "9" * 5000 + "}\n", "j:2: JSON cannot be read: Exceeds"),
        ("j", '{"text": ' + "[" * 100_000 + "\n", "j:1: JSON cannot be read: maximum recursion"),
        ("t.txt", " \n\n", "no documents with text"),
    ],
)
def test_bad_input_is_named(tmp_path, name, data, expected):
    path = write(tmp_path / name, data)
    with pytest.raises(ValueError) as caught:
        extracted(tmp_path, path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]  # No half-written output.


def test_broken_gzip_is_named(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"One sentence.\n" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"a\.txt\.gz:\d+: cannot read further"):
        extracted(tmp_path, str(path))
    path.write_bytes(b"One sentence.")
    with pytest.raises(ValueError, match=r"a\.txt\.gz:1: cannot read further"):
        extracted(tmp_path, str(path))


def test_bad_bytes_can_be_replaced(tmp_path):
    path = write(tmp_path / "t.txt", b"Two \xff ends.\n")
    assert extracted(tmp_path, path, decode_errors="replace") == ["Two \ufffd ends.", ""]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "xml"}, "format: expected"),
        ({"text_documents": "line"}, "text_documents: expected"),
        ({"heldout_fraction": 0.1}, "belong together"),
        ({"sentence_splitter": "nothing"}, "expected module:function"),
        ({"sentence_splitter": "json:nothing"}, "json:nothing"),
        ({"max_document_bytes": 3}, "max_document_bytes=3"),
        ({"join_lines": True, "text_documents": "blank_line"}, "join_lines"),
    ],
)
def test_bad_options_are_named(tmp_path, changes, expected):
    path = write(tmp_path / "t.txt", "One sentence.\n")
    with pytest.raises(ValueError, match=expected):
        extracted(tmp_path, path, **changes)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("wiki", '<doc id="1" title="T">\nT\n' + "More.\n" * 30 + "</doc>\n"),
        ("lines.jsonl", '{"text": "Short."}\n{"text": "' + "Long. " * 30 + '"}\n'),
        ("text.txt", "One.\n" * 40),
    ],
)
def test_documents_that_are_too_long_are_named_in_every_format(tmp_path, name, data):
    path = write(tmp_path / name, data)
    assert extracted(tmp_path, path, max_document_bytes=1000)
    with pytest.raises(ValueError, match=rf"{name}:\d+: .*max_document_bytes=100"):
        extracted(tmp_path, path, max_document_bytes=100)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("It is {{convert|3|km}} long.", "It is  long."),
        ("The @@@bold@@@ and @@slanted@@ words.".replace("@", "'"), "The bold and slanted words."),
        ("See [[File:x.jpg|thumb|a picture]] there.", "See  there."),
        (
            "Call main() and x[0]() of C++ (; ) or Rust (), not f(a).",
            "Call main() and x[0]() of C++ or Rust, not f(a).",
        ),
        ("Лев () and 東京（、）, Rome(;), are names.", "Лев and 東京, Rome, are names."),
    ],
)
def test_markup_that_the_extractor_left_is_taken_out(line, expected):
    assert " ".join(clean_wiki_line(line).split()) == " ".join(expected.split())


def test_missing_input_and_overwritten_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="matches no file"):
        expand_inputs([str(tmp_path / "*.txt")])
    path = write(tmp_path / "t.txt", "One.")
    with pytest.raises(ValueError, match="is also an input"):
        extract_corpus([path], path)
    assert pathlib.Path(path).read_text() == "One."
    # By other names of the same file, and where it is the held-out output.
    link, other = tmp_path / "link", f"{tmp_path}/x/../t.txt"
    (tmp_path / "x").mkdir()
    link.symlink_to(path)
    options = Options(heldout_fraction=0.5)
    for name in (str(link), other):
        with pytest.raises(ValueError, match="is also an input"):
            extract_corpus([path], name)
        with pytest.raises(ValueError, match="is also an input"):
            extract_corpus([path], str(tmp_path / "o"), options=options, heldout_output_file=name)
    assert pathlib.Path(path).read_text() == "One."


def test_script(tmp_path):
    write(tmp_path / "wiki_00", WIKI)
    done = script("--input_file=wiki_*", "--output_file=out/corpus.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/corpus.txt").read_text().split("\n")[:-1] == WIKI_LINES
    assert "out/corpus.txt: 2 documents, 7 sentences" in done.stdout
    assert "1 had no text" in done.stdout

    write(tmp_path / "bad", b'<doc id="1">\n\xe9\n</doc>\n')
    done = script("--input_file=bad", "--output_file=o", "--num_workers=2", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("extract_corpus: bad:2: byte 1")


def test_script_warns(tmp_path):
    write(tmp_path / "book.txt", "It was a dark\nand stormy night when\n" * 30)
    done = script("--input_file=book.txt", "--output_file=o", "--num_workers=1", cwd=tmp_path)
    assert "--join_lines" in done.stdout
    assert "one document" in done.stdout


def test_workers_do_not_load_tensorflow():
    code = (
        "import sys, data_prep.corpus.extraction as e\n"
        "e.process_batch([e.RawDocument('a', 1, 'text', b'One. Two.')], e.Options())\n"
        "sys.exit(bool({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_options_are_flags():
    raw = RawDocument("p", 1, "text", b"A sentence that stays.")
    assert process_batch([raw], Options())[0] == b"A sentence that stays.\n\n"
    names = {field.name for field in dataclasses.fields(Options)}
    values = flags.FlagValues()
    define(extraction.CommandOptions, values)
    for name in names - {"fragment_words"}:
        assert name in values, name


def test_real_wikipedia(tmp_path, shared_data):
    output = tmp_path / "wiki.txt"
    counts = extract_corpus(
        [str(shared_data / "corpus/wikipedia_en_extract.txt.gz")], str(output), max_documents=40
    )
    assert counts.documents_read == 40
    sentences = [line for line in output.read_text(encoding="utf-8").splitlines() if line]
    assert len(sentences) == counts.sentences > 4000
    for leftover in ("</", "<doc", "&amp;", "()", "(,", "[[Category", "{|"):
        assert not any(leftover in sentence for sentence in sentences), leftover
    lengths = sorted(map(len, sentences))
    assert 80 < lengths[len(lengths) // 2] < 170  # A median sentence of English prose.


# === Languages ===


def article(*lines: str) -> str:
    return '<doc id="1" url="u" title="T">\nT\n\n' + "\n".join(lines) + "\n</doc>\n"


@pytest.mark.parametrize("code", LANGUAGES)
def test_sentences_of_every_script_are_kept(tmp_path, code):
    """A line a sentence, ends and closers included; headings go, as in English."""
    language = LANGUAGES[code]
    first, second, third = language.sentences
    quoted = f"{language.sentences[0]}」" if code in ("ja", "zh") else f"« {first} »"
    heading = first.split(" ")[0][:4].rstrip(".")
    lines = [quoted, second, third] if language.marks_ends else [first]
    found = extracted(tmp_path, write(tmp_path / "w", article(heading, *lines)))
    assert " ".join(found).split() == " ".join(lines).split()
    found = extracted(tmp_path, write(tmp_path / "w", article(language.paragraph)), language=code)
    assert found == [*(language.sentences if language.marks_ends else [language.paragraph]), ""]
    found = extracted(tmp_path, write(tmp_path / "t.txt", language.paragraph))
    if language.marks_ends and code != "el":  # whose question mark is a semicolon in English
        assert found == [*language.sentences, ""]


@pytest.mark.parametrize(
    "line",
    [
        "犬が笑う。」",
        "犬が笑う。）",
        "犬（猫）が笑う。』）",
        "Il rit. »",
        "„Er lacht.“",
        "يضحك الكلب.\u200f",  # an invisible sign of direction at the end
        "\u2067کتا ہنستا ہے۔\u2069",
        "ที่สุดของเรื่อง๛",
        "Γελάει ο σκύλος;",
        "他笑了……",
    ],
)
def test_ends_and_closers_of_sentences(line):
    assert scripts.ends_sentence(line)
    assert not scripts.ends_sentence(line.rstrip("。」）』.»“۔\u2069\u200f๛;… "))


def test_length_in_scripts_without_spaces():
    for line, words in (("one two three", 3), ("Ärger und Spaß", 3), ("歴史と文化", 1)):
        assert scripts.has_words(line, words) and not scripts.has_words(line, words + 1)
    assert scripts.has_words("文" * 24, 8) and not scripts.has_words("文" * 23, 8)
    assert scripts.has_words("ก" * 24, 8) and not scripts.has_words("ก" * 23 + "็" * 9, 8)


def test_dropped_characters_are_counted_and_told(tmp_path):
    path = write(tmp_path / "w", article("歴史と文化", "— * —", "犬が笑う。猫も笑う。"))
    counts = extract_corpus([path], str(tmp_path / "out"))
    assert (counts.characters, counts.fragment_characters) == (18, 5)
    assert counts.wordless_characters == 3
    report = "\n".join(extraction.report_lines(counts, 1.0, "out", ""))
    assert "warning: 44.4% of 18 characters were dropped: 5 in headings" in report
    assert "--nodrop_fragments" in report and "3 in lines without a letter" in report
    path = write(tmp_path / "w", article("歴史と文化"))
    with pytest.raises(ValueError, match=r"100.0% of 5 .*headings.*--nodrop_fragments"):
        extract_corpus([path], str(tmp_path / "out"))


def test_documents_and_pieces_that_are_dropped_are_counted(tmp_path):
    write(tmp_path / "my_halves.py", "def split(text):\n    return ['…'] + text.split('.')[:1]\n")
    path = write(tmp_path / "t.txt", "One two. Three.\n")
    sys.path.append(str(tmp_path))
    counts = extract_corpus(
        [path], str(tmp_path / "o"), options=Options(sentence_splitter="my_halves:split")
    )
    assert (counts.characters, counts.wordless_characters) == (13, 7)
    write(tmp_path / "u.txt", "One. Two. Three.\n")
    counts = extract_corpus(
        [path, str(tmp_path / "u.txt")],
        str(tmp_path / "o"),
        options=Options(min_document_sentences=3),
    )
    assert counts.short_document_characters == 13


def test_what_wiki_markup_leaves_in_other_scripts():
    assert clean_wiki_line("東京（、 ）は都です。") == "東京は都です。"
    assert clean_wiki_line("東京（、とうきょう）は都です。") == "東京（とうきょう）は都です。"
    assert clean_wiki_line("القاهرة ، ، مدينة") == "القاهرة، مدينة"


def test_hard_wrapped_lines_of_scripts_without_spaces_or_case(tmp_path):
    path = write(tmp_path / "t.txt", "犬が\n笑う。\n\nकुत्ता\nहँसता है।\n\nวันนี้\nอากาศดี\n")
    assert extracted(tmp_path, path, join_lines=True) == [
        *("犬が笑う。", "कुत्ता हँसता है।", "วันนี้อากาศดี", "")
    ]
    path = write(tmp_path / "t.txt", "आज मौसम\nअच्छा है और हम\n" * 20)
    counts = extract_corpus([path], str(tmp_path / "o"))
    assert "--join_lines" in "\n".join(extraction.report_lines(counts, 1.0, "o", ""))
    for language in LANGUAGES.values():
        path = write(tmp_path / "t.txt", "\n".join(language.sentences * 10))
        assert extract_corpus([path], str(tmp_path / "o")).text_lines_inside == 0


def test_long_runs_of_marks_take_no_time():
    run = "\u0f0d" * 1_000_000
    for end in ("", ".", " ”", run + "."):
        assert scripts.cut_passed_over(f"\u0f40{run}{end}") == [f"\u0f40{run}{end}"]
    assert scripts.cut_passed_over(f"\u0f40{run} \u0f41") == [f"\u0f40{run}", "\u0f41"]


def test_long_sentences_can_be_cut(tmp_path):
    thai = "".join(LANGUAGES["th"].sentences)
    path = write(tmp_path / "t.txt", thai * 20 + " ไหม " + "a" * 7 + "\nOne two.\n")
    counts = extract_corpus([path], str(tmp_path / "o"))
    report = "\n".join(extraction.report_lines(counts, 1.0, "o", ""))
    assert "--max_sentence_characters" in report
    lines = extracted(tmp_path, path, max_sentence_characters=100)
    assert max(map(len, lines)) <= 100 and lines[-2:] == ["One two.", ""]
    assert "".join("".join(lines).split()) == "".join(pathlib.Path(path).read_text().split())
    assert not any(unicodedata.category(line[0])[0] == "M" for line in lines if line)
    assert scripts.cut_long("one two three", 7) == ["one two", "three"]
    counts = extract_corpus(
        [path], str(tmp_path / "o"), options=Options(max_sentence_characters=100)
    )
    assert not counts.long_sentence_characters


def test_the_command_on_spark(monkeypatch, capsys):
    """What it is told; the runner itself has tests of its own."""
    options = CommandOptions(
        ("a*", "b"),
        "out.txt",
        "held.txt",
        runner="spark",
        spark_master="local[2]",
        num_workers=3,
        extraction=Options(heldout_fraction=0.5),
    )
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "data_prep.corpus.spark_extraction", None)
        patched.delattr("data_prep.corpus.spark_extraction", raising=False)
        with pytest.raises(
            ValueError, match=r"runner: spark needs Apache Spark: .*bert-tf\[spark\]"
        ):
            extraction.run(options)
    given = []

    def extract(paths, output_file, **arguments):
        given.append((paths, output_file, arguments))
        return extraction.Counts(documents=2, sentences=5, bytes=1_300_000, heldout_documents=1)

    stand_in = types.SimpleNamespace(extract_corpus=extract)
    monkeypatch.setitem(sys.modules, "data_prep.corpus.spark_extraction", stand_in)
    monkeypatch.setattr("data_prep.corpus.spark_extraction", stand_in, raising=False)
    extraction.run(options, ["--spark.executor.memory=4g"])
    assert given == [
        (
            ("a*", "b"),
            "out.txt",
            {
                "options": options.extraction,
                "heldout_output_file": "held.txt",
                "master": "local[2]",
                "num_workers": 3,
                "spark_arguments": ["--spark.executor.memory=4g"],
                "show_progress": True,
            },
        )
    ]
    printed = capsys.readouterr().out
    assert "out.txt: 2 documents, 5 sentences, 1.3 MB" in printed and "held.txt: 1 doc" in printed
