"""Text of dumps, JSON lines and plain files as one sentence a line."""

import bz2
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import html
import importlib
import itertools
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

from bert_tf.files import (
    absolute,
    check_output,
    expand,
    open_file,
    sha256,
    size_of,
    write_whole,
)
from bert_tf.options import check, option
from data_prep.cluster.command import needing, spark_master_option
from data_prep.corpus import scripts
from data_prep.corpus.text_files import check_name
from data_prep.processes.progress import Progress
from data_prep.processes.worker_pool import WorkerPool, available_cores

FORMATS = ("wikiextractor", "jsonl", "text")
LONG_SENTENCE_CHARACTERS = 500  # some 125 tokens: a sequence of 128 holds no more
_SHARE_TO_WARN = 0.1
_BATCH_BYTES = 1 << 20
_Lines = Iterator[tuple[int, bytes]]  # numbered from 1

_DOC_OPEN = re.compile(rb"^<doc\s+id=")
_DOC_TITLE = re.compile(r'\btitle="(.*)"\s*>\s*$')
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Tags that wiki text uses; an unknown `<word>` is left alone, for it may be text ("#include <x>").
_TAG = re.compile(
    r"</?(?:abbr|b|big|blockquote|br|center|chem|cite|code|div|em|font|gallery|hiero|hr|i|imagemap"
    r"|includeonly|ins|kbd|li|mapframe|math|ol|noinclude|nowiki|onlyinclude|p|poem|pre|ref"
    r"|references|s|samp|score|section|small|source|span|strike|strong|sub|sup|syntaxhighlight"
    r"|table|tbody|td|templatestyles|th|timeline|tr|tt|u|ul|var)(?:\s[^<>]*|/)?>",
    re.IGNORECASE,
)
_FILE_LINK = re.compile(r"\[\[(?:File|Image|Category):[^\[\]]*\]\]", re.IGNORECASE)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
# Not "main()", which is code, as what ends in ASCII right before its brackets is taken to be: what
# was a template has a space there.
_EMPTY_BRACKETS = re.compile(r"\s*[(（](?!(?<=[A-Za-z0-9_\]>]\()\))[\s,;:/–—、，；：،؛፣፤-]*[)）]")
_BRACKET_LEFTOVER = re.compile(r"([(（])(?:\s*[,;:、，；：،؛፣፤])+\s*")
_DOUBLE_PUNCTUATION = re.compile(r"\s+([,;،؛፣፤])(?:\s*[,;،؛፣፤])*")
_BULLET = re.compile(r"^(?:BULLET::::[-*#:;.\d]*|[*#:;]+(?=\s)|[•·])\s*")
# A date or a sound file that was a template leaves its comma: "It fell. , nobody lives there."
_LEADING_PUNCTUATION = re.compile(r"(^|[.!?][\"')]?\s)\s*[,;]\s+")
_BRACKETS, _SPACED_PUNCTUATION = re.compile("[(（]"), re.compile(" [,;،؛፣፤]")
_TABLE_LINE = re.compile(r"^(?:\{\||\|\}|\||!\s)")
_HEADING_LINE = re.compile(r"^(?:=+[^=].*=+|#+\s.*)$")
_WORD = re.compile(r"\w")


@dataclasses.dataclass(frozen=True)
class Options:
    """How documents are turned into sentences."""

    format: str = option(
        "auto", "Format of the input files.", choices=("auto", *FORMATS), group="data"
    )
    text_field: str = option("text", "Field of a JSON line with the text.")
    text_documents: str = option(
        "file",
        "One document of plain text: a whole file, or the lines between two empty lines.",
        choices=("file", "blank_line"),
    )
    join_lines: bool = option(
        False, "For hard-wrapped text: the lines between two empty lines are one paragraph."
    )
    unescape_html: bool = option(True, "Turn HTML entities to characters.")
    # The next three are for articles, which WikiExtractor writes.
    clean_wiki: bool = option(True, "Remove leftovers of wiki markup.", group="cleaning")
    drop_titles: bool = option(True, "Drop the title line of an article.")
    drop_fragments: bool = option(
        True, "Drop headings and list items of articles: short lines that do not end as a sentence."
    )
    fragment_words: int = 8  # a line of fewer is short; 3 letters are one in scripts without spaces
    max_sentence_characters: int = option(
        0,
        "Cut longer sentences, at a space where there is one; 0 for never. For scripts in which "
        "nothing marks where sentences end, such as Thai.",
        minimum=0,
        group="sentences",
    )
    min_document_sentences: int = option(
        1, "Drop documents with fewer sentences.", minimum=1, group="documents"
    )
    max_document_bytes: int = option(
        256 << 20, "A longer document is an error, since a document is held in memory.", minimum=1
    )
    decode_errors: str = option(
        "strict",
        "What to do with bytes that are not UTF-8.",
        choices=("strict", "replace", "ignore"),
        group="data",
    )
    language: str = option("en", "Language code for sentencex.", group="sentences")
    sentence_splitter: str = option(
        "", "module:function from a paragraph to a list of sentences; empty means sentencex."
    )
    heldout_fraction: float = option(
        0.0,
        "Fraction of documents held out, whole, chosen by a hash of their bytes.",
        minimum=0,
        below=1,
        group="output",
    )


@dataclasses.dataclass(frozen=True)
class CommandOptions:
    """Options of the command."""

    input_file: tuple[str, ...] = option(
        None, "Input files or globs, comma-separated.", required=True, path="any", group="data"
    )
    output_file: str = option(
        None, "Output text file (.gz compresses).", required=True, path="any", group="output"
    )
    heldout_output_file: str | None = option(
        None, "Output text file for held-out documents.", path="any"
    )
    max_documents: int | None = option(
        None, "Read at most so many documents.", minimum=1, group="data"
    )
    num_workers: int = option(0, "Worker processes; 0 for one per core.", minimum=0, group="work")
    runner: str = option(
        "local",
        "local for processes of this machine, or spark for Apache Spark, which takes the flags "
        "that are not known here.",
        choices=("local", "spark"),
    )
    spark_master: str | None = spark_master_option()
    extraction: Options = dataclasses.field(default_factory=Options)


@dataclasses.dataclass(frozen=True)
class RawDocument:
    """Undecoded document and where it stands: `data` begins at line `line` of file `path`."""

    path: str
    line: int
    format: str
    data: bytes
    header: bytes = b""


@dataclasses.dataclass(frozen=True)
class FilePart:
    """The documents of a file that begin within some of its bytes.

    Attributes:
        start: offset of the first byte.
        end: offset behind the last.
    """

    start: int
    end: int


@dataclasses.dataclass
class Counts:
    """What was read and written; `bytes` are of UTF-8 text written, characters without white space.

    Attributes:
        characters: of the text, once markup and titles are gone.
        fragment_characters: of headings and list items that were dropped.
        wordless_characters: of lines and sentences that were dropped since they have no letter.
        short_document_characters: of documents that were dropped.
        long_sentence_characters: of sentences longer than `LONG_SENTENCE_CHARACTERS`.
        text_lines: lines of plain text that were taken for paragraphs.
        text_lines_inside: those that begin in the middle of a sentence.
    """

    documents_read: int = 0
    documents_empty: int = 0
    documents_dropped: int = 0
    documents: int = 0
    sentences: int = 0
    bytes: int = 0
    heldout_documents: int = 0
    heldout_sentences: int = 0
    heldout_bytes: int = 0
    characters: int = 0
    fragment_characters: int = 0
    wordless_characters: int = 0
    short_document_characters: int = 0
    long_sentence_characters: int = 0
    text_lines: int = 0
    text_lines_inside: int = 0

    def add(self, other: "Counts") -> None:
        """Add another's counts to these."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


# === Reading ===


def expand_inputs(patterns: Sequence[str]) -> list[str]:
    """Find the files that names and globs stand for.

    Args:
        patterns: file names or globs; `**` crosses folders.

    Returns:
        Paths, in the order of the patterns and sorted within each glob, without repetition.

    Raises:
        FileNotFoundError: when a pattern matches no file.
    """
    return list(dict.fromkeys(expand(patterns, "--input_file")))


@contextlib.contextmanager
def open_input(path: str) -> Iterator[tuple[Iterable[bytes], IO[bytes]]]:
    """Open a file: the decompressed stream, and the file itself (for progress)."""
    with open_file(path) as raw:
        check_name(path, raw.read(10), (".gz", ".bz2"))
        raw.seek(0)
        if path.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream, raw
        elif path.endswith(".bz2"):
            with bz2.BZ2File(raw) as stream:
                yield stream, raw
        else:
            yield raw, raw


def readable_lines(path: str, stream: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream; an error in a compressed file names the file and the line."""
    number = 0
    try:
        for number, line in enumerate(stream, 1):  # noqa: B007
            yield line
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path}:{number + 1}: cannot read further: {error}") from error


def _recognise(path: str, first_line: bytes) -> str:
    """Tell the format of a file by its first line that is not empty."""
    start = first_line.lstrip()
    if _DOC_OPEN.match(start):
        return "wikiextractor"
    if start.startswith(b"{"):
        return "jsonl"
    stem = re.sub(r"\.(gz|bz2)$", "", path)
    if start.startswith(b"[") and stem.endswith((".json", ".jsonl")):
        raise ValueError(f"{path}:1: expected JSON lines (one object a line), got a JSON array")
    return "text"


def read_documents(
    path: str,
    options: Options,
    progress: Callable[[int], None] | None = None,
    part: FilePart | None = None,
) -> Iterator[RawDocument]:
    """Cut one file into documents without decoding them.

    Args:
        path: the file; .gz and .bz2 are decompressed.
        options: format and limits.
        progress: called with the bytes of the file that were read since its last call.
        part: of a file that is not compressed; else all of it. Lines are numbered from its first.

    Yields:
        Documents in the order of the file; empty documents too, so that they are counted.

    Raises:
        ValueError: naming file and line where the file is broken.
        OSError: where it cannot be read.
    """
    with open_input(path) as (stream, raw):
        numbered = enumerate(readable_lines(path, stream), 1)
        first_lines: list[tuple[int, bytes]] = []
        for number, line in numbered:
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            first_lines.append((number, line))
            if line.strip():
                break
        else:
            return  # Nothing but empty lines.
        if first_lines[-1][1].startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{path}:1: expected UTF-8, got UTF-16; convert the file first")
        kind = options.format
        if kind == "auto":
            kind = _recognise(path, first_lines[-1][1])

        if part is not None:
            yield from _CUTTERS[kind](path, _part_lines(raw, kind, options, part), options)
            return
        position = 0

        def advance() -> None:
            nonlocal position
            if progress:
                progress(raw.tell() - position)
                position = raw.tell()

        def lines() -> Iterator[tuple[int, bytes]]:
            yield from first_lines
            for number, line in numbered:
                if number % 1024 == 0:
                    advance()
                yield number, line

        yield from _CUTTERS[kind](path, lines(), options)
        advance()


def _begins_part(line: bytes, kind: str, options: Options) -> bool:
    """Tell whether a part may begin with a line: no document goes on over it."""
    if kind == "wikiextractor":
        return _DOC_OPEN.match(line) is not None
    if kind == "text":  # a document after an empty line, or the whole file
        return options.text_documents == "blank_line" and not line.strip()
    return True


def _part_lines(stream: IO[bytes], kind: str, options: Options, part: FilePart) -> _Lines:
    """Yield the lines from the first in the part that one may begin with up to the next part's."""
    stream.seek(max(part.start - 1, 0))
    if part.start:
        stream.readline()  # begins before, if it is but a line end
    begin, belongs = stream.tell(), part.start == 0
    for number, line in enumerate(stream, 1):
        if begin >= part.end and (not belongs or _begins_part(line, kind, options)):
            return
        belongs = belongs or _begins_part(line, kind, options)
        if belongs:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if begin == 0 else line
        begin += len(line)


def _too_long(path: str, line: int, options: Options) -> ValueError:
    return ValueError(
        f"{path}:{line}: a document longer than --max_document_bytes={options.max_document_bytes} "
        "begins here; for plain text with empty lines between documents use "
        "--text_documents=blank_line"
    )


def _cut_wiki(path: str, lines: _Lines, options: Options) -> Iterator[RawDocument]:
    start, header, body, size = 0, b"", [], 0
    for number, line in lines:
        if _DOC_OPEN.match(line):
            if start:
                raise ValueError(
                    f"{path}:{number}: <doc> inside the <doc> of line {start}, which has no </doc>"
                )
            start, header, body, size = number, line, [], 0
        elif start and line.rstrip().endswith(b"</doc>"):
            body.append(line.rstrip()[: -len(b"</doc>")])
            yield RawDocument(path, start + 1, "wikiextractor", b"".join(body), header)
            start = 0
        elif start:
            body.append(line)
            size += len(line)
            if size > options.max_document_bytes:
                raise _too_long(path, start, options)
        elif line.strip():
            raise ValueError(f"{path}:{number}: expected <doc id=...>, got {line.strip()[:60]!r}")
    if start:
        raise ValueError(f"{path}:{start}: <doc> without </doc> before the end of the file")


def _cut_jsonl(path: str, lines: _Lines, options: Options) -> Iterator[RawDocument]:
    for number, line in lines:
        if len(line) > options.max_document_bytes:
            raise _too_long(path, number, options)
        if line.strip():
            yield RawDocument(path, number, "jsonl", line)


def _cut_text(path: str, lines: _Lines, options: Options) -> Iterator[RawDocument]:
    by_blank_line = options.text_documents == "blank_line"
    start, body, size = 1, [], 0
    for number, line in lines:
        if by_blank_line and not line.strip():
            if size:
                yield RawDocument(path, start, "text", b"".join(body))
            start, body, size = number + 1, [], 0
            continue
        body.append(line)
        size += len(line)
        if size > options.max_document_bytes:
            raise _too_long(path, start, options)
    if size:
        yield RawDocument(path, start, "text", b"".join(body))


_CUTTERS = {"wikiextractor": _cut_wiki, "jsonl": _cut_jsonl, "text": _cut_text}


# === One document ===


@functools.cache
def load_splitter(name: str, language: str = "en") -> Callable[[str], Sequence[str]]:
    """Return the function that splits a paragraph into sentences.

    Args:
        name: "module:function", or "" for sentencex (Wikimedia's rules for some 300 languages).
        language: language code for sentencex.

    Returns:
        Function from a paragraph (str) to its sentences (sequence of str).

    Raises:
        ValueError: when the name has no colon, or module or function do not exist.
    """
    if not name:
        import sentencex

        return lambda paragraph: [
            part
            for sentence in sentencex.segment(language, paragraph)
            for part in scripts.cut_passed_over(sentence)
        ]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ValueError(f"--sentence_splitter: expected module:function, got {name!r}")
    # A script's path begins with the script's folder: a user's module lies where they stand.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--sentence_splitter={name}: {error}") from error


def splitter_digest(name: str) -> str | None:
    """Return the SHA-256 of the module that a splitter of one's own is in; None of sentencex.

    Args:
        name: as for `load_splitter`, which has loaded it.
    """
    module = sys.modules.get(name.partition(":")[0]) if name else None
    path = getattr(module, "__file__", None)
    return sha256(path) if path and os.path.isfile(path) else None


def _unescape(text: str) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match.group()), text) if "&" in text else text


def clean_wiki_line(line: str) -> str:
    """Remove leftovers of markup from a line of WikiExtractor; "" where nothing remains."""
    line = line.strip()
    if _TABLE_LINE.match(line) or _HEADING_LINE.match(line):
        return ""
    line = _BULLET.sub("", line)
    if "<" in line:
        line = _TAG.sub(" ", line)
    if "[[" in line:
        line = _LINK.sub(r"\1", _FILE_LINK.sub("", line))
    if "{{" in line:
        line = _TEMPLATE.sub("", line)
    if "''" in line:
        line = re.sub("'{2,5}", "", line)
    if _BRACKETS.search(line):  # Pronunciations and coordinates leave "()" and "(; " behind.
        line = _BRACKET_LEFTOVER.sub(r"\1", _EMPTY_BRACKETS.sub("", line))
    line = _LEADING_PUNCTUATION.sub(r"\1", line)
    if _SPACED_PUNCTUATION.search(line):
        line = _DOUBLE_PUNCTUATION.sub(r"\1", line)
    return line.strip()


def _decode(document: RawDocument, options: Options) -> str:
    try:
        return document.data.decode("utf-8", errors=options.decode_errors)
    except UnicodeDecodeError as error:
        line = document.line + document.data.count(b"\n", 0, error.start)
        column = error.start - document.data.rfind(b"\n", 0, error.start)
        raise ValueError(
            f"{document.path}:{line}: byte {column} is not UTF-8 "
            f"(0x{document.data[error.start]:02x}, {error.reason}); "
            "convert the file, or use --decode_errors=replace"
        ) from error


def _text_of_json(document: RawDocument, options: Options) -> str:
    where = f"{document.path}:{document.line}"
    try:
        record = json.loads(_decode(document, options))
    except json.JSONDecodeError as error:
        hint = "; for plain text give --format=text" if options.format == "auto" else ""
        raise ValueError(
            f"{where}: broken JSON: {error.msg} at column {error.colno}{hint}"
        ) from error
    except (ValueError, RecursionError) as error:  # nested too deeply, or a number too long
        raise ValueError(f"{where}: JSON cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    if options.text_field not in record:
        raise ValueError(
            f"{where}: no field {options.text_field!r} (--text_field); "
            f"the fields are {', '.join(sorted(record)) or 'none'}"
        )
    text = record[options.text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: field {options.text_field!r}: expected text, got {type(text).__name__}"
        )
    # A lone surrogate (half of an escaped pair) cannot be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


def document_paragraphs(document: RawDocument, options: Options, counts: Counts) -> list[str]:
    """Return the cleaned paragraphs of one document in order, none empty; count what goes."""
    if document.format == "jsonl":
        text = _text_of_json(document, options)
    else:
        text = _decode(document, options)
    lines = text.split("\n")
    is_wiki = document.format == "wikiextractor"
    if is_wiki and options.drop_titles:
        header = document.header.decode("utf-8", errors="replace")
        title = _DOC_TITLE.search(header)
        first = next((i for i, line in enumerate(lines) if line.strip()), None)
        if title and first is not None:
            if _unescape(lines[first]).strip() == _unescape(title.group(1)).strip():
                lines[first] = ""
    if options.join_lines and not is_wiki:
        lines = map(scripts.join_wrapped, re.split(r"\n[ \t\r\f\v]*\n", text))
    paragraphs = []
    for line in lines:
        if not line or line.isspace():
            continue
        if options.unescape_html:
            line = _unescape(line)
        if is_wiki and options.clean_wiki:
            line = clean_wiki_line(line)
        line = " ".join(line.split())
        characters = scripts.count_characters(line)
        counts.characters += characters
        if not _WORD.search(line):
            counts.wordless_characters += characters
        elif is_wiki and options.drop_fragments and _is_fragment(line, options.fragment_words):
            counts.fragment_characters += characters
        else:
            paragraphs.append(line)
    return paragraphs


def _is_fragment(line: str, fragment_words: int) -> bool:
    return not scripts.has_words(line, fragment_words) and not scripts.ends_sentence(line)


def split_paragraph(
    paragraph: str, splitter: Callable[[str], Sequence[str]], max_characters: int = 0
) -> list[str]:
    """Split a paragraph into sentences; a piece without any word joins the one before it.

    Args:
        paragraph: the text.
        splitter: see `load_splitter`.
        max_characters: of a sentence; longer ones are cut. 0 for no limit.
    """
    sentences: list[str] = []
    for piece in splitter(paragraph):
        piece = " ".join(piece.split())
        if not piece:
            continue
        if _WORD.search(piece):
            sentences.append(piece)
        elif sentences:
            sentences[-1] += piece
    if max_characters:
        return [part for s in sentences for part in scripts.cut_long(s, max_characters)]
    return sentences


def is_held_out(data: bytes, fraction: float) -> bool:
    """Tell by a hash of its bytes whether a document is held out; equal ones stay together."""
    if fraction <= 0:
        return False
    value = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
    return value < fraction * 2.0**64


# === Batches of documents, in worker processes ===


def _is_inside(before: str, line: str) -> bool:
    """Tell whether a line goes on with the sentence of the line before it."""
    first = line[:1]
    if first.lower() != first.upper() and not "ა" <= first <= "ჿ":  # Georgian sets no capitals
        return first.islower()
    # Letters without case tell nothing; where sentences have no marks, nothing does.
    return (
        first.isalpha()
        and before != ""
        and not scripts.begins_unspaced(line)
        and not scripts.ends_sentence(before)
    )


def process_batch(batch: Sequence[RawDocument], options: Options) -> tuple[bytes, bytes, Counts]:
    """Turn documents into lines.

    Args:
        batch: documents.
        options: how.

    Returns:
        UTF-8 lines for training, UTF-8 lines held out, and the counts of both. Each document is
        followed by an empty line.
    """
    splitter = load_splitter(options.sentence_splitter, options.language)
    parts: tuple[list[str], list[str]] = ([], [])
    counts = Counts()
    for document in batch:
        counts.documents_read += 1
        paragraphs = document_paragraphs(document, options, counts)
        if document.format == "text" and not options.join_lines:
            counts.text_lines += len(paragraphs)
            counts.text_lines_inside += sum(map(_is_inside, ["", *paragraphs], paragraphs))
        sentences = [
            sentence
            for paragraph in paragraphs
            for sentence in split_paragraph(paragraph, splitter, options.max_sentence_characters)
        ]
        sizes = list(map(scripts.count_characters, sentences))
        counts.wordless_characters += sum(map(scripts.count_characters, paragraphs)) - sum(sizes)
        counts.long_sentence_characters += sum(n for n in sizes if n > LONG_SENTENCE_CHARACTERS)
        if not sentences:
            counts.documents_empty += 1
            continue
        if len(sentences) < options.min_document_sentences:
            counts.documents_dropped += 1
            counts.short_document_characters += sum(sizes)
            continue
        held_out = is_held_out(document.data, options.heldout_fraction)
        parts[held_out].extend(sentences)
        parts[held_out].append("")
        if held_out:
            counts.heldout_documents += 1
            counts.heldout_sentences += len(sentences)
        else:
            counts.documents += 1
            counts.sentences += len(sentences)
    train, heldout = ("".join(line + "\n" for line in part).encode("utf-8") for part in parts)
    counts.bytes, counts.heldout_bytes = len(train), len(heldout)
    return train, heldout, counts


class _Extractor:
    """What a worker process does: documents to lines."""

    def __init__(self, options: Options):
        self._options = options

    def process(self, batch: Sequence[RawDocument]) -> tuple[bytes, bytes, Counts]:
        return process_batch(batch, self._options)


def batches(documents: Iterable[RawDocument]) -> Iterator[list[RawDocument]]:
    """Put documents together for `process_batch`."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.data)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check(options: Options, output_file: str, heldout_output_file: str | None) -> None:
    check(options)
    if options.join_lines and options.text_documents == "blank_line":
        raise ValueError(
            "join_lines: empty lines cannot separate both paragraphs (join_lines) and documents "
            "(text_documents='blank_line')"
        )
    if bool(heldout_output_file) != (options.heldout_fraction > 0):
        raise ValueError(
            "heldout_output_file and heldout_fraction belong together: "
            f"got {heldout_output_file!r} and {options.heldout_fraction}"
        )
    load_splitter(options.sentence_splitter, options.language)  # A wrong name fails here, at once.


def check_outputs(output_file: str, heldout_output_file: str | None) -> list[str]:
    """Make sure that both files can be written, and are two; return their absolute paths."""
    outputs = {"output_file": output_file, "heldout_output_file": heldout_output_file}
    paths = [absolute(path) for path in outputs.values() if path]
    if len(set(paths)) < len(paths):
        raise ValueError(f"heldout_output_file: {heldout_output_file} is also the output_file")
    for name, path in outputs.items():
        if path:
            check_output(path, name)
    return paths


def extract_corpus(
    input_files: Sequence[str],
    output_file: str,
    *,
    options: Options | None = None,
    heldout_output_file: str | None = None,
    max_documents: int | None = None,
    num_workers: int = 1,
    show_progress: bool = False,
) -> Counts:
    """Write one sentence per line, with an empty line after each document.

    Args:
        input_files: names and globs of files; see the command's docstring for the formats.
        output_file: text file to write; compressed when it ends in .gz. An existing file is
            replaced once the new one is complete.
        options: how documents are read and split; by default `Options()`.
        heldout_output_file: where documents chosen by `options.heldout_fraction` go.
        max_documents: read at most so many documents.
        num_workers: worker processes; 1 works in this process. The output does not depend on it.
        show_progress: report on standard error.

    Returns:
        Counts of documents and sentences.

    Raises:
        ValueError: for bad options, and for bad input, naming file and line.
        OSError: for files that cannot be read or written.
        RuntimeError: a worker process died.
    """
    options = options or Options()
    paths = check_arguments(input_files, output_file, options, heldout_output_file)
    counts = Counts()
    total = sum(map(size_of, paths))
    with contextlib.ExitStack() as stack:
        stream, heldout_stream = stack.enter_context(write_whole(output_file)), None
        if heldout_output_file:
            heldout_stream = stack.enter_context(write_whole(heldout_output_file))
        progress = stack.enter_context(Progress("extract", total, "B", show=show_progress))
        pool = stack.enter_context(WorkerPool(num_workers, _Extractor, options))
        documents = itertools.islice(
            (x for path in paths for x in read_documents(path, options, progress.update)),
            max_documents,
        )
        for train, heldout, batch_counts in pool.map("process", zip(batches(documents))):
            stream.write(train)
            if heldout_stream:
                heldout_stream.write(heldout)
            counts.add(batch_counts)
        check_found(counts, paths)
    return counts


def check_arguments(
    input_files: Sequence[str], output_file: str, options: Options, heldout_output_file: str | None
) -> list[str]:
    """See before any work that it can be done; return the input files.

    Raises:
        ValueError: options contradict each other, or an output cannot be written or is an input.
        FileNotFoundError: a pattern matches no file.
    """
    _check(options, output_file, heldout_output_file)
    paths = expand_inputs(input_files)
    outputs = check_outputs(output_file, heldout_output_file)
    for path in paths:
        if absolute(path) in outputs:
            raise ValueError(f"output_file: {path} is also an input")
    return paths


def check_found(counts: Counts, paths: Sequence[str]) -> None:
    """See that there was text.

    Raises:
        ValueError: there was none.
    """
    if not counts.documents + counts.heldout_documents:
        raise ValueError(
            f"no documents with text in {len(paths)} input file(s), "
            f"the first being {paths[0]} ({counts.documents_read} were read"
            f"{'; ' if counts.characters else ''}{_losses(counts).removeprefix('warning: ')})"
        )


def run(options: CommandOptions, of_runner: Sequence[str] = ()) -> None:
    """Run the command; `of_runner` are the arguments for Apache Spark."""
    start = time.monotonic()
    if options.runner == "spark":
        if options.max_documents is not None:
            raise ValueError(
                "max_documents: counts the first ones, in one process; drop --runner=spark"
            )
        with needing("Apache Spark", "spark", options.runner):  # late: it is an extra
            from data_prep.corpus import spark_extraction
        counts = spark_extraction.extract_corpus(
            options.input_file,
            options.output_file,
            options=options.extraction,
            heldout_output_file=options.heldout_output_file,
            master=options.spark_master,
            num_workers=options.num_workers,
            spark_arguments=of_runner,
            show_progress=True,
        )
    else:
        counts = extract_corpus(
            options.input_file,
            options.output_file,
            options=options.extraction,
            heldout_output_file=options.heldout_output_file,
            max_documents=options.max_documents,
            num_workers=options.num_workers or available_cores(),
            show_progress=True,
        )
    seconds = time.monotonic() - start
    heldout = options.heldout_output_file or ""
    for line in report_lines(counts, seconds, options.output_file, heldout):
        print(line)


def report_lines(counts: Counts, seconds: float, output_file: str, heldout: str) -> list[str]:
    """Return what the script prints at the end, warnings included."""
    lines = [
        f"{output_file}: {counts.documents:,} documents, {counts.sentences:,} sentences, "
        f"{counts.bytes / 1e6:.1f} MB"
    ]
    if heldout:
        lines.append(
            f"{heldout}: {counts.heldout_documents:,} documents, "
            f"{counts.heldout_sentences:,} sentences, {counts.heldout_bytes / 1e6:.1f} MB"
        )
    lines.append(
        f"read {counts.documents_read:,} documents in {seconds:.1f} s; {counts.documents_empty:,} "
        f"had no text, {counts.documents_dropped:,} too few sentences"
    )
    if losses := _losses(counts):
        lines.append(losses)
    long = counts.long_sentence_characters / max(counts.characters, 1)
    if long > _SHARE_TO_WARN:
        lines.append(
            f"warning: {long:.0%} of the characters are in sentences of more than "
            f"{LONG_SENTENCE_CHARACTERS:,}, which are cut off when sequences are made of them; see "
            "--language and --sentence_splitter, or cut them with --max_sentence_characters"
        )
    if heldout and not counts.heldout_documents:
        lines.append("warning: no document was held out; raise --heldout_fraction")
    if counts.documents + counts.heldout_documents == 1:
        lines.append(
            "warning: the whole input is one document; a random next sentence cannot come from "
            "another (for empty lines between documents use --text_documents=blank_line)"
        )
    if counts.text_lines >= 20 and counts.text_lines_inside > 0.25 * counts.text_lines:
        lines.append(
            "warning: many lines begin in the middle of a sentence; for hard-wrapped text use "
            "--join_lines"
        )
    return lines


def _losses(counts: Counts) -> str:
    """Say what became of the characters that are not in the output; "" where none are missing."""
    lost = {
        "in headings and list items (--nodrop_fragments keeps them)": counts.fragment_characters,
        "in lines without a letter or digit": counts.wordless_characters,
        "in documents of too few sentences": counts.short_document_characters,
    }
    total = sum(lost.values())
    if not total:
        return ""
    parts = ", ".join(f"{count:,} {where}" for where, count in lost.items() if count)
    share = total / counts.characters
    warning = "warning: " if share > _SHARE_TO_WARN else ""
    return f"{warning}{share:.1%} of {counts.characters:,} characters were dropped: {parts}"
