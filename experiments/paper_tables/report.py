"""A table's report, as Markdown and as one HTML page that needs no other file.

It shows our figures beside the paper's, bars, learning curves, what failed, what it cost, and the
exact commands. It is made from the files that the runs left, and can be made at any time.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import html
import io
import json
import math
import os
import pathlib
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.finetuning.results import SEEDS_NAME
from experiments.paper_tables.grid import Outcome, commit, free_bytes, gpus, shown, totals
from experiments.paper_tables.recipes import Scale
from experiments.paper_tables.runs import TAGGER_RESULT, Cell
from experiments.paper_tables.tables import Table

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid #d9dee3;
  vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; }
.words th, .words td { text-align: left; white-space: normal; }
td small { display: block; color: #5a6470; white-space: normal; min-width: 5rem; }
.note { color: #5a6470; }
img { max-width: 100%; height: auto; } summary { cursor: pointer; }
@media (max-width: 40rem) { img { max-width: 42rem; } }
pre, code { background: #f4f6f8; padding: .8rem; overflow-x: auto; font-size: .8rem; }
code { display: block; white-space: pre; }
"""


# --- figures --------------------------------------------------------------------------------------


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
    found: list[Any] = [json.loads(path.read_text(encoding="utf-8"))]
    for name in figure.removeprefix("exp:").split("/"):
        try:
            found = [
                value
                for part in found
                for value in (part.values() if name == "*" else [part[name]])
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: has no figure {figure!r}") from error
    return [math.exp(value) if figure.startswith("exp:") else float(value) for value in found]


def result_of(cell: Cell, root: pathlib.Path) -> Result:
    """Read a cell's figures, and choose among its choices by the mean."""
    by_choice: dict[str, tuple[list[float], int]] = {}
    for label, names in cell.choices:
        values, missing = [], 0
        for name in names:
            found = read_figures(root / name / cell.result, cell.figure)
            values += [cell.factor * value for value in found]
            missing += not found
        by_choice[label] = (values, missing)
    means = {label: statistics.fmean(values) for label, (values, _) in by_choice.items() if values}
    if not means:
        first = next(iter(by_choice))
        return Result((), first, by_choice[first][1], {})
    sign = 1 if cell.higher_is_better else -1
    best = max(means, key=lambda label: sign * means[label])
    return Result(tuple(by_choice[best][0]), best, by_choice[best][1], means)


def _ours(result: Result) -> str:
    if result.mean is None:
        return "-"
    spread = f" ± {result.std:.1f}" if result.std is not None else ""
    return f"{result.mean:.1f}{spread}"


def _theirs(cell: Cell) -> str:
    return "" if cell.paper is None else f"{cell.paper:g}"


# --- pictures -------------------------------------------------------------------------------------


def png_of(figure: Any) -> bytes:
    """Return a figure as PNG, and close it."""
    from matplotlib import pyplot

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)
    return stream.getvalue()


def draw_bars(table: Table, results: Sequence[Sequence[Result | None]]) -> bytes:
    """Draw a bar for each row in a panel for each column, ours with deviation, the paper's as o."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = len(table.columns)
    across = min(columns, 4)
    down = math.ceil(columns / across)
    figure, axes = pyplot.subplots(
        down,
        across,
        figsize=(1.6 + 2.6 * across, down * (0.9 + 0.34 * len(table.rows))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    labels = [row.label for row in table.rows]
    for number, axis in enumerate(axes.flat):
        if number >= columns:
            axis.set_axis_off()
            continue
        axis.set_title(table.columns[number], fontsize=10)
        for place, (row, found) in enumerate(zip(table.rows, results, strict=True)):
            result, cell = found[number], row.cells[number]
            if result is not None and result.mean is not None:
                axis.barh(place, result.mean, xerr=result.std, color="#4c72b0", height=0.6)
            if cell is not None and cell.paper is not None:
                axis.plot(cell.paper, place, "o", color="#c44e52", fillstyle="none")
        axis.set_yticks(range(len(labels)), labels, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].invert_yaxis()
    figure.suptitle("bars: here, with standard deviation over seeds; o: the paper", fontsize=9)
    return png_of(figure)


def draw_curves(table: Table, root: pathlib.Path) -> bytes | None:
    """Draw loss and accuracy of the pre-training runs over steps, or None where there are none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing

    panels = (
        ("mlm_loss", "loss of the language model (nats)"),
        ("mlm_accuracy", "its accuracy"),
        ("nsp_accuracy", "accuracy, next sentence"),
    )
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    drawn = False
    for number, (label, name) in enumerate(table.curves):
        path = root / name / METRICS_NAME
        for part, prefix, style in (("train", "", "-"), ("eval", "eval_", "o")):
            lines = read_metrics_or_nothing(path, part)
            for axis, (metric, _) in zip(axes, panels, strict=True):
                points = [(r["step"], r[prefix + metric]) for r in lines if prefix + metric in r]
                if not points:
                    continue
                drawn = True
                axis.plot(
                    *zip(*points, strict=True),
                    style,
                    color=f"C{number}",
                    alpha=0.6 if part == "train" else 1.0,
                    markersize=3,
                    label=label if part == "train" else None,
                )
    for axis, (_, title) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step (points: held-out text)", fontsize=9)
        axis.grid(alpha=0.3)
    if not drawn:
        pyplot.close(figure)
        return None
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    return png_of(figure)


def draw_finetuning_curves(
    table: Table, results: Sequence[Sequence[Result | None]], root: pathlib.Path
) -> bytes | None:
    """Draw the loss of fine-tuning over steps, or None where no run left one.

    A panel for each column, a colour for each row, a line for each seed of the chosen choice.
    Columns of the same runs, as of two figures of one task, have one panel.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing

    panels: dict[str, dict[int, list[list[tuple[float, float]]]]] = {}
    seen = {name for _, name in table.curves}  # pre-training, which is drawn by itself
    for number, title in enumerate(table.columns):
        for place, (row, found) in enumerate(zip(table.rows, results, strict=True)):
            result, cell = found[number], row.cells[number]
            if cell is None or result is None:
                continue
            for name in dict(cell.choices)[result.choice]:
                read = read_metrics_or_nothing(root / name / METRICS_NAME, "train")
                points = [(line["step"], line["loss"]) for line in read if "loss" in line]
                if points and name not in seen:
                    panels.setdefault(title, {}).setdefault(place, []).append(points)
                seen.add(name)
    if not panels:
        return None
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure, axes = pyplot.subplots(
        down, across, figsize=(4 * across, 0.8 + 2.8 * down), squeeze=False, layout="constrained"
    )
    handles = {}
    for number, axis in enumerate(axes.flat):
        if number >= len(panels):
            axis.set_axis_off()
            continue
        title, lines = list(panels.items())[number]
        for place, seeds in lines.items():
            for points in seeds:
                (handles[place],) = axis.plot(
                    *zip(*points, strict=True), color=f"C{place}", alpha=0.7
                )
        axis.set_title(f"runs of {title}", fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylabel("training loss", fontsize=9)
        axis.grid(alpha=0.3)
    shown_rows = sorted(handles)
    figure.legend(
        [handles[place] for place in shown_rows],
        [table.rows[place].label for place in shown_rows],
        loc="outside lower center",
        ncols=min(across, len(shown_rows)),
        fontsize=8,
    )
    return png_of(figure)


# --- the report -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Block:
    """A part of the report: a heading, paragraphs, a table, a picture, commands."""

    heading: str
    text: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    # Of each cell the main text and a second, smaller one; aligned as words, or as numbers.
    rows: tuple[tuple[tuple[str, str], ...], ...] = ()
    words: bool = False
    picture: tuple[str, bytes] | None = None
    commands: tuple[str, ...] = ()


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
    results = [
        [None if cell is None else result_of(cell, root) for cell in row.cells]
        for row in table.rows
    ]
    title = f"Table {table.number}: {table.title} ({scale.name} scale: {scale.words})"
    blocks = [_figures(table, results), *_searches(table, results)]
    blocks.append(_Block("Bars", picture=("bars.png", draw_bars(table, results))))
    curves = draw_curves(table, root)
    if curves is not None:
        words = (
            "Held-out text is masked as the text of training: losses and accuracies of models that "
            "mask otherwise, or predict every next piece, do not compare."
        )
        picture = ("curves.png", curves)
        blocks.append(_Block("Learning curves of pre-training", (words,), picture=picture))
    curves = draw_finetuning_curves(table, results, root)
    if curves is not None:
        words = (
            "Training loss, a line for each seed of the choice that is shown above. The folder of "
            "each run has its own, with figures on dev, as curves.png."
        )
        picture = ("finetuning_curves.png", curves)
        blocks.append(_Block("Learning curves of fine-tuning", (words,), picture=picture))
    for number, (heading, words, picture) in enumerate(pictures):
        blocks.append(_Block(heading, (words,), picture=(f"picture{number}.png", picture)))
    blocks += [
        _failures(table, root, outcomes),
        _cost(table, outcomes),
        _commands(table, root, outcomes, command),
    ]
    for block in blocks:
        if block.picture is not None:
            (folder / block.picture[0]).write_bytes(block.picture[1])
    paths = folder / "REPORT.md", folder / "REPORT.html"
    paths[0].write_text(_markdown(title, blocks), encoding="utf-8")
    paths[1].write_text(_page(title, blocks), encoding="utf-8")
    return paths


def _figures(table: Table, results: Sequence[Sequence[Result | None]]) -> _Block:
    rows = []
    for row, found in zip(table.rows, results, strict=True):
        cells = [(row.label, "")]
        for cell, result in zip(row.cells, found, strict=True):
            if cell is None or result is None:
                cells.append(("", ""))
                continue
            count = len(result.values)
            small = [f"n = {count}"] if count else []
            small += [f"{result.missing} failed or not run"] if result.missing else []
            small += [f"paper {_theirs(cell)}"] if cell.paper is not None else []
            cells.append((_ours(result), ", ".join(small)))
        rows.append(tuple(cells))
    return _Block("Figures", table.note, ("", *table.columns), tuple(rows))


def _searches(table: Table, results: Sequence[Sequence[Result | None]]) -> Iterable[_Block]:
    rows = []
    for row, found in zip(table.rows, results, strict=True):
        for title, result in zip(table.columns, found, strict=True):
            if result is None or len(result.others) < 2:
                continue
            for label, mean in result.others.items():
                best = "chosen" if label == result.choice else ""
                rows.append(((row.label, ""), (title, ""), (label, ""), (f"{mean:.2f}", best)))
    if rows:
        header = ("", "column", "choice", "mean over seeds")
        yield _Block("Search", (), header, tuple(rows), words=True)


def _failures(table: Table, root: pathlib.Path, outcomes: Mapping[str, Outcome]) -> _Block:
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
                found = json.loads(path.read_text("utf-8"))["failed"] if path.exists() else {}
                rows += (((run.name, ""), ("0", ""), (reason, "")) for reason in found.values())
    text = () if rows else ("None: every run ended well, with a model better than a constant.",)
    header = ("run", "exit status", "what happened") if rows else ()
    return _Block("Failed runs", text, header, tuple(rows), words=True)


def _cost(table: Table, outcomes: Mapping[str, Outcome]) -> _Block:
    groups: dict[str, list[Outcome]] = {}
    for run in table.runs:
        if run.name in outcomes:
            kind = pathlib.PurePath(run.script).stem
            groups.setdefault(kind, []).append(outcomes[run.name])
    rows = []
    for kind, found in [*groups.items(), ("all", [o for g in groups.values() for o in g])]:
        wall, cpu = totals(found)
        peak = max((o.peak_bytes for o in found), default=0)
        numbers = (f"{len(found)}", f"{wall / 60:.1f}", f"{cpu / 60:.1f}", f"{peak / 2**30:.2f}")
        rows.append(((kind, ""), *((number, "") for number in numbers)))
    header = ("script", "runs", "wall minutes", "CPU minutes", "largest memory, GiB")
    text = ("Wall minutes are summed over runs, of which several may have gone on at once.",)
    return _Block("Cost", text, header, tuple(rows))


def _commands(
    table: Table, root: pathlib.Path, outcomes: Mapping[str, Outcome], command: Sequence[str]
) -> _Block:
    free = free_bytes()
    machine = f"{os.cpu_count()} cores, {len(gpus())} GPUs, Python {platform.python_version()}" + (
        f", {free / 2**30:.0f} GiB of memory free" if free is not None else ""
    )
    commits = collections.Counter(
        outcomes[run.name].commit for run in table.runs if run.name in outcomes
    )
    made_at = ", ".join(f"{name} ({count})" for name, count in commits.items()) or "none"
    text = (
        f"Runs at commit: {made_at}. Report: {commit()}. {machine}. Made by: `{shown(command)}`",
    )
    return _Block("Commands", text, commands=tuple(shown(run.command(root)) for run in table.runs))


# --- Markdown and HTML ----------------------------------------------------------------------------


def _markdown(title: str, blocks: Sequence[_Block]) -> str:
    lines = [f"# {title}"]
    for block in blocks:
        lines += ["", f"## {block.heading}"]
        for text in block.text:
            lines += ["", text]
        if block.rows:
            lines += ["", "| " + " | ".join(block.header) + " |", "|---" * len(block.header) + "|"]
        for row in block.rows:
            cells = (f"{main} ({small})" if small else main for main, small in row)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if block.picture is not None:
            lines += ["", f"![{block.heading}]({block.picture[0]})"]
        if block.commands:
            lines += ["", "It ran:", "", *(f"    {command}" for command in block.commands)]
    return "\n".join(lines) + "\n"


def _page(title: str, blocks: Sequence[_Block]) -> str:
    body = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        body.append(f"<h2>{html.escape(block.heading)}</h2>")
        body += (f'<p class="note">{_with_code(text)}</p>' for text in block.text)
        if block.rows:
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
            kind = ' class="words"' if block.words else ""
            body.append(f'<div class="wide"><table{kind}><tr>{head}</tr>')
            for row in block.rows:
                cells = (
                    f"<td>{html.escape(main)}"
                    + (f"<small>{html.escape(small)}</small>" if small else "")
                    + "</td>"
                    for main, small in row
                )
                body.append(f"<tr>{''.join(cells)}</tr>")
            body.append("</table></div>")
        if block.picture is not None:
            data = base64.b64encode(block.picture[1]).decode()
            words = html.escape(block.heading)
            image = f'<img alt="{words}" src="data:image/png;base64,{data}">'
            body.append(f'<div class="wide">{image}</div>')
        if block.commands:
            listed = html.escape("\n".join(block.commands))
            summary = f"the {len(block.commands)} commands that it ran"
            body.append(f"<details><summary>{summary}</summary><pre>{listed}</pre></details>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _with_code(text: str) -> str:
    """Return HTML of a text whose code stands between backticks."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
