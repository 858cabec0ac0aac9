"""The grid of runs, and the tables of the paper that are made of it."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import textwrap
import time

import pytest
from absl import app, flags

from bert_tf.config import BertConfig
from bert_tf.options import define, read
from bert_tf.tasks.table import TASKS
from bert_tf.weights.locate import LocatedCheckpoint
from data_prep.processes import folder_lock
from experiments.command_line import preemption
from experiments.paper_tables import cost, make, pages, pictures, recipes, report, tables
from experiments.paper_tables.grid import (
    REPOSITORY,
    GridError,
    Run,
    check_grid,
    commit,
    flags_of,
    gpus,
    run_grid,
    shell_line,
)
from experiments.paper_tables.options import PaperOptions
from experiments.paper_tables.results import read_figures, result_of
from experiments.paper_tables.runs import Cell

# Writes its number into its folder; "fail" ends it with status 3.
SCRIPT = """
import json, os, pathlib, sys, time
given = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:] if "=" in argument)
folder = pathlib.Path(given["output_dir"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "attempts", "a") as stream:
    stream.write(".")
if given.get("fail") and len((folder / "attempts").read_text()) <= int(given["fail"]):
    print("it cannot be done")
    sys.exit(3)
(folder / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
(folder / "eval_results.json").write_text(json.dumps({"f1": float(given["number"])}))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return str(path)


def made(script, name, number=1, needs=(), **more):
    return Run(name, script, flags_of(number=number, **more), tuple(needs))


def attempts(root, name):
    return len((root / name / "attempts").read_text())


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_wait_for_what_they_need_and_are_not_run_again(script, tmp_path, jobs):
    root, told = tmp_path / "grid", []
    runs = [
        made(script, "t/b", 2, ["t/a"]),
        made(script, "t/c", 3, ["t/a", "t/b"]),
        made(script, "t/a", 1),
    ]
    outcomes = run_grid(runs, root, jobs=jobs, log=told.append)
    assert [line.split()[-1] for line in told if "begins" in line] == ["t/a", "t/b", "t/c"]
    assert all(outcome.finished and outcome.cpu_seconds > 0 for outcome in outcomes.values())
    assert json.loads((root / "t/c/eval_results.json").read_text()) == {"f1": 3.0}
    told.clear()
    again = run_grid(runs, root, jobs=jobs, log=told.append)
    assert again == outcomes and told == ["3 of 3 runs are finished already"]
    (root / "t/b/eval_results.json").unlink()
    run_grid(runs, root, log=told.append)
    assert [attempts(root, name) for name in ("t/a", "t/b", "t/c")] == [1, 2, 1]


def test_what_others_wait_for_begins_first(script, tmp_path):
    runs = [
        made(script, "first"),
        made(script, "first/used", needs=["first"]),
        made(script, "second"),
        made(script, "second/used", needs=["second"]),
    ]
    told = []
    run_grid(runs, tmp_path, jobs=1, log=told.append)
    begun = [line.split()[-1] for line in told if "begins" in line]
    assert begun == ["first", "second", "first/used", "second/used"]


def test_runs_have_a_device_each(script, tmp_path, monkeypatch):
    """By default as many run at once as there are GPUs, or cores where there are none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    runs = [made(script, name) for name in "abc"]
    told = []
    run_grid(runs, tmp_path, log=told.append)
    assert [line.split()[-2] for line in told[:2]] == ["begins", "begins"]  # and not a third
    devices = [(tmp_path / name / "device").read_text() for name in "abc"]
    assert sorted(devices[:2]) == ["3", "GPU-5"] and devices[2] in devices[:2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus() == []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    told.clear()
    run_grid(runs, tmp_path / "cores", log=told.append)
    assert [line.split()[-2] for line in told[:3]] == ["begins"] * 3
    assert (tmp_path / "cores/a/device").read_text() == "-1"  # the user's own setting stays


def test_a_failed_run_is_told_and_tried_again(script, tmp_path):
    root, told = tmp_path / "grid", []
    runs = [made(script, "a", fail=1), made(script, "b", needs=["a"]), made(script, "c")]
    outcomes = run_grid(runs, root, log=told.append)
    assert outcomes["a"].status == 3 and outcomes["a"].last_line == "it cannot be done"
    assert "b" not in outcomes and outcomes["c"].finished
    assert any("FAILED (it cannot be done)" in line for line in told)
    outcomes = run_grid(runs, root, log=told.append)
    assert all(outcome.finished for outcome in outcomes.values()) and len(outcomes) == 3
    assert attempts(root, "c") == 1
    log = (root / "a.log").read_text()
    assert log.count("$ python ") == 2 and "it cannot be done" in log


def test_a_run_that_ends_well_without_its_result_has_failed(tmp_path):
    silent = tmp_path / "silent.py"
    silent.write_text("")
    outcomes = run_grid([made(str(silent), "a")], tmp_path, log=lambda _: None)
    assert not outcomes["a"].finished


def test_grids_that_cannot_be(script, tmp_path):
    def run(*runs):
        run_grid(runs, tmp_path / "grid", log=lambda _: None)

    with pytest.raises(GridError, match="two runs have the name 'a'"):
        run(made(script, "a"), made(script, "a", 2))
    with pytest.raises(GridError, match="a needs 'x', which is not there"):
        run(made(script, "a", needs=["x"]))
    with pytest.raises(GridError, match="these runs need each other: a, b"):
        run(made(script, "a", needs=["b"]), made(script, "b", needs=["a"]))
    run(made(script, "a"))
    with pytest.raises(GridError, match="holds a finished run of another command"):
        run(made(script, "a", 2))
    (tmp_path / "grid/a.run.json").write_text("{")
    with pytest.raises(GridError, match=r"a\.run\.json: not what a run leaves"):
        run(made(script, "a"))


def test_one_grid_at_a_time_runs_in_a_folder(script, tmp_path):
    with folder_lock.lock_folder(tmp_path) as held:
        assert held is not None
        with pytest.raises(GridError, match="another grid runs in this folder"):
            run_grid([made(script, "a")], tmp_path)
    assert run_grid([made(script, "a")], tmp_path)["a"].finished


def test_sigterm_stops_the_runs_too(tmp_path):
    """As a cluster's end of time does; a run that were left would write on, unseen."""
    waits = tmp_path / "waits.py"
    waits.write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1].split('=')[1] + '.pid').write_text(str(os.getpid()))\n"
        "time.sleep(300)\n"
    )
    grid = (
        "from experiments.paper_tables import grid\n"
        f"run = grid.Run('a', {str(waits)!r}, ())\n"
        f"grid.run_grid([run], {str(tmp_path)!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", grid], cwd=REPOSITORY)
    written = tmp_path / "a.pid"
    while process.poll() is None and not (written.exists() and written.read_text()):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == preemption.STATUS
    with pytest.raises(ProcessLookupError):
        os.kill(int(written.read_text()), 0)


def test_tables_share_the_models_they_pretrain(tmp_path):
    """The model that 5, 6 and 8 have in common is trained once, by the same command in all."""
    given, root = places(tmp_path), tmp_path / "runs"
    commands, configs = {}, {}
    for number in (5, 6, 8):
        for run in tables.make_table(number, recipes.SMALL, given, root).runs:
            assert commands.setdefault(run.name, run.command(root)) == run.command(root)
        for path in root.glob("pretrained/*/*/bert_config.json"):
            assert configs.setdefault(path, path.read_text()) == path.read_text()
    models = [name for name in commands if name.endswith("/pretraining")]
    assert len(models) == 3 + 6 + 6 - 2
    usual = "pretrained/L2-H128-A2/seed12345"
    assert f"{usual}/pretraining" in models
    assert "pretrained/L2-H128-A2-mask0-same20-random80/seed12345/pretraining" in models
    (root / usual / "pretraining").mkdir()
    tables.make_table(8, recipes.SMALL, given, root)
    (root / usual / "bert_config.json").write_text("{}")
    with pytest.raises(GridError, match="seed12345: holds a model of another configuration"):
        tables.make_table(8, recipes.SMALL, given, root)


def places(tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(f"p{i}" for i in range(101)) + "\n")
    model = tmp_path / "model"
    model.mkdir()
    size = {"vocab_size": 101, "type_vocab_size": 2}
    (model / "bert_config.json").write_text(json.dumps(size))
    names = [field for field in recipes.Places.__dataclass_fields__ if "file" in field]
    given = {name: str(tmp_path / name) for name in names}
    return recipes.Places(
        **{**given, "vocab_file": str(vocab)},
        glue_dir=str(tmp_path / "glue"),
        model_dir=str(model),
        large_model_dir=str(model),
    )


def test_a_model_may_be_given_by_its_name(tmp_path, monkeypatch):
    found = LocatedCheckpoint("tf", "x", "x", str(tmp_path / "model/bert_config.json"), None)
    given = dataclasses.replace(places(tmp_path), model_dir="hf://a/b", large_model_dir=None)
    monkeypatch.setattr(tables, "locate", lambda name: {"hf://a/b": found}[name])
    table = tables.make_table(1, recipes.SMALL, given, tmp_path / "runs")
    assert {dict(run.flags)["model_dir"] for run in table.runs} == {"hf://a/b"}


def test_a_model_may_be_a_preset_of_keras_hub(tmp_path):
    config = {"vocabulary_size": 101, "hidden_dim": 14, "num_layers": 3, "num_heads": 2}
    backbone = {"registered_name": "keras_hub>BertBackbone"}
    backbone["config"] = {**config, "intermediate_dim": 17, "dropout": 0.1}
    preset = tmp_path / "preset"
    preset.mkdir()
    (preset / "config.json").write_text(json.dumps(backbone))
    (preset / "model.weights.h5").touch()
    given = dataclasses.replace(places(tmp_path), model_dir=str(preset), large_model_dir=None)
    table = tables.make_table(1, recipes.SMALL, given, tmp_path / "runs")
    assert [row.label for row in table.rows][-1] == "L3-H14 (for BERT-BASE)"


@pytest.mark.parametrize("scale", recipes.SCALES)
@pytest.mark.parametrize("number", tables.NUMBERS)
def test_every_flag_of_every_run_is_one_of_its_script(number, scale, tmp_path):
    """And cells name runs that are there, once for each seed."""
    table = tables.make_table(number, recipes.SCALES[scale], places(tmp_path), tmp_path / "runs")
    check_grid(table.runs)
    names = {run.name for run in table.runs}
    for row in table.rows:
        assert len(row.cells) == len(table.columns)
        for cell in row.cells:
            for _, runs in cell.choices:
                assert set(runs) <= names
    used = {name for row in table.rows for cell in row.cells for _, r in cell.choices for name in r}
    needed = {name for run in table.runs for name in run.needs}
    assert names == used | needed
    if scale == "small":
        assert sum(run.train_flops for run in table.runs) < 4e16
    for run in table.runs:
        defined = known_flags(run.script)
        for name, _ in (*run.flags, (run.output_flag, None)):
            assert name in defined, (run.script, name)


@pytest.mark.parametrize("name", recipes.TARGETS)
def test_the_figure_of_a_target_is_one_that_its_script_writes(name):
    target = recipes.TARGETS[name]
    task = dict(target.flags).get("task_name", name).lower()
    task = {"squad1": "squad1.1", "squad2": "squad2.0"}.get(task, task)
    prefix = "" if task.startswith("squad") else "eval_"
    assert target.figure in [f"{prefix}{metric}" for metric in TASKS[task].metrics]


def test_a_row_says_which_model_it_is_of():
    size = {"num_hidden_layers": 24, "hidden_size": 1024}
    assert tables._words("large", size) == "BERT-LARGE"
    assert tables._words("base", size) == "L24-H1024 (for BERT-BASE)"


@functools.cache
def known_flags(script):
    """Names of the flags that a script of this repository defines when it is run."""
    values = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        patch.setattr(app, "run", lambda *_, **__: None)
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    return set(values)


def test_the_paper_needs_as_much_as_is_known(tmp_path):
    """6 operations for each parameter and token (arXiv 2001.08361), and those of attention."""
    config = BertConfig(vocab_size=30522)
    layers = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    found = cost.flops_per_token(config, 128, 0, 2)
    assert found == pytest.approx(6 * layers, rel=0.03) and found > 6 * layers


def test_a_report_shows_ours_beside_the_papers(script, tmp_path):
    root = tmp_path / "grid"
    runs = [
        made(script, f"table4/{choice}-{seed}", number=number, **more)
        for choice, seed, number, more in (
            ("x", 1, 80, {}),
            ("x", 2, 84, {}),
            ("y", 1, 90, {}),
            ("y", 2, 94, {"fail": 9}),
        )
    ]
    choices = (("rate x", ("table4/x-1", "table4/x-2")), ("rate y", ("table4/y-1", "table4/y-2")))
    cells = Cell(choices, "f1", 1.0, 88.5), Cell(choices[:1], "f1")
    table = tables.Table(
        4,
        "A <title>",
        ("Of A & B.",),
        ("one", "two"),
        (tables.Row("BERT", cells),),
        tuple(runs),
    )
    outcomes = run_grid(runs, root, log=lambda _: None)
    outcomes["table4/y-2"] = dataclasses.replace(outcomes["table4/y-2"], commit="abc")
    reason = "f1 0.0 is not above that of a constant answer"
    (root / "table4" / "x-2" / "seeds.json").write_text(json.dumps({"failed": {"2": reason}}))
    tagger = {"failed": {"last-seed-1": f"last, seed 1: {reason}"}}
    (root / "table4" / "x-1" / "feature_based.json").write_text(json.dumps(tagger))
    for seed, name in enumerate(("x-1", "x-2")):
        lines = ({"kind": "train", "step": step, "loss": 1 / step + seed} for step in (10, 20))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / "table4" / name / "metrics.jsonl").write_text(text)
    text, page = (
        path.read_text()
        for path in report.write_report(
            table, recipes.SMALL, root, outcomes, command=["x.py", "--y"]
        )
    )
    assert "| BERT | 90.0 (n = 1, 1 failed or not run, paper 88.5) | 82.0 ± 2.8 (n = 2) |" in text
    assert "| BERT | one | rate x | 82.00 |" in text
    assert "| BERT | one | rate y | 90.00 (chosen) |" in text
    assert "| table4/y-2 | 3 | it cannot be done |" in text
    assert "| table4/x-2 | 0 | f1 0.0 is not above that of a constant answer |" in text
    assert "| table4/x-1 | 0 | last, seed 1: f1 0.0 is not above that of" in text
    assert "![Learning curves of fine-tuning](finetuning_curves.png)" in text
    assert "Learning curves of pre-training" not in text
    assert "Made by: <code>python x.py --y</code>" in page and "`" not in page
    assert "small scale" in text and "![Bars](bars.png)" in text
    assert (root / "table4/bars.png").stat().st_size > 1000
    assert "A &lt;title&gt;" in page and "Of A &amp; B." in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)  # nothing from elsewhere
    for run in runs:
        assert shell_line(run.command(root)) in text
    assert f"Runs at commit: {commit()} (3), abc (1). Report: " in text
    of_pretraining = dataclasses.replace(table, curves=(("x", ("table4/x-1", "table4/x-2")),))
    results = [[result_of(cell, root) for cell in cells]]
    assert pictures.draw_finetuning_curves(table, results, root) is not None
    assert pictures.draw_finetuning_curves(of_pretraining, results, root) is None
    with pytest.raises(ValueError, match="has no figure 'em'"):
        read_figures(root / "table4/x-1/eval_results.json", "em")
    assert read_figures(root / "absent.json", "em") == []


def test_what_runs_print_is_shown_as_it_is():
    text = "![a](http://x.y/z.png) <b> __init__() *args | end"
    block = pages.Block("Failed", header=("run", "line"), rows=((("r", ""), (text, "")),))
    page = pages.to_page("T", [block])
    shown = "![a](http://x.y/z.png) &lt;b&gt; __init__() *args | end"
    assert f">{shown}</td>" in page and "src=" not in page


def test_figures_lie_where_they_are_said_to(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps({"loss": 2.0, "results": {"last": {"seeds": {"1": {"f": 3}, "2": {"f": 5}}}}})
    )
    assert read_figures(path, "results/last/seeds/*/f") == [3, 5]
    assert read_figures(path, "exp:loss") == [pytest.approx(7.389056)]


def options_of(*arguments):
    values = flags.FlagValues()
    define(PaperOptions, values)
    values(["x", *arguments])
    return read(PaperOptions, values)


def test_a_dry_run_shows_commands_and_cost_and_runs_nothing(tmp_path, capsys):
    given = dataclasses.asdict(places(tmp_path))
    arguments = [f"--{name}={value}" for name, value in given.items()]
    make.run(options_of("--table=5", f"--output_dir={tmp_path / 'out'}", "--dry_run", *arguments))
    printed = capsys.readouterr().out
    assert "device-hours at 125 TFLOP/s" in printed
    assert printed.count("\npython experiments/run_pretraining.py") == 3
    assert not list(pathlib.Path(tmp_path / "out").rglob("*.log"))
    with pytest.raises(GridError, match="--model_dir: this table needs it"):
        make.run(options_of("--table=2", f"--output_dir={tmp_path}"))
    assert sys.executable
