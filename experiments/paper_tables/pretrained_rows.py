"""Parts of the report of tables that pre-train models: what these saw, and how they differ."""

import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence

from bert_tf.files import read_json
from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing
from bert_tf.weights.locate import CONFIG_NAME
from experiments.command_line.result_files import RESULTS_NAME
from experiments.paper_tables.grid import Outcome
from experiments.paper_tables.pages import Block
from experiments.paper_tables.recipes import Scale
from experiments.paper_tables.results import Result, difference
from experiments.paper_tables.tables import Table

_TESTED = (
    "Interval and p are those of Welch's test, not corrected for the number of comparisons. The "
    "same dev examples judge all models: that these are a sample is not counted."
)
_OF_MODELS = "Compared are the means of pre-trained models, one of each seed of pre-training."
_OF_SEEDS = (
    "Compared are seeds of fine-tuning from one pre-trained model of each row: another seed of "
    "pre-training may differ by more."
)
_HELD_OUT = (
    "Figures of held-out text at the last step, the mean over seeds of pre-training. A model that "
    "predicts every next piece has no [MASK], and its loss does not compare with the others'."
)
# Column -> figure of the results, what it is multiplied with, and decimals.
_FIGURES = {
    "loss, all predictions": ("masked_lm_loss", 1, 3),
    "loss at [MASK]": ("masked_lm_loss_at_mask", 1, 3),
    "% right at [MASK]": ("masked_lm_accuracy_at_mask", 100, 1),
    "% right, next sentence": ("next_sentence_accuracy", 100, 1),
}
_SPENT = ("million tokens", "million predictions, about", "CPU minutes")


def differences(table: Table, results: Sequence[Sequence[Result]]) -> Iterable[Block]:
    """Say how far each row is from the first, where the table has pre-trained the models."""
    if not table.curves:
        return
    rows, several = [], False
    for row, row_results in zip(table.rows[1:], results[1:], strict=True):
        cells = [(row.label, "")]
        for result, reference in zip(row_results, results[0], strict=True):
            found = difference(result, reference)
            if found is None:
                cells.append(("-", ""))
                continue
            several |= min(len(result.of_models), len(reference.of_models)) > 1
            counts = "n = {} and {}".format(*found.counts)
            words = f"95%: {found.low:+.1f} to {found.high:+.1f}, p = {found.p:.2g}, {counts}"
            cells.append((f"{found.mean:+.1f}", words))
        rows.append(tuple(cells))
    if any(main != "-" for row in rows for main, _ in row[1:]):
        heading = f"Differences from {table.rows[0].label}"
        text = (_TESTED, _OF_MODELS if several else _OF_SEEDS)
        yield Block(heading, text, ("", *table.columns), tuple(rows))


def pretraining_figures(
    table: Table, scale: Scale, root: pathlib.Path, outcomes: Mapping[str, Outcome]
) -> Iterable[Block]:
    """Say what the pre-trained models have seen and learnt.

    Predictions are counted as the recipe's share of the tokens, special ones included: about.
    """
    rows = []
    for label, names in table.curves:
        found = [name for name in names if (root / name / f"{RESULTS_NAME}.json").exists()]
        if not found:
            continue
        read = [read_json(root / name / f"{RESULTS_NAME}.json") for name in found]
        cells = [(label, f"n = {len(found)}")]
        for figure, factor, decimals in _FIGURES.values():
            values = [factor * result[figure] for result in read if figure in result]
            cells.append((f"{statistics.fmean(values):.{decimals}f}" if values else "-", ""))
        lines = read_metrics_or_nothing(root / found[0] / METRICS_NAME, "train")
        tokens = lines[-1].get("tokens", 0) / 1e6 if lines else 0
        config = read_json(root / found[0] / CONFIG_NAME)
        share = 1.0 if config.get("left_to_right") else scale.pretraining.masked_lm_prob
        minutes = [outcomes[name].cpu_seconds / 60 for name in found if name in outcomes]
        spent = (tokens, share * tokens, statistics.fmean(minutes or [0]))
        rows.append((*cells, *((f"{number:.1f}", "") for number in spent)))
    if rows:
        yield Block("Pre-training", (_HELD_OUT,), ("", *_FIGURES, *_SPENT), tuple(rows))
