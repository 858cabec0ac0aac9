"""Parts of paper.py and of the plots without a run: what is started, drawn and told."""

import dataclasses
import json
import subprocess
import types

import numpy as np
import pytest

from experiments.paper_tables import grid, make, pictures, recipes, report, tables
from experiments.paper_tables.grid import GridError, Outcome, Run, flags_of
from experiments.paper_tables.options import PaperOptions
from experiments.paper_tables.results import Result, difference
from experiments.paper_tables.runs import Cell, RunsOfTable
from experiments.plots import attention, curves, predictions
from experiments.plots.options import CurvesOptions
from tests.experiments.test_paper import places

DONE = Outcome(("x.py",), 0, 1.0, 1.0, 1, "abc")
COLUMNS = ("one", "two", "three", "four", "five")


def table_of(names=("a/1", "a/2"), columns=COLUMNS, **more):
    """Return a table of one row, each cell of the same two runs."""
    cell = Cell((("x", names),), "f1", paper=88.5)
    rows = (tables.Row("BERT", (cell,) * len(columns)),)
    runs = tuple(Run(name, "x.py", ()) for name in names)
    return tables.Table(4, "A title", ("A note.",), columns, rows, runs, **more)


def write_run(root, name, f1, metrics=()):
    (root / name).mkdir(parents=True)
    (root / name / "eval_results.json").write_text(json.dumps({"f1": f1}))
    (root / name / "bert_config.json").write_text("{}")
    if metrics:
        text = "".join(json.dumps(line) + "\n" for line in metrics)
        (root / name / "metrics.jsonl").write_text(text)


PRETRAINING = [
    {"kind": "baseline", "step": 0, "unigram_loss": 7.0},
    *({"kind": "train", "step": n, "mlm_loss": 5 / n, "mlm_accuracy": n / 10} for n in (1, 2)),
    {"kind": "eval", "step": 2, "eval_mlm_loss": 3.5, "eval_nsp_accuracy": 0.75},
    {"kind": "eval", "step": 2, "eval_mlm_loss_at_mask": 4.5},
]


# === Pictures ===


@pytest.fixture
def drawn(monkeypatch):
    """Let pictures be figures."""
    monkeypatch.setattr(pictures, "png_of", lambda figure: figure)


def test_panels_without_a_column_are_off(tmp_path, drawn):
    for number, f1 in ((1, 80), (2, 90)):
        write_run(tmp_path, f"a/{number}", f1)
    table = table_of()
    results = [[report.result_of(cell, tmp_path) for cell in table.rows[0].cells]]
    axes = pictures.draw_bars(table, results).axes
    assert [axis.axison for axis in axes] == [True] * 5 + [False] * 3
    assert [axis.get_title() for axis in axes[:5]] == list(COLUMNS)
    (bar,) = axes[4].patches
    assert bar.get_width() == 85
    assert axes[4].lines[-1].get_xdata() == [88.5]  # the paper's


def test_curves_of_pretraining(tmp_path, drawn):
    table = table_of(curves=(("BERT", ("a/1",)), ("other", ("a/2",))))
    assert pictures.draw_curves(table, tmp_path) is None
    write_run(tmp_path, "a/1", 80, PRETRAINING)
    figure = pictures.draw_curves(table, tmp_path)
    loss, at_mask, accuracy, next_sentence = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[5, 2.5], [3.5]]
    assert [list(line.get_ydata()) for line in at_mask.lines] == [[4.5], [7, 7]]
    assert [text.get_text() for text in at_mask.texts] == ["unigram model"]
    assert accuracy.lines[0].get_ydata().tolist() == [0.1, 0.2] and len(accuracy.lines) == 1
    assert next_sentence.lines[0].get_xydata().tolist() == [[2, 0.75]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["BERT"]


def test_curves_of_seeds_have_one_colour_and_one_name(tmp_path, drawn):
    for name in ("a/1", "a/2"):
        write_run(tmp_path, name, 80, PRETRAINING[1:3])
    figure = pictures.draw_curves(table_of(curves=(("BERT", ("a/1", "a/2")),)), tmp_path)
    assert [line.get_color() for line in figure.axes[0].lines] == ["C0", "C0"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["BERT"]


def test_curves_of_finetuning_have_a_panel_for_runs_of_their_own(tmp_path, drawn):
    names = [(f"{column}/1", f"{column}/2") for column in "abcd"]
    for one, _ in names:
        write_run(tmp_path, one, 80, [{"kind": "train", "step": 1, "loss": 0.5}])
    cells = tuple(Cell((("x", both),), "f1") for both in names)
    table = table_of(columns=COLUMNS[:4])
    table = dataclasses.replace(table, rows=(tables.Row("BERT", cells),))
    results = [[report.result_of(cell, tmp_path) for cell in cells]]
    axes = pictures.draw_finetuning_curves(table, results, tmp_path).axes
    assert [axis.axison for axis in axes] == [True] * 4 + [False] * 2
    assert axes[3].get_title() == "runs of four"
    assert axes[3].lines[0].get_xydata().tolist() == [[1, 0.5]]


def test_long_sequences_and_many_labels_have_no_room_for_words(tmp_path, monkeypatch):
    for length, shown in ((24, 24), (25, 0)):
        tokens = tuple(f"w{i}" for i in range(length))
        seen = attention.Activations(
            tokens, np.zeros((1, 1, length, length)), np.zeros((2, length, 3)), (), (), np.zeros(0)
        )
        (axis,) = attention.attention_figure(seen).axes
        assert len(axis.get_yticks()) == len(axis.get_xticks()) == shown
        assert axis.get_ylabel() == "layer 1" and axis.get_title() == "head 1"
    figures = []
    monkeypatch.setattr(predictions, "save_figure", lambda figure, png: figures.append(figure))
    for count in (2, 31):
        labels = np.arange(count)
        predictions.plot_confusion(labels, labels, [f"l{i}" for i in range(count)], tmp_path / "x")
    texts = [figure.axes[0].texts for figure in figures]
    assert [len(found) for found in texts] == [2 * 2, 0] and texts[0][0].get_text() == "1"


def test_the_command_draws_the_curves_of_a_folder(tmp_path, monkeypatch, capsys):
    lines = [{"kind": "train", "step": n, "mlm_loss": 5 / n, "learning_rate": 1} for n in (1, 2)]
    write_run(tmp_path, "a", 1, lines)
    saved = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, png: saved.append((figure, png)))
    for png, path in ((None, tmp_path / "a" / "curves.png"), ("x.png", "x.png")):
        curves.run(CurvesOptions(str(tmp_path / "a"), png))
        assert capsys.readouterr().out == f"{path}\n" and saved[-1][1] == path
    titles = [axis.get_title() for axis in saved[0][0].axes if axis.get_title()]
    assert "Language model: loss" in titles and not any("Next" in title for title in titles)


# === How rows differ ===

# Student's data of two drugs (R's `sleep`); R 4: t.test(extra ~ group, data = sleep).
DRUGS = (
    (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0),
    (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4),
)


def result_with(*of_models):
    return Result(tuple(value for values in of_models for value in values), of_models, "", 0, {})


def test_rows_are_compared_by_welchs_test():
    found = difference(*map(result_with, DRUGS))
    assert found.mean == pytest.approx(0.75 - 2.33)
    assert found.low == pytest.approx(-3.3654832, abs=1e-6)
    assert found.high == pytest.approx(0.2054832, abs=1e-6)
    assert found.p == pytest.approx(0.07939, abs=1e-5) and found.counts == (10, 10)


def test_figures_of_one_model_count_once_where_there_are_several_models():
    seeds = [[(mean - 1, mean, mean + 1) for mean in drug] for drug in DRUGS]
    found = difference(*(result_with(*of_models) for of_models in seeds))
    assert found.p == pytest.approx(0.07939, abs=1e-5) and found.counts == (10, 10)
    mixed = difference(result_with(*seeds[0]), result_with(DRUGS[1]))
    assert mixed.counts == (30, 10)


def test_what_cannot_be_compared_is_not():
    assert difference(result_with((1.0,)), result_with((1.0, 2.0))) is None
    assert difference(result_with((1.0, 1.0)), result_with((2.0, 2.0))) is None
    assert difference(result_with(), result_with((1.0, 2.0))) is None
    assert difference(result_with((1.0, 1.0)), result_with((2.0, 2.5))) is not None


def test_a_report_says_how_rows_differ_and_what_models_saw(tmp_path):
    rows, names = [], {}
    for label, figures in (("BERT", (80, 82)), ("LTR", (70, 73)), ("none", ())):
        names[label] = tuple(f"{label}/seed-{seed}" for seed in range(2))
        for name, figure in zip(names[label], figures, strict=False):
            write_run(tmp_path, name, figure)
        rows.append(tables.Row(label, (Cell((("x", names[label]),), "f1"),)))
    curves = []
    for label, config, extra in (
        ("BERT", {}, {"masked_lm_loss_at_mask": 4.25, "next_sentence_accuracy": 0.75}),
        ("LTR", {"left_to_right": True}, {}),
    ):
        model = tmp_path / f"{label}/pretraining"
        write_run(tmp_path, f"{label}/pretraining", 0, [{"kind": "train", "tokens": 5_000_000}])
        (model / "eval_results.json").write_text(json.dumps({"masked_lm_loss": 3.5, **extra}))
        (model / "bert_config.json").write_text(json.dumps(config))
        curves.append((label, (f"{label}/pretraining",)))
    curves.append(("none", ("none/pretraining",)))
    table = tables.Table(5, "T", (), ("one",), tuple(rows), (), tuple(curves))
    outcomes = {"BERT/pretraining": dataclasses.replace(DONE, cpu_seconds=90.0)}
    path, _ = report.write_report(table, recipes.SMALL, tmp_path, outcomes, command=["x.py"])
    text = path.read_text()
    assert "## Differences from BERT\n" in text and "seeds of fine-tuning from one" in text
    assert "| LTR | -9.5 (95%: -18.5 to -0.5, p = 0.045, n = 2 and 2) |" in text
    assert "| none | - |" in text
    assert "| BERT (n = 1) | 3.500 | 4.250 | - | 75.0 | 5.0 | 2.0 | 1.5 |" in text
    assert "| LTR (n = 1) | 3.500 | - | - | - | 5.0 | 5.0 | 0.0 |" in text
    assert "| none (n" not in text


# === The grid ===


def test_gpus_that_the_driver_tells_of(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(grid.shutil, "which", lambda name: f"/bin/{name}")
    for status, expected in ((0, ["0", "1"]), (9, [])):
        done = types.SimpleNamespace(stdout="0\n1\n", returncode=status)
        monkeypatch.setattr(grid.subprocess, "run", lambda *_, done=done, **__: done)
        assert grid.gpus() == expected
    monkeypatch.setattr(grid.shutil, "which", lambda name: None)
    assert grid.gpus() == []


def scheduler(tmp_path, *names, **more):
    runs = [Run(name, "x.py", flags_of(), memory_bytes=5) for name in names]
    return grid._Scheduler(runs, tmp_path, more.get("jobs", 2), lambda line: None)


def test_a_run_waits_until_there_is_memory_for_it(tmp_path, monkeypatch):
    begun, free = [], [4]
    made = scheduler(tmp_path, "a", "b", jobs=3)

    def begin(run, share):
        begun.append(run.name)
        made.processes[len(begun)] = None

    monkeypatch.setattr(made, "_begin", begin)
    monkeypatch.setattr(grid, "free_bytes", lambda: free[0])
    made._begin_ready_runs()
    assert begun == ["a"]  # alone it begins in any case
    made._begin_ready_runs()
    assert begun == ["a"] and [run.name for run in made.waiting] == ["b"]
    free[0] = None  # of a system that does not tell
    made._begin_ready_runs()
    assert begun == ["a", "b"]
    with pytest.raises(GridError, match="jobs: expected at least 1, got -1"):
        scheduler(tmp_path, jobs=-1)


class Stubborn:
    """A process that does not end when it is asked to."""

    def __init__(self, ends):
        self.ends, self.told = ends, []

    def send_signal(self, number):
        self.told.append(number.name)

    def wait(self, timeout=None):
        if not self.ends:
            raise subprocess.TimeoutExpired("x", timeout)

    def kill(self):
        self.told.append("kill")
        self.ends = True


def test_runs_that_do_not_end_are_killed_and_other_children_left_alone(tmp_path, monkeypatch):
    made = scheduler(tmp_path, "a", "b")
    for number, ends in enumerate((True, False)):
        made.processes[number] = grid._Process(
            made.waiting[number], Stubborn(ends), 0.0, None, "abc"
        )
    processes = [running.process for running in made.processes.values()]
    monkeypatch.setattr(grid.os, "wait4", lambda *_: (77, 0, None))  # of who else starts processes
    made._end_one()
    assert len(made.processes) == 2 and not made.outcomes
    made._stop_all()
    assert [process.told for process in processes] == [["SIGTERM"], ["SIGTERM", "kill"]]
    assert not made.processes


def test_two_runs_do_not_share_a_name(tmp_path):
    runs = RunsOfTable(4, recipes.SMALL, places(tmp_path), tmp_path)
    assert runs.add("a", "x.py", {"b": 1}) == runs.add("a", "x.py", {"b": 1}) == "a"
    with pytest.raises(GridError, match="two different runs have the name 'a'"):
        runs.add("a", "x.py", {"b": 2})


def test_tables_of_a_model_without_a_configuration_or_a_test_file(tmp_path, monkeypatch):
    given, root = places(tmp_path), tmp_path / "runs"
    with pytest.raises(GridError, match="table: expected 1 to 8, got 9"):
        tables.make_table(9, recipes.SMALL, given, root)
    without = dataclasses.replace(given, ner_test_file=None)
    with_test = tables.make_table(7, recipes.SMALL, given, root)
    table = tables.make_table(7, recipes.SMALL, without, root)
    assert len(table.columns) == 1 and len(with_test.columns) == 2
    assert all(len(row.cells) == 1 for row in table.rows)
    assert not any("test_file" in dict(run.flags) for run in table.runs)
    assert any("test_file" in dict(run.flags) for run in with_test.runs)
    monkeypatch.setattr(tables, "locate", lambda folder: folder)
    monkeypatch.setattr(tables, "read_config", lambda located: None)
    nowhere = dataclasses.replace(given, model_dir=str(tmp_path / "none"))
    with pytest.raises(GridError, match="none: expected a model directory, with bert_config.json"):
        tables.make_table(7, recipes.SMALL, nowhere, root)


# === The command ===


def options_of(tmp_path, **more):
    return PaperOptions("4", "small", str(tmp_path), **more)


@pytest.fixture
def made_table(monkeypatch):
    """Return a table that the command makes, whatever its number; pictures are not drawn."""
    monkeypatch.setattr(pictures, "png_of", lambda figure: b"drawn")
    table = table_of(curves=(("BERT", ("a/1",)),), shown_model="a/1")
    monkeypatch.setattr(make.tables, "make_table", lambda *_: table)
    return table


def test_the_command_reports_what_was_run(tmp_path, made_table, monkeypatch, capsys):
    write_run(tmp_path, "a/1", 80, PRETRAINING)
    given = []

    def run_grid(runs, root, jobs):
        given.append((runs, root, jobs))
        return {"a/1": DONE, "a/2": dataclasses.replace(DONE, status=1, last_line="no")}

    monkeypatch.setattr(make.grid, "run_grid", run_grid)
    monkeypatch.setattr(make, "_pictures", lambda *_: [("Attention", "some words", b"a PNG")])
    with pytest.raises(RuntimeError, match="^1 of 2 runs failed or were not run; the report names"):
        make.run(options_of(tmp_path, jobs=3))
    assert given == [(made_table.runs, tmp_path, 3)]
    assert f"wrote {tmp_path}/table4/REPORT.md\n" in capsys.readouterr().out
    text = (tmp_path / "table4" / "REPORT.md").read_text()
    assert "## Learning curves of pre-training" in text and "| a/2 | 1 | no |" in text
    assert "## Attention\n" in text and "some words" in text
    assert (tmp_path / "table4" / "picture0.png").read_bytes() == b"a PNG"
    assert (tmp_path / "table4" / "curves.png").read_bytes() == b"drawn"


def test_a_report_alone_runs_nothing(tmp_path, made_table, monkeypatch, capsys):
    monkeypatch.setattr(make.grid, "run_grid", None)
    monkeypatch.setattr(make, "_pictures", lambda *_: [])
    for name in ("a/1", "a/2"):
        write_run(tmp_path, name, 80)
    (tmp_path / "a/1.run.json").write_text(json.dumps(dataclasses.asdict(DONE)))
    with pytest.raises(RuntimeError, match="^1 of 2 runs failed or were not run"):
        make.run(options_of(tmp_path, report_only=True))
    assert "| a/2 | not run |  |" in (tmp_path / "table4" / "REPORT.md").read_text()
    (tmp_path / "a/2.run.json").write_text(json.dumps(dataclasses.asdict(DONE)))
    make.run(options_of(tmp_path, report_only=True))
    assert "None: every run ended well" in (tmp_path / "table4" / "REPORT.md").read_text()
    assert "80.0" in (tmp_path / "table4" / "REPORT.html").read_text()
    capsys.readouterr()
    make.run(options_of(tmp_path, dry_run=True))
    first, *commands = capsys.readouterr().out.splitlines()
    assert first.startswith("Table 4, A title: 2 runs; training takes 0 floating point")
    assert commands == [grid.shell_line(run.command(tmp_path)) for run in made_table.runs]


def test_pictures_are_of_the_models_that_were_made(tmp_path, made_table, monkeypatch):
    seen = []

    def activations(folder, text, text_b):
        seen.append((folder, text, text_b))
        return types.SimpleNamespace(pieces=found.pop(0))

    monkeypatch.setattr(attention, "activations_of", activations)
    for name in ("attention", "prediction", "embedding"):
        monkeypatch.setattr(attention, f"{name}_figure", lambda _, name=name: name)
    monkeypatch.setattr(make, "png_of", lambda figure: figure)
    options = options_of(tmp_path, text="A", text_b="B")
    outcomes = {"a/1": DONE}
    words = "A B (a/1)"
    found = [(("x",),), ()]  # the model's head of masks may be gone
    for expected in (
        ["Attention", "Predictions by layer", "Embeddings"],
        ["Attention", "Embeddings"],
    ):
        drawn = make._pictures(made_table, tmp_path, outcomes, options)
        assert [(heading, said) for heading, said, _ in drawn] == [(x, words) for x in expected]
        assert drawn[-1][2] == "embedding"
    assert seen[0] == (tmp_path / "a/1", "A", "B")
    failed = {"a/1": dataclasses.replace(DONE, status=1)}
    for others in ({}, failed):
        assert make._pictures(made_table, tmp_path, others, options) == []
    unseen = dataclasses.replace(made_table, shown_model=None)
    assert make._pictures(unseen, tmp_path, outcomes, options) == []
