"""Figures read from the folders of finished runs."""

import dataclasses
import itertools
import math
import pathlib
import statistics
import warnings
from collections.abc import Mapping
from typing import Any

from bert_tf.files import read_json
from experiments.paper_tables.runs import Cell


@dataclasses.dataclass(frozen=True)
class Result:
    """What a cell shows.

    Attributes:
        values: one for each seed that gave one, of the best choice.
        of_models: the same values, those of one pre-trained model together.
        choice: label of that choice.
        missing: runs of that choice that gave none.
        others: label -> mean, of all choices that gave a figure.
    """

    values: tuple[float, ...]
    of_models: tuple[tuple[float, ...], ...]
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


@dataclasses.dataclass(frozen=True)
class Difference:
    """By how much the mean of one row is above that of another.

    Attributes:
        mean: the difference.
        low, high: its interval of 95%.
        p: of Welch's test, two-sided, that there is none.
        counts: values of each that were compared.
    """

    mean: float
    low: float
    high: float
    p: float
    counts: tuple[int, int]


def difference(result: Result, reference: Result) -> Difference | None:
    """Compare two rows by Welch's test, or return None where one has too few figures.

    Where both have figures of several pre-trained models, the means of the models are compared,
    since figures of one model are alike; else those of the seeds of fine-tuning, and then the
    test cannot tell a better way of pre-training from a lucky model.
    """
    from scipy import stats  # only reports of two rows or more need it

    both = result, reference
    if all(len(one.of_models) > 1 for one in both):
        samples = [[statistics.fmean(values) for values in one.of_models] for one in both]
    else:
        samples = [list(one.values) for one in both]
    if any(len(sample) < 2 for sample in samples):
        return None
    if all(len(set(sample)) == 1 for sample in samples):
        return None  # without any spread there is nothing to test with
    with (
        warnings.catch_warnings()
    ):  # of one row whose figures are all alike, as a constant answer's
        warnings.simplefilter("ignore", RuntimeWarning)
        tested = stats.ttest_ind(*samples, equal_var=False)
    interval = tested.confidence_interval()
    means = [statistics.fmean(sample) for sample in samples]
    counts = len(samples[0]), len(samples[1])
    return Difference(
        means[0] - means[1], float(interval.low), float(interval.high), float(tested.pvalue), counts
    )


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
    by_choice: dict[str, tuple[dict[pathlib.PurePath, list[float]], int]] = {}
    for label, names in cell.choices:
        values, missing = {}, 0
        for name in names:
            figures = read_figures(root / name / cell.result, cell.figure)
            if figures:
                of_model = values.setdefault(pathlib.PurePath(name).parent, [])
                of_model += [cell.factor * value for value in figures]
            missing += not figures
        by_choice[label] = (values, missing)
    means = {
        label: statistics.fmean(value for of_model in values.values() for value in of_model)
        for label, (values, _) in by_choice.items()
        if values
    }
    if not means:
        first = next(iter(by_choice))
        return Result((), (), first, by_choice[first][1], {})
    sign = 1 if cell.higher_is_better else -1
    # What is no number compares as neither less nor more, and would win where it comes first.
    best = max(means, key=lambda n: -math.inf if math.isnan(means[n]) else sign * means[n])
    values, missing = by_choice[best]
    of_models = tuple(map(tuple, values.values()))
    return Result(tuple(itertools.chain(*of_models)), of_models, best, missing, means)
