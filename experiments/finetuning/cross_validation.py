"""Cross-validation: each part of the training set is held out once, and a model trained without it.

The output folder then holds `fold-1` to `fold-k`, each with its runs, and folds.json; the model in
it is trained on all examples, with the learning rate and batch size whose mean is best.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from bert_tf.files import original_names, write_json
from data_prep.finetuning.folds import Fold
from experiments.command_line.exit_status import InputError
from experiments.command_line.result_files import COMBINATIONS_NAME, FOLDS_NAME, SEEDS_NAME
from experiments.command_line.tables import print_rows
from experiments.finetuning.initial_model import InitialModel
from experiments.finetuning.options import CrossValidatedOptions
from experiments.finetuning.results import (
    FineTuningRun,
    draw_curves,
    rank_of,
    spread,
    summary_over_seeds,
)
from experiments.finetuning.runs import check_room, holds_runs, train_runs
from experiments.finetuning.seed_training import Job

Options = TypeVar("Options", bound=CrossValidatedOptions)
Combination = tuple[float | None, int | None]  # learning rate, batch size


@dataclasses.dataclass(frozen=True)
class _FoldRun:
    """A run, and what part of the training set was held out of it.

    Attributes:
        fold: its number, from 1.
        run: the run.
        failure: why it has failed; None if it has not.
    """

    fold: int
    run: FineTuningRun
    failure: str | None

    @property
    def combination(self) -> Combination:
        return self.run.learning_rate, self.run.train_batch_size


def folds_of(options: Options) -> list[Options]:
    """Return the options of each fold's runs."""
    output = pathlib.Path(options.output_dir)
    return [
        dataclasses.replace(
            options,
            output_dir=str(output / f"fold-{number + 1}"),
            cache_dir=options.cache_dir or str(output / "records"),
            do_predict=False,
            # The part that is held out measures, and so it must not choose the weights.
            keep_best=False,
        )
        for number in range(options.num_folds)
    ]


def check_room_of_folds(options: CrossValidatedOptions) -> None:
    """Refuse the folder of another model, or of runs without folds, before anything is trained.

    Raises:
        InputError: it holds one.
    """
    if options.overwrite:
        return
    for of_fold in folds_of(options):
        check_room(of_fold)
    output = pathlib.Path(options.output_dir)
    if not (output / "fold-1").exists():
        if holds_runs(output):
            raise InputError(
                f"output_dir: {output} holds runs without --folds, whose model would be replaced; "
                "use another folder or --overwrite"
            )
        check_room(options.without_folds(None, None))


def cross_validate(
    options: Options, start: InitialModel, job_of: Callable[[Options, Fold], Job]
) -> Options:
    """Train and evaluate on the folds; write folds.json, and print a table.

    Args:
        options: of the command.
        start: the model to begin with.
        job_of: (options of a fold, the fold) -> what is trained.

    Returns:
        The options of the model that is trained on all examples.

    Raises:
        InputError: all runs diverged; or as for `train_runs`.
    """
    found: list[_FoldRun] = []
    metric = ""
    for number, of_fold in enumerate(folds_of(options)):
        print(f"fold {number + 1} of {options.num_folds}:")
        job = job_of(of_fold, Fold(number, options.num_folds))
        metric = job.selection_metric
        runs = train_runs(job, start, of_fold)
        draw_curves(runs)
        for run in runs:
            failed = summary_over_seeds([run], metric, job.baseline)["failed"]
            found.append(_FoldRun(number + 1, run, failed.get(str(run.seed))))
    rate, size = _report(found, pathlib.Path(options.output_dir), metric)
    return options.without_folds(rate, size)


def _report(found: Sequence[_FoldRun], folder: pathlib.Path, metric: str) -> Combination:
    """Write and print what the folds gave, and return the best combination.

    Raises:
        InputError: all diverged.
    """
    groups: dict[Combination, list[_FoldRun]] = {}
    for one in found:
        groups.setdefault(one.combination, []).append(one)
    if all(one.run.diverged for one in found):
        raise InputError("; ".join(f"fold {one.fold}: {one.run.diverged}" for one in found))
    combinations, ranks = [], {}
    for combination, runs in groups.items():
        summary = _summary(runs)
        rate, size = combination
        combinations.append({"learning_rate": rate, "train_batch_size": size, **summary})
        means = {name: figure["mean"] for name, figure in summary["figures"].items()}
        diverged = sum(one.run.diverged is not None for one in runs)
        ranks[combination] = (-diverged, rank_of(means, metric))
    best = max(ranks, key=lambda combination: ranks[combination])
    report = {
        "folds": max(one.fold for one in found),
        "selection_metric": metric,
        "best": {"learning_rate": best[0], "train_batch_size": best[1]},
        "combinations": combinations,
    }
    write_json(folder / FOLDS_NAME, report)
    for name in (SEEDS_NAME, COMBINATIONS_NAME):  # of other runs than the folder's model
        (folder / name).unlink(missing_ok=True)
    rows: list[tuple[str, ...]] = [
        ("learning rate", "batch size", "runs", "failed", "mean", "std", "least", "")
    ]
    for combination, one in zip(groups, combinations, strict=True):
        figure = one["figures"].get(metric)
        names = ("mean", "std", "min")
        numbers = [f"{figure[name]:.4f}" if figure else "none" for name in names]
        counts = (str(len(groups[combination])), str(len(one["failed"])))
        mark = "best" if combination == best else ""
        rows.append((*map(str, combination), *counts, *numbers, mark))
    print_rows(f"{metric} over {report['folds']} folds:", rows)
    if len(groups) > 1:
        print("  the mean of the best is somewhat too good: it was chosen by it")
    for name, reason in combinations[list(groups).index(best)]["failed"].items():
        print(f"  failed: {name}: {reason}")
    return best


def _summary(runs: Sequence[_FoldRun]) -> dict[str, Any]:
    """Return mean, median, standard deviation, least and greatest over folds of each figure.

    Of several seeds a fold's figure is their mean; those of runs that diverged do not count.
    """
    by_fold: dict[int, list[Mapping[str, float]]] = {}
    for one in runs:
        if one.run.diverged is None:
            by_fold.setdefault(one.fold, []).append(one.run.figures)
    figures = {}
    for name in sorted({name for seeds in by_fold.values() for f in seeds for name in f}):
        of_seeds = [[f[name] for f in seeds if name in f] for seeds in by_fold.values()]
        figures[name] = spread([statistics.fmean(values) for values in of_seeds if values])
    stored = [{"fold": one.fold, **vars(one.run)} for one in runs]
    failed = {f"fold {one.fold}, seed {one.run.seed}": one.failure for one in runs if one.failure}
    for run in stored:
        run["folder"] = original_names(run["folder"])
    return {"figures": figures, "runs": stored, "failed": failed}
