"""A table's report, as Markdown and as one HTML page that needs no other file.

It shows our figures beside the paper's, bars, learning curves, what failed, what it cost, and the
exact commands. It is made from the files that the runs left, and can be made at any time.
"""

import collections
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence

from bert_tf.files import read_json, write_text
from experiments.command_line.memory import free_bytes
from experiments.command_line.result_files import SEEDS_NAME
from experiments.paper_tables.grid import Outcome, commit, gpus, shell_line, totals
from experiments.paper_tables.pages import Block, to_markdown, to_page
from experiments.paper_tables.pictures import draw_bars, draw_curves, draw_finetuning_curves
from experiments.paper_tables.pretrained_rows import differences, pretraining_figures
from experiments.paper_tables.recipes import Scale
from experiments.paper_tables.results import Result, result_of
from experiments.paper_tables.runs import TAGGER_RESULT
from experiments.paper_tables.tables import Table

_CURVES = (
    "Held-out text is masked as the text of training: losses and accuracies of models that mask "
    "otherwise, or predict every next piece, do not compare."
)
_FINETUNING = (
    "Training loss, a line for each seed of the choice that is shown above. The folder of each run "
    "has its own, with figures on dev, as curves.png."
)


def _ours(result: Result) -> str:
    if result.mean is None:
        return "-"
    spread = f" ± {result.std:.1f}" if result.std is not None else ""
    return f"{result.mean:.1f}{spread}"


def write_report(
    table: Table,
    scale: Scale,
    root: str | os.PathLike[str],
    outcomes: Mapping[str, Outcome],
    *,
    command: Sequence[str],
    pictures: Sequence[tuple[str, str, bytes]] = (),
) -> tuple[pathlib.Path, pathlib.Path]:
    """Write REPORT.md with its pictures, and REPORT.html, into the table's folder.

    Args:
        table: what was run.
        scale: its scale.
        root: folder of the runs.
        outcomes: name -> how each run ended.
        command: that made the table.
        pictures: more of them: heading, words, PNG.

    Returns:
        The paths of both.

    Raises:
        ValueError: a result file lacks its figure.
        OSError: a file cannot be read or written.
    """
    root = pathlib.Path(root)
    folder = root / f"table{table.number}"
    folder.mkdir(parents=True, exist_ok=True)
    results = [[result_of(cell, root) for cell in row.cells] for row in table.rows]
    title = f"Table {table.number}: {table.title} ({scale.name} scale: {scale.words})"
    blocks = [
        _figures(table, results),
        *differences(table, results),
        *pretraining_figures(table, scale, root, outcomes),
        *_searches(table, results),
    ]
    blocks.append(Block("Bars", picture=("bars.png", draw_bars(table, results))))
    if (curves := draw_curves(table, root)) is not None:
        picture = ("curves.png", curves)
        blocks.append(Block("Learning curves of pre-training", (_CURVES,), picture=picture))
    if (curves := draw_finetuning_curves(table, results, root)) is not None:
        picture = ("finetuning_curves.png", curves)
        blocks.append(Block("Learning curves of fine-tuning", (_FINETUNING,), picture=picture))
    for number, (heading, words, picture) in enumerate(pictures):
        blocks.append(Block(heading, (words,), picture=(f"picture{number}.png", picture)))
    blocks += [
        _failures(table, root, outcomes),
        _cost(table, outcomes),
        _commands(table, root, outcomes, command),
    ]
    for block in blocks:
        if block.picture is not None:
            (folder / block.picture[0]).write_bytes(block.picture[1])
    paths = folder / "REPORT.md", folder / "REPORT.html"
    write_text(paths[0], to_markdown(title, blocks))
    write_text(paths[1], to_page(title, blocks))
    return paths


def _figures(table: Table, results: Sequence[Sequence[Result]]) -> Block:
    rows = []
    for row, row_results in zip(table.rows, results, strict=True):
        cells = [(row.label, "")]
        for cell, result in zip(row.cells, row_results, strict=True):
            count = len(result.values)
            small = [f"n = {count}"] if count else []
            small += [f"{result.missing} failed or not run"] if result.missing else []
            small += [f"paper {cell.paper:g}"] if cell.paper is not None else []
            cells.append((_ours(result), ", ".join(small)))
        rows.append(tuple(cells))
    return Block("Figures", table.note, ("", *table.columns), tuple(rows))


def _searches(table: Table, results: Sequence[Sequence[Result]]) -> Iterable[Block]:
    rows = []
    for row, row_results in zip(table.rows, results, strict=True):
        for title, result in zip(table.columns, row_results, strict=True):
            if len(result.others) < 2:
                continue
            for label, mean in result.others.items():
                best = "chosen" if label == result.choice else ""
                rows.append(((row.label, ""), (title, ""), (label, ""), (f"{mean:.2f}", best)))
    if rows:
        header = ("", "column", "choice", "mean over seeds")
        yield Block("Search", (), header, tuple(rows), words=True)


def _failures(table: Table, root: pathlib.Path, outcomes: Mapping[str, Outcome]) -> Block:
    """List the runs that did not end well, and those that ended with a model of no use."""
    rows = []
    for run in table.runs:
        outcome = outcomes.get(run.name)
        if outcome is None:
            rows.append(((run.name, ""), ("not run", ""), ("", "")))
        elif not outcome.finished:
            rows.append(((run.name, ""), (str(outcome.status), ""), (outcome.last_line, "")))
        else:
            for name in (SEEDS_NAME, TAGGER_RESULT):
                path = root / run.name / name
                failed = read_json(path)["failed"] if path.exists() else {}
                rows += (((run.name, ""), ("0", ""), (reason, "")) for reason in failed.values())
    text = () if rows else ("None: every run ended well, with a model better than a constant.",)
    header = ("run", "exit status", "what happened") if rows else ()
    return Block("Failed runs", text, header, tuple(rows), words=True)


def _cost(table: Table, outcomes: Mapping[str, Outcome]) -> Block:
    groups: dict[str, list[Outcome]] = {}
    for run in table.runs:
        if run.name in outcomes:
            kind = pathlib.PurePath(run.script).stem
            groups.setdefault(kind, []).append(outcomes[run.name])
    rows = []
    for kind, group in [*groups.items(), ("all", [o for part in groups.values() for o in part])]:
        wall, cpu = totals(group)
        peak = max((o.peak_bytes for o in group), default=0)
        numbers = (f"{len(group)}", f"{wall / 60:.1f}", f"{cpu / 60:.1f}", f"{peak / 2**30:.2f}")
        rows.append(((kind, ""), *((number, "") for number in numbers)))
    header = ("script", "runs", "wall minutes", "CPU minutes", "largest memory, GiB")
    text = ("Wall minutes are summed over runs, of which several may have gone on at once.",)
    return Block("Cost", text, header, tuple(rows))


def _commands(
    table: Table, root: pathlib.Path, outcomes: Mapping[str, Outcome], command: Sequence[str]
) -> Block:
    free = free_bytes()
    machine = f"{os.cpu_count()} cores, {len(gpus())} GPUs, Python {platform.python_version()}" + (
        f", {free / 2**30:.0f} GiB of memory free" if free is not None else ""
    )
    commits = collections.Counter(
        outcomes[run.name].commit for run in table.runs if run.name in outcomes
    )
    made_at = ", ".join(f"{name} ({count})" for name, count in commits.items()) or "none"
    made_by = f"Made by: `{shell_line(command)}`"
    text = f"Runs at commit: {made_at}. Report: {commit()}. {machine}. {made_by}"
    commands = tuple(shell_line(run.command(root)) for run in table.runs)
    return Block("Commands", (text,), commands=commands)
