r"""Makes a table of the paper: runs all that it needs, and writes a report with pictures.

    python experiments/paper.py --table=5 --scale=small --output_dir=runs/paper \
        --corpus_files=wiki/train.txt --heldout_files=wiki/heldout.txt --glue_dir=$GLUE_DIR \
        --squad1_train_file=train-v1.1.json --squad1_dev_file=dev-v1.1.json

Tables 1 to 4 (GLUE, SQuAD 1.1 and 2.0, SWAG) and 7 (named entities) fine-tune the models of
--model_dir and --large_model_dir; 5 (pre-training tasks), 6 (model size) and 8 (masking) pre-train
their own on --corpus_files. --scale=full is the paper's recipe, with its search over rates, and
prints what it will cost before it begins; --scale=small is the same code with small models on
samples; --scale=FILE.json has sizes of your own (see paper_tables/scale.py). The same command goes
on with what was stopped, and runs again what failed. In the folder tableN of --output_dir:
REPORT.md, REPORT.html and the runs, each with its log beside it. Records and the models of tables
5, 6 and 8 lie in data and pretrained, and tables share them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping

from absl import app, flags

from experiments.command_line.exit_status import exit_on_error
from experiments.paper_tables import grid, recipes, report, tables
from experiments.paper_tables.pictures import png_of
from experiments.paper_tables.scale import read_scale

FLAGS = flags.FLAGS
_TEXTS = ("The capital of the country is a large [MASK].", "It lies on both banks of the river.")
_PLACES = [field.name for field in dataclasses.fields(recipes.Places)]


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    flags.DEFINE_enum(
        "table", None, [str(n) for n in tables.NUMBERS], "Its number.", flag_values=values
    )
    flags.DEFINE_string(
        "scale",
        "full",
        "Sizes: full, small, or a JSON file of what differs from one of them.",
        flag_values=values,
    )
    flags.DEFINE_string("output_dir", None, "Folder of runs and reports.", flag_values=values)
    flags.mark_flags_as_required(["table", "output_dir"], values)
    about = {
        "glue_dir": "Folder with a folder for each task of GLUE.",
        "corpus_files": "Text to pre-train on, one sentence a line; files and globs.",
        "heldout_files": "Other documents, to evaluate pre-training on.",
        "vocab_file": "Vocabulary of pre-training at full scale; small ones learn theirs.",
        "model_dir": "Pre-trained model to fine-tune.",
        "large_model_dir": "A second one, for the rows of BERT-LARGE.",
    }
    for name in _PLACES:
        words = about.get(name, f"Official file: {name.removesuffix('_file').replace('_', ', ')}.")
        flags.DEFINE_string(name, None, words, flag_values=values)
    flags.DEFINE_integer(
        "jobs", None, "Runs at once; by default one a GPU, or one a core.", 1, flag_values=values
    )
    flags.DEFINE_float(
        "device_tflops",
        125.0,
        "What a device does, for the estimate: 40% of an NVIDIA A100's 312 by default.",
        0.001,
        flag_values=values,
    )
    flags.DEFINE_string("text", _TEXTS[0], "Sentence of the pictures.", flag_values=values)
    flags.DEFINE_string("text_b", _TEXTS[1], "The one after it.", flag_values=values)
    flags.DEFINE_bool(
        "dry_run", False, "Show commands and cost, and run nothing.", flag_values=values
    )
    flags.DEFINE_bool("report_only", False, "Make the report of what is there.", flag_values=values)


def estimate(table: tables.Table, device_tflops: float) -> str:
    """Return one paragraph: how many runs, and what their training costs."""
    flops = sum(run.train_flops for run in table.runs)
    hours = flops / (device_tflops * 1e12) / 3600
    hours = f"{hours:,.1f}" if hours >= 0.1 else "less than 0.1"
    return (
        f"{len(table.runs)} runs; training takes {flops:.3g} floating point operations: "
        f"{hours} device-hours at {device_tflops:g} TFLOP/s (records, evaluation and taggers "
        "not counted, and sequences counted at full length)"
    )


def run(values: flags.FlagValues) -> None:
    """Make the table.

    Raises:
        GridError, OSError: bad flags or folders.
        RuntimeError: runs failed; the report names them.
    """
    root = pathlib.Path(values.output_dir).resolve()
    scale = read_scale(values.scale)
    # Commands run in the repository's root, wherever this one was given.
    given = {name: values[name].value for name in _PLACES}
    places = recipes.Places(**{name: _absolute(value) for name, value in given.items()})
    table = tables.make_table(int(values.table), scale, places, root)
    print(f"Table {table.number}, {table.title}: {estimate(table, values.device_tflops)}")
    if values.dry_run:
        for one in table.runs:
            print(grid.shown(one.command(root)))
        return
    if values.report_only:
        found = {one.name: grid.read_outcome(root, one.name) for one in table.runs}
        outcomes = {name: outcome for name, outcome in found.items() if outcome is not None}
    else:
        outcomes = grid.run_grid(table.runs, root, jobs=values.jobs)
    paths = report.write_report(
        table,
        scale,
        root,
        outcomes,
        command=["experiments/paper.py", *sys.argv[1:]],
        pictures=pictures(table, root, outcomes, values.text, values.text_b),
    )
    for path in paths:
        print(f"wrote {path}")
    finished = [name for name, outcome in outcomes.items() if outcome.finished]
    if len(finished) < len(table.runs):
        raise RuntimeError(
            f"{len(table.runs) - len(finished)} of {len(table.runs)} runs failed or were not run; "
            "the report names them, and the same command runs them again"
        )


def pictures(
    table: tables.Table,
    root: pathlib.Path,
    outcomes: Mapping[str, grid.Outcome],
    text: str,
    text_b: str,
) -> list[tuple[str, str, bytes]]:
    """Draw attention, predictions and embeddings of the table's model, where there is one."""
    shown = table.shown_model
    if shown is None or shown not in outcomes or not outcomes[shown].finished:
        return []
    from experiments.plots.attention import (
        attention_figure,
        embedding_figure,
        look,
        prediction_figure,
    )

    seen = look(root / shown, text, text_b)
    words = f"{text} {text_b} ({shown})"
    drawn = [("Attention", attention_figure(seen))]
    if seen.pieces:
        drawn.append(("Predictions by layer", prediction_figure(seen)))
    drawn.append(("Embeddings", embedding_figure(seen)))
    return [(heading, words, png_of(figure)) for heading, figure in drawn]


def _absolute(places: str | None) -> str | None:
    if places is None:
        return None
    return ",".join(os.path.abspath(place.strip()) for place in places.split(","))


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return exit_on_error("paper", lambda: run(FLAGS))


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
