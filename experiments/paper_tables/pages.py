"""One content as Markdown and as a page."""

import base64
import dataclasses
import html
from collections.abc import Sequence

import markdown_it

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { color: #5a6470; overflow-x: auto; }
table { display: block; overflow-x: auto; border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #d9dee3; vertical-align: top;
  min-width: 5rem; }
th:first-child, td:first-child { min-width: 9rem; }
img { max-width: 100%; height: auto; }
@media (max-width: 40rem) { img { max-width: 42rem; } }
pre, code { background: #f4f6f8; padding: .8rem; overflow: auto; font-size: .8rem; }
pre { max-height: 24rem; } pre code { padding: 0; }
code { display: block; white-space: pre; }
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of the report: a heading, paragraphs, a table, a picture, commands."""

    heading: str
    text: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    # Of each cell the main text and a second, put in brackets; aligned as words, or as numbers.
    rows: tuple[tuple[tuple[str, str], ...], ...] = ()
    words: bool = False
    picture: tuple[str, bytes] | None = None
    commands: tuple[str, ...] = ()


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return blocks as Markdown."""
    lines = [f"# {title}"]
    for block in blocks:
        lines += ["", f"## {block.heading}"]
        for text in block.text:
            lines += ["", text]
        if block.rows:
            sides = (":---", *(len(block.header) - 1) * (":---" if block.words else "---:",))
            lines += ["", f"| {' | '.join(block.header)} |", f"|{'|'.join(sides)}|"]
        for row in block.rows:
            cells = (f"{main} ({small})" if small else main for main, small in row)
            # Nothing but a block's own picture is loaded.
            escaped = (cell.replace("|", "\\|").replace("![", "!\\[") for cell in cells)
            lines.append(f"| {' | '.join(escaped)} |")
        if block.picture is not None:
            lines += ["", f"![{block.heading}]({block.picture[0]})"]
        if block.commands:
            lines += ["", "It ran:", "", *(f"    {command}" for command in block.commands)]
    return "\n".join(lines) + "\n"


def to_page(title: str, blocks: Sequence[Block]) -> str:
    """Return blocks as a page of HTML that needs no other file."""
    pictures = [block.picture for block in blocks if block.picture is not None]
    # What runs print may look like Markdown: of the marks only those of `to_markdown` count.
    reader = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
    body = reader.disable(["autolink", "emphasis", "link"]).render(to_markdown(title, blocks))
    for name, png in pictures:
        body = body.replace(
            f'src="{name}"', f'src="data:image/png;base64,{base64.b64encode(png).decode()}"'
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )
