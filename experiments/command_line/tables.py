"""Tables printed on the terminal."""

from collections.abc import Iterable, Sequence


def print_rows(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table with aligned columns under a title; nothing for no rows."""
    if not rows:
        return
    print(f"\n{title}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(("  " + "  ".join(cells)).rstrip())


def print_table(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
