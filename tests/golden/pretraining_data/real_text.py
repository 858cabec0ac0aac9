"""Cuts real text into sentences in a way that never changes, for golden digests."""

import gzip
import pathlib
import re


def write_real_text(extract: pathlib.Path, output: pathlib.Path, min_bytes: int = 1_200_000) -> int:
    """Write the first articles of a Wikipedia extract, one rough sentence a line.

    Args:
        extract: gzip file of `<doc ...>`, title, paragraphs, `</doc>`.
        output: text file to write; blank lines between documents.
        min_bytes: whole articles are written until there are so many bytes.

    Returns:
        Bytes written.
    """
    written = 0
    with gzip.open(extract, "rt", encoding="utf-8") as reader, open(output, "wb") as writer:
        for line in reader:
            if line.startswith("</doc>"):
                written += writer.write(b"\n")
                if written >= min_bytes:
                    break
            elif not line.startswith("<doc "):
                for sentence in re.split(r"(?<=[.!?]) ", line.rstrip("\n")):
                    if sentence:
                        written += writer.write(sentence.encode("utf-8") + b"\n")
    return written
