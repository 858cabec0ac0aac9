"""A page of one HTML file: sections of text, tables and pictures, with nothing loaded from outside.

Pages show what data say. It is set into the tree of elements as text, which the writer escapes, and
the page's own policy lets a browser run no script and load nothing but the pictures within it.
"""

import base64
import dataclasses
import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from experiments.plots.figures import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Element = ElementTree.Element

MOST_CHARACTERS = 1200  # of a text that is shown; longer ones are cut
_BEGINNING = 120  # characters of a text that is folded

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 66rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; border-top: 1px solid #d9dee3; padding-top: 1rem; }
p { color: #4a545f; max-width: 46rem; margin: .4rem 0 .8rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0 1.2rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #d9dee3; vertical-align: top;
  text-align: left; overflow-wrap: break-word; max-width: 34rem; }
th { font-weight: 600; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
.text { min-width: 16rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.count { text-align: right; padding: .3rem .8rem; border: 1px solid #fff; }
.bar { display: inline-block; height: .7rem; background: #3f76b5; vertical-align: baseline; }
td:first-child { min-width: 5rem; }
mark { background: #fde2dd; border-bottom: 2px solid #b3261e; }
mark.right { background: #dcefdc; border-bottom-color: #dcefdc; }
mark.missed { background: #fff0c2; border-bottom: 2px dashed #8a6100; }
img { max-width: 100%; height: auto; }
@media (max-width: 40rem) { figure.wide img { max-width: 44rem; } }
figure { margin: .6rem 0; } figcaption { color: #4a545f; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        heading: its heading.
        elements: what `paragraph`, `table` and `picture` make, in order.
    """

    heading: str
    elements: Sequence[Element]


def element(tag: str, *content: "Element | str", **attributes: str) -> Element:
    """Make an element of HTML.

    Args:
        tag: its name.
        *content: texts, and elements, in order.
        **attributes: its attributes; class_ is "class".
    """
    made = Element(tag, {name.rstrip("_"): value for name, value in attributes.items()})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + _clean(part)
        else:
            made.text = (made.text or "") + _clean(part)
    return made


def paragraph(text: str) -> Element:
    """Make a paragraph."""
    return element("p", text)


def table(
    header: Sequence[str], rows: Sequence[Sequence["Element | str | float"]], caption: str = ""
) -> Element:
    """Make a table, which scrolls where it is wider than the page.

    Args:
        header: of the columns.
        rows: of cells: numbers are set to the right, texts and elements to the left; an element
            "td" is the cell itself.
        caption: what it shows; "" for none.
    """
    made = element("table")
    # A column is of numbers by its first row.
    first = rows[0] if rows else ()
    sides = [{"class_": "number"} if isinstance(cell, int | float) else {} for cell in first]
    heads = zip(header, sides or [{}] * len(header), strict=True)
    titles = (element("th", name, scope="col", **side) for name, side in heads)
    made.append(element("thead", element("tr", *titles)))
    made.append(element("tbody", *(element("tr", *map(_cell, row)) for row in rows)))
    said = [element("figcaption", caption)] if caption else []
    return element("figure", *said, element("div", made, class_="wide"))


def _cell(value: "Element | str | float") -> Element:
    if isinstance(value, Element):
        return value if value.tag == "td" else element("td", value)
    if isinstance(value, str):
        return element("td", value, dir="auto")
    return element("td", number(value), class_="number")


def number(value: float) -> str:
    """Return a number as the page shows it."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def text_cell(text: str) -> Element:
    """Make the cell of a text of the data: in its own direction, cut where it is long."""
    cut = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
    return element("td", cut, class_="text", dir="auto")


def folded_cell(text: str) -> Element:
    """Make the cell of a long text, of which the beginning is shown until it is opened."""
    if len(text) <= _BEGINNING:
        return text_cell(text)
    summary = element("summary", f"{text[:_BEGINNING]} …")
    return element("td", element("details", summary, text), class_="text", dir="auto")


def bar(share: float, text: str) -> Element:
    """Make a cell of a number with a bar beside it.

    Args:
        share: length of the bar, 0 to 1.
        text: the number.
    """
    length = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    drawn = element("span", class_="bar", style=f"width: {8 * length:.2f}rem")
    return element("td", drawn, f" {text}")


def count_cell(count: int, share: float) -> Element:
    """Make a cell of a matrix of counts, the darker the greater its share of the row, 0 to 1."""
    # From white to the blue of matplotlib's "Blues"; words stay readable on all of them.
    red, green, blue = (round(255 + share * (end - 255)) for end in (8, 81, 156))
    words = "#fff" if share > 0.5 else "#1b1f24"
    style = f"background: rgb({red}, {green}, {blue}); color: {words}"
    return element("td", f"{count:,}", class_="count", style=style)


def picture(figure: "Figure", description: str) -> Element:
    """Make a picture of a figure of matplotlib.

    Args:
        figure: what is drawn.
        description: what it shows, for who cannot see it.
    """
    data = base64.b64encode(png_of(figure)).decode()
    image = element("img", src=f"data:image/png;base64,{data}", alt=description)
    return element("figure", image, class_="wide")


def to_page(title: str, introduction: Sequence[Element], sections: Sequence[Section]) -> str:
    """Return a page of HTML.

    Args:
        title: of the page.
        introduction: what stands before the first section.
        sections: the rest, to which links at the top lead.
    """
    links = (element("a", s.heading, href=f"#part-{n}") for n, s in enumerate(sections))
    body = element("body", element("h1", title), *introduction, element("nav", *links))
    for n, section in enumerate(sections):
        heading = element("h2", section.heading, id=f"part-{n}")
        body.append(element("section", heading, *section.elements))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", **{"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", _STYLE),
    )
    html = element("html", head, body, lang="en")
    return f"<!doctype html>\n{ElementTree.tostring(html, encoding='unicode', method='html')}\n"


def _clean(text: str) -> str:
    """Return a text without what no page may hold: control characters, halves of characters."""
    kept = "\n\t"
    if text.isprintable():
        return text
    is_bad = {c for c in set(text) if unicodedata.category(c) in ("Cc", "Cs") and c not in kept}
    return "".join("\N{REPLACEMENT CHARACTER}" if c in is_bad else c for c in text)
