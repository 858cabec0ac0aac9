"""Prose from the documentation of the installed Python."""

import ast
import contextlib
import dataclasses
import inspect
import os
import re
import sys
import sysconfig
import time
import types
import warnings
from collections.abc import Iterator

from bert_tf.files import write_whole
from bert_tf.options import option
from data_prep.corpus.extraction import (
    Counts,
    check_outputs,
    is_held_out,
    load_splitter,
    split_paragraph,
)

# Folders without documentation, or not of the standard library.
_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "lib-dynload", "site-packages", "test", "tests"}
)

_COMMENT = re.compile(r"^[ \t]*#+:?[ \t]?(.*)$")
_UNDERLINE = re.compile(r"^\s*([=*^~#.+_-])\1{2,}\s*$")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)])\s+")
_SIGNATURE = re.compile(
    r"^[\w.]+\(.*\)(?:\s*(?:->|=>|:).*)?$|->|::=|^(?:class|def|@|Source code)\b"
)
_CODE_LINE = re.compile(r"^\s*(?:>>>|\.\.\.(?:\s|$)|\$ |% |import \w|from \w+ import)")
_ROLE = re.compile(r":\w+:`~?([^`<]+)(?:<[^`]*>)?`")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(\w(?:[^*\n]*\w)?)\1(?![\w*])")
_CODE_CHARACTER = re.compile(r"[=<>{}\[\]|\\;#%^~+*/@$&_]")
_PLAIN_WORD = re.compile(r"[\"'(]*[A-Za-z][a-z]*(?:['’-][a-z]+)*[\"')]*[.,:;!?]*$")
_FUNCTION_WORD = re.compile(
    r"\b(?:a|an|and|are|as|at|be|been|but|by|can|for|from|has|have|if|in|is|it|its|may|must|no|not"
    r"|of|on|only|or|should|so|than|that|the|their|then|there|these|they|this|to|use|was|we|when"
    r"|which|will|with|you)\b",
    re.IGNORECASE,
)
_LEGAL = re.compile(r"copyright|all rights reserved|\(c\)|licen[sc]ed? (?:to|under)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class CommandOptions:
    """Options of the command."""

    output_file: str = option(
        None, "Output text file (.gz compresses).", required=True, path="any", group="output"
    )
    heldout_output_file: str | None = option(
        None, "Output text file for held-out documents.", path="any"
    )
    heldout_fraction: float = option(
        0.05, "Fraction of documents held out, by name.", minimum=0, below=1
    )


def _is_prose(text: str) -> bool:
    """Tell whether a paragraph reads as English rather than as code, a table or a list of names."""
    words = text.split()
    if len(words) < 4 or len(_CODE_CHARACTER.findall(text)) > 0.04 * len(text):
        return False
    plain = sum(bool(_PLAIN_WORD.match(word)) for word in words)
    function_words = len(_FUNCTION_WORD.findall(text))
    return plain >= 0.65 * len(words) and function_words >= max(1, len(words) // 12)


def prose_paragraphs(text: str) -> list[str]:
    """Find the paragraphs of prose in a docstring, a topic or a block of comments.

    Args:
        text: dedented text, wrapped by hand, perhaps with reStructuredText markup.

    Returns:
        Paragraphs, each on one line; list items are paragraphs of their own. Examples, literal
        blocks, signatures, headings and tables are left out.
    """
    blocks: list[list[str]] = [[]]
    lines = text.expandtabs().split("\n")
    literal_indent = -1  # Inside the literal block that "::" opens at this indent.
    awaits_literal = False
    previous_indent = 0
    in_example = False
    for line in lines:
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if not stripped or _UNDERLINE.match(line):
            in_example = False
            if blocks[-1]:
                # The line above an underline is a heading.
                if stripped and len(blocks[-1]) == 1:
                    blocks[-1] = []
                else:
                    awaits_literal = blocks[-1][-1].endswith("::")
                    blocks.append([])
            continue
        if awaits_literal:
            literal_indent = indent if indent > previous_indent else -1
            awaits_literal = False
        if literal_indent >= 0:
            if indent >= literal_indent:
                continue
            literal_indent = -1
        if _SIGNATURE.search(stripped) or _CODE_LINE.match(line):
            blocks.append([])
            # What an example prints follows it, up to the next empty line.
            in_example = in_example or bool(_CODE_LINE.match(line))
            previous_indent = indent
            continue
        if in_example:
            continue
        is_item = bool(_BULLET.match(line))
        # A line that goes further in opens a literal block, an item's text or a definition.
        if is_item or (blocks[-1] and indent > previous_indent + 1 and not _in_item(blocks[-1])):
            blocks.append([])
        blocks[-1].append(line.rstrip())
        previous_indent = indent
    paragraphs = []
    for block in blocks:
        if not block:
            continue
        joined = " ".join(_BULLET.sub("", line).strip() for line in block)
        # "built-\nin" was one word; "- in" after joining.
        joined = re.sub(r"(?<=[a-z])- (?=[a-z])", "-", joined)
        joined = _ROLE.sub(r"\1", joined).replace("``", '"').replace("::", ":")
        joined = _EMPHASIS.sub(r"\2", joined).replace("`", "'")
        joined = " ".join(joined.split())
        if _is_prose(joined) and not _LEGAL.search(joined):
            paragraphs.append(joined)
    return paragraphs


def _in_item(block: list[str]) -> bool:
    return bool(_BULLET.match(block[0]))


def source_texts(source: str) -> list[str]:
    """Find the docstrings and blocks of comments of a module, in the order of its source.

    Args:
        source: Python source.

    Returns:
        Dedented texts.

    Raises:
        SyntaxError: when this Python cannot parse it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Old sources hold invalid escapes.
        tree = ast.parse(source)
    texts: list[tuple[int, str]] = []
    in_string: set[int] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                texts.append((node.body[0].lineno, docstring))
        if isinstance(node, ast.Constant | ast.JoinedStr):
            in_string.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        # What stands on one line cannot hide a comment in a string: most expressions end here.
        pending += [
            child
            for child in ast.iter_child_nodes(node)
            if (getattr(child, "end_lineno", None) or 1) > getattr(child, "lineno", 0)
        ]
    block: list[str] = []
    for number, line in enumerate([*source.split("\n"), ""], 1):
        comment = _COMMENT.match(line) if number not in in_string else None
        if comment and not line.startswith("#!"):
            block.append(comment.group(1))
        elif block:
            # One line of comment is a note on the code beside it, not prose.
            if len(block) > 1:
                texts.append((number, inspect.cleandoc("\n".join(["", *block]))))
            block = []
    return [text for _, text in sorted(texts, key=lambda item: item[0])]


def _object_texts(module: types.ModuleType) -> list[str]:
    """Return the docstrings of a built-in module, its functions, its types and their methods."""
    texts = [module.__doc__ or ""]
    for _, value in sorted(vars(module).items()):
        texts.append(getattr(value, "__doc__", None) or "")
        if isinstance(value, type):
            members = sorted(vars(value).items())
            texts += [getattr(member, "__doc__", None) or "" for _, member in members]
    return [inspect.cleandoc(text) for text in texts if isinstance(text, str)]


def python_documents(stdlib: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield the documentation of this Python.

    Args:
        stdlib: folder of the standard library's sources; by default this interpreter's.

    Yields:
        Name of the document ("topic:...", "module:...", "builtin:...") and its dedented texts, in
        the order of the names.

    Raises:
        FileNotFoundError: when the folder holds no Python sources.
    """
    stdlib = stdlib or sysconfig.get_path("stdlib")
    sources: list[tuple[str, str]] = []
    for folder, folders, files in os.walk(stdlib):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for file in files:
            if file.endswith(".py"):
                path = os.path.join(folder, file)
                name = os.path.relpath(path, stdlib)[: -len(".py")].replace(os.sep, ".")
                sources.append((name.removesuffix(".__init__"), path))
    if not sources:
        raise FileNotFoundError(f"no Python sources in {stdlib!r}, where the standard library is")
    for name in sorted(sys.builtin_module_names):
        # Those that the interpreter has loaded for itself: looking at them runs nothing.
        if name in sys.modules and not name.startswith("__"):
            yield f"builtin:{name}", _object_texts(sys.modules[name])
    for name, path in sorted(sources):
        try:
            with open(path, encoding="utf-8") as file:
                source = file.read()
            if name == "pydoc_data.topics":
                for topic, text in sorted(_topics(source).items()):
                    yield f"topic:{topic}", [text]
            else:
                yield f"module:{name}", source_texts(source)
        except (SyntaxError, UnicodeDecodeError):
            continue  # Test data of lib2to3 and templates of other tools.


def _topics(source: str) -> dict[str, str]:
    """Return the dictionary that pydoc_data/topics.py assigns to `topics`, without importing it."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def write_python_docs(
    output_file: str,
    heldout_output_file: str | None = None,
    *,
    heldout_fraction: float = 0.05,
    min_document_sentences: int = 4,
    stdlib: str | None = None,
) -> Counts:
    """Write the corpus.

    Args:
        output_file: text file, one sentence per line, an empty line after each document.
        heldout_output_file: where held-out documents go; None keeps all for `output_file`.
        heldout_fraction: fraction of documents held out, chosen by a hash of their names.
        min_document_sentences: documents with fewer sentences are dropped.
        stdlib: folder of the standard library's sources; by default this interpreter's.

    Returns:
        Counts of documents, sentences and bytes.

    Raises:
        ValueError: for a fraction outside of 0..1.
        OSError: for files that cannot be read or written.
    """
    if not 0 <= heldout_fraction < 1:
        raise ValueError(f"heldout_fraction: expected 0 <= fraction < 1, got {heldout_fraction}")
    check_outputs(output_file, heldout_output_file)
    splitter = load_splitter("")
    counts = Counts()
    written: set[str] = set()
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(write_whole(output_file))
        heldout = None
        if heldout_output_file:
            heldout = stack.enter_context(write_whole(heldout_output_file))
        for name, texts in python_documents(stdlib):
            counts.documents_read += 1
            sentences: list[str] = []
            for text in texts:
                for paragraph in prose_paragraphs(text):
                    # Repeated paragraphs would put held-out text into the training text.
                    if paragraph not in written:
                        written.add(paragraph)
                        sentences += split_paragraph(paragraph, splitter)
            if len(sentences) < min_document_sentences:
                counts.documents_dropped += 1
                continue
            data = ("\n".join(sentences) + "\n\n").encode("utf-8", "replace")
            if heldout and is_held_out(name.encode(), heldout_fraction):
                heldout.write(data)
                counts.heldout_documents += 1
                counts.heldout_sentences += len(sentences)
                counts.heldout_bytes += len(data)
            else:
                stream.write(data)
                counts.documents += 1
                counts.sentences += len(sentences)
                counts.bytes += len(data)
    return counts


def run(options: CommandOptions) -> None:
    """Run the command."""
    start = time.monotonic()
    counts = write_python_docs(
        options.output_file, options.heldout_output_file, heldout_fraction=options.heldout_fraction
    )
    print(
        f"{options.output_file}: {counts.documents:,} documents, {counts.sentences:,} sentences, "
        f"{counts.bytes / 1e6:.2f} MB"
    )
    if options.heldout_output_file:
        print(
            f"{options.heldout_output_file}: {counts.heldout_documents:,} documents, "
            f"{counts.heldout_sentences:,} sentences, {counts.heldout_bytes / 1e6:.2f} MB"
        )
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"documentation of Python {version}, read in {time.monotonic() - start:.1f} s")
