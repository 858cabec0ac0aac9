"""The work of paper.py: run all that a table needs, and write its report with pictures."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping

from experiments.paper_tables import grid, report, tables
from experiments.paper_tables.options import PaperOptions
from experiments.paper_tables.recipes import Places
from experiments.paper_tables.scale import read_scale
from experiments.plots.figures import png_of


def run(options: PaperOptions) -> None:
    """Make the table.

    Raises:
        GridError, OSError: bad options or folders.
        RuntimeError: runs failed; the report names them.
    """
    root = pathlib.Path(options.output_dir).resolve()
    scale = read_scale(options.scale)
    table = tables.make_table(int(options.table), scale, _absolute(options.places), root)
    print(f"Table {table.number}, {table.title}: {estimate(table, options.device_tflops)}")
    if options.dry_run:
        for planned in table.runs:
            print(grid.shell_line(planned.command(root)))
        return
    if options.report_only:
        stored = {planned.name: grid.read_outcome(root, planned.name) for planned in table.runs}
        outcomes = {name: outcome for name, outcome in stored.items() if outcome is not None}
    else:
        outcomes = grid.run_grid(table.runs, root, jobs=options.jobs)
    paths = report.write_report(
        table,
        scale,
        root,
        outcomes,
        command=["experiments/paper.py", *sys.argv[1:]],
        pictures=_pictures(table, root, outcomes, options),
    )
    for path in paths:
        print(f"wrote {path}")
    failed = len(table.runs) - sum(outcome.finished for outcome in outcomes.values())
    if failed:
        raise RuntimeError(
            f"{failed} of {len(table.runs)} runs failed or were not run; the report names them, "
            "and the same command runs them again"
        )


def estimate(table: tables.Table, device_tflops: float) -> str:
    """Return one paragraph: how many runs, and what their training costs."""
    flops = sum(planned.train_flops for planned in table.runs)
    hours = flops / (device_tflops * 1e12) / 3600
    hours = f"{hours:,.1f}" if hours >= 0.1 else "less than 0.1"
    return (
        f"{len(table.runs)} runs; training takes {flops:.3g} floating point operations: "
        f"{hours} device-hours at {device_tflops:g} TFLOP/s (records, evaluation and taggers "
        "not counted, and sequences counted at full length)"
    )


def _absolute(places: Places) -> Places:
    """Return places that hold in the repository's root, where the runs' commands are run."""
    values = {name: value for name, value in dataclasses.asdict(places).items() if value}
    return dataclasses.replace(
        places,
        **{
            name: ",".join(os.path.abspath(part.strip()) for part in value.split(","))
            for name, value in values.items()
        },
    )


def _pictures(
    table: tables.Table,
    root: pathlib.Path,
    outcomes: Mapping[str, grid.Outcome],
    options: PaperOptions,
) -> list[tuple[str, str, bytes]]:
    """Draw attention, predictions and embeddings of the table's model, where there is one."""
    shown = table.shown_model
    if shown is None or shown not in outcomes or not outcomes[shown].finished:
        return []
    # TensorFlow is only needed where there is such a model.
    from experiments.plots import attention

    activations = attention.activations_of(root / shown, options.text, options.text_b)
    words = f"{options.text} {options.text_b} ({shown})"
    drawn = [("Attention", attention.attention_figure(activations))]
    if activations.pieces:
        drawn.append(("Predictions by layer", attention.prediction_figure(activations)))
    drawn.append(("Embeddings", attention.embedding_figure(activations)))
    return [(heading, words, png_of(figure)) for heading, figure in drawn]
