"""Figures of matplotlib that are drawn without a screen, and written whole or not at all."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from bert_tf.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib is imported within functions: training goes on where it is not installed.


def subplots(*shape: int, **arguments: Any) -> tuple[Figure, Any]:
    """Make a figure and its axes, as `matplotlib.pyplot.subplots`.

    pyplot is not told of it: in a notebook it keeps its own backend, and shows the figure once.
    """
    from matplotlib.figure import Figure

    figsize = arguments.pop("figsize", None)
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(*shape, **arguments)


def save_figure(figure: Figure, png: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure as PNG."""
    with replacing(png, ".png") as temporary:
        figure.savefig(temporary, dpi=dpi)


def png_of(figure: Figure, dpi: int = 110) -> bytes:
    """Return a figure as the content of a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def draw_baseline(axis: Axes, value: float, label: str) -> None:
    """Draw a level line across the axes, with its name at the line."""
    axis.axhline(value, color="grey", linestyle="--", linewidth=1)
    across = axis.get_yaxis_transform()
    axis.text(0.99, value, label, transform=across, ha="right", va="bottom", color="0.35")
