"""One content as Markdown and as a page."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid #d9dee3;
  vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; }
.words th, .words td { text-align: left; white-space: normal; }
td small { display: block; color: #5a6470; white-space: normal; min-width: 5rem; }
.note { color: #5a6470; }
img { max-width: 100%; height: auto; } summary { cursor: pointer; }
@media (max-width: 40rem) { img { max-width: 42rem; } }
pre, code { background: #f4f6f8; padding: .8rem; overflow-x: auto; font-size: .8rem; }
code { display: block; white-space: pre; }
"""


# === The report ===


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of the report: a heading, paragraphs, a table, a picture, commands."""

    heading: str
    text: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    # Of each cell the main text and a second, smaller one; aligned as words, or as numbers.
    rows: tuple[tuple[tuple[str, str], ...], ...] = ()
    words: bool = False
    picture: tuple[str, bytes] | None = None
    commands: tuple[str, ...] = ()


# === Markdown and HTML ===


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return blocks as Markdown."""
    lines = [f"# {title}"]
    for block in blocks:
        lines += ["", f"## {block.heading}"]
        for text in block.text:
            lines += ["", text]
        if block.rows:
            lines += ["", "| " + " | ".join(block.header) + " |", "|---" * len(block.header) + "|"]
        for row in block.rows:
            cells = (f"{main} ({small})" if small else main for main, small in row)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if block.picture is not None:
            lines += ["", f"![{block.heading}]({block.picture[0]})"]
        if block.commands:
            lines += ["", "It ran:", "", *(f"    {command}" for command in block.commands)]
    return "\n".join(lines) + "\n"


def to_page(title: str, blocks: Sequence[Block]) -> str:
    """Return blocks as a page of HTML."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        body.append(f"<h2>{html.escape(block.heading)}</h2>")
        body += (f'<p class="note">{_with_code(text)}</p>' for text in block.text)
        if block.rows:
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
            kind = ' class="words"' if block.words else ""
            body.append(f'<div class="wide"><table{kind}><tr>{head}</tr>')
            for row in block.rows:
                cells = (
                    f"<td>{html.escape(main)}"
                    + (f"<small>{html.escape(small)}</small>" if small else "")
                    + "</td>"
                    for main, small in row
                )
                body.append(f"<tr>{''.join(cells)}</tr>")
            body.append("</table></div>")
        if block.picture is not None:
            data = base64.b64encode(block.picture[1]).decode()
            words = html.escape(block.heading)
            image = f'<img alt="{words}" src="data:image/png;base64,{data}">'
            body.append(f'<div class="wide">{image}</div>')
        if block.commands:
            listed = html.escape("\n".join(block.commands))
            summary = f"the {len(block.commands)} commands that it ran"
            body.append(f"<details><summary>{summary}</summary><pre>{listed}</pre></details>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _with_code(text: str) -> str:
    """Return HTML of a text whose code stands between backticks."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
