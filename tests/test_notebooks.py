"""The notebooks: each runs and shows that it has learnt, and what it shows is of its code."""

import importlib
import re

import pytest

from tests.support import code_blocks
from tests.support.code_blocks import REPOSITORY

for package in ("ipykernel", "nbclient"):
    pytest.importorskip(package, reason="needs the extra notebooks")
notebooks = importlib.import_module("tests.support.notebooks")

PATHS = {path.stem: path for path in notebooks.paths()}
# Name -> what holds at the notebook's end, with its names.
LEARNT = {
    "entities": "len(found) == len(messages) and scores[-1]['eval_entity_f1'] > 60",
    "finetune_csv": "accuracy[-1] >= 0.75 and accuracy[-1] > from_scratch[-1] + 0.1",
    "looking_inside": "vectors.shape == (6, 128) and found.completeness_gap < 0.01",
    "pretraining": "loss < unigram - 1 and accuracy > 0.5",
    "question_answering": "scores['exact_match'] > 50 and server.returncode == 0",
}
# Of the two that train longest: what is put in the place of steps by default.
FEWER_STEPS = {
    "pretraining": ("steps, epochs = 125, 8", "steps, epochs = 40, 2"),
    "question_answering": ("batch_size, epochs = 30, 6", "batch_size, epochs = 30, 1"),
}
MOST_BYTES = 500_000


def shown(notebook):
    """Return for each cell the kinds of what it shows."""
    return [
        [(output.output_type, *sorted(output.get("data", ()))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_five_and_all_are_linked():
    assert PATHS.keys() == LEARNT.keys()
    for page in ("README.md", "docs/index.md", "mkdocs.yml"):
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        assert all(f"notebooks/{path.name}" in text for path in PATHS.values()), page


@pytest.mark.parametrize("name", PATHS)
def test_what_is_shown_is_of_this_code(name):
    notebook = notebooks.read(PATHS[name])
    assert notebook.metadata[notebooks.DIGEST] == notebooks.digest_of(notebook), "make notebooks"
    assert PATHS[name].stat().st_size < MOST_BYTES
    assert not notebooks.faults_of(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert any(shown(notebook))


@pytest.mark.parametrize("name", PATHS)
def test_commands_in_its_text_have_their_flags(name):
    cells = notebooks.read(PATHS[name]).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for code in code_blocks.code_of(name, text + "\n"):
        script, count = re.subn(r"^bert-tf (\w+)", r"python experiments/\1.py", code.text)
        assert count, code
        code_blocks.check_flags(script)


def run(name, notebook, folder, **given):
    """Run it: no cell fails or warns, and it shows what the committed one does."""
    executed = notebooks.execute(notebook, folder, **given)
    logs = {path.name: path.read_text() for path in (folder / "work").glob("*.log")}
    assert not notebooks.faults_of(executed, logs)
    assert shown(executed) == shown(notebooks.read(PATHS[name]))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in FEWER_STEPS)) for name in PATHS],
)
def test_notebook_runs(name, tmp_path):
    run(name, notebooks.read(PATHS[name]), tmp_path, check=f"assert {LEARNT[name]}")


@pytest.mark.thorough
@pytest.mark.parametrize("name", FEWER_STEPS)
def test_notebook_runs_with_fewer_steps(name, tmp_path):
    notebook = notebooks.read(PATHS[name])
    printed, fewer = FEWER_STEPS[name]
    assert sum(printed in cell.source for cell in notebook.cells) == 1
    for cell in notebook.cells:
        cell.source = cell.source.replace(printed, fewer)
    run(name, notebook, tmp_path)
