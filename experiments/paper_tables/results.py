"""Figures read from the folders of finished runs."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from bert_tf.files import read_json
from experiments.paper_tables.runs import Cell


@dataclasses.dataclass(frozen=True)
class Result:
    """What a cell shows.

    Attributes:
        values: one for each seed that gave one, of the best choice.
        choice: label of that choice.
        missing: runs of that choice that gave none.
        others: label -> mean, of all choices that gave a figure.
    """

    values: tuple[float, ...]
    choice: str
    missing: int
    others: Mapping[str, float]

    @property
    def mean(self) -> float | None:
        """The mean over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The standard deviation over seeds, of at least two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def read_figures(path: pathlib.Path, figure: str) -> list[float]:
    """Read a figure from a JSON file.

    Args:
        path: of the file; without it there is no figure.
        figure: names from the outermost to the innermost, parted by "/"; "*" stands for all, and
            "exp:" before it for the exponential.

    Raises:
        ValueError: the file has no such figure.
    """
    if not path.exists():
        return []
    values: list[Any] = [read_json(path)]
    for name in figure.removeprefix("exp:").split("/"):
        try:
            values = [
                value
                for part in values
                for value in (part.values() if name == "*" else [part[name]])
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: has no figure {figure!r}") from error
    return [math.exp(value) if figure.startswith("exp:") else float(value) for value in values]


def result_of(cell: Cell, root: pathlib.Path) -> Result:
    """Read a cell's figures, and choose among its choices by the mean."""
    by_choice: dict[str, tuple[list[float], int]] = {}
    for label, names in cell.choices:
        values, missing = [], 0
        for name in names:
            figures = read_figures(root / name / cell.result, cell.figure)
            values += [cell.factor * value for value in figures]
            missing += not figures
        by_choice[label] = (values, missing)
    means = {label: statistics.fmean(values) for label, (values, _) in by_choice.items() if values}
    if not means:
        first = next(iter(by_choice))
        return Result((), first, by_choice[first][1], {})
    sign = 1 if cell.higher_is_better else -1
    # What is no number compares as neither less nor more, and would win where it comes first.
    best = max(means, key=lambda n: -math.inf if math.isnan(means[n]) else sign * means[n])
    return Result(tuple(by_choice[best][0]), best, by_choice[best][1], means)
