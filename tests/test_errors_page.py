"""The page of errors: each message that it quotes is one of the code's, word for word."""

import ast
import re

import pytest

from tests.support.code_blocks import REPOSITORY

PAGE = (REPOSITORY / "docs/guides/errors.md").read_text(encoding="utf-8")
OF_TENSORFLOW = {"Could not find cuda drivers", "failed call to cuInit", "rebuild TensorFlow"}
# Messages of which a value of the code's is a part -> what stands for it there.
VALUES = {"runner: ... needs Apache Beam": "runner: ... needs ...: pip install"}
QUOTED = [
    message
    for row in re.findall(r"^\| (`.+?|the .+?|a .+?) \| .+ \|$", PAGE, re.MULTILINE)
    for message in re.findall(r"`([^`]+)`", row)
    if " " in message and message not in OF_TENSORFLOW
]


def strings_of(path):
    """Return the strings of a source file; what is put into them when it runs is a NUL."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (getattr(part, "value", "") for part in node.values)
            yield "".join(part if isinstance(part, str) else "\0" for part in parts)


@pytest.fixture(scope="module")
def strings():
    """Return of each source file all its strings."""
    folders = ("bert_tf", "data_prep", "experiments")
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    return ["\n".join(strings_of(path)) for path in paths]


def test_messages_are_read():
    assert len(QUOTED) > 25
    assert VALUES.keys() <= set(QUOTED)
    assert all(f"`{message}`" in PAGE for message in OF_TENSORFLOW)


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_of_the_code(message, strings):
    """Its words between the values stand in one file."""
    pieces = re.split(r"'?\.\.\.'?|\d+|; ", VALUES.get(message, message))
    words = [piece.strip(" -") for piece in pieces if piece.strip(" -:,")]
    assert words
    assert any(all(piece in text for piece in words) for text in strings), words
