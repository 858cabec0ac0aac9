"""Runs the notebooks of docs/notebooks, and writes what they show into them (make notebooks).

    python -m tests.support.notebooks [NAME...]

What a notebook shows is to be of the code in it, so a digest of that code is kept with it.
"""

import hashlib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import nbformat

from tests.support.code_blocks import REPOSITORY

NOTEBOOKS = REPOSITORY / "docs/notebooks"
DIGEST = "digest_of_executed_code"
# What TensorFlow's libraries write when they are loaded, whatever they are told. It holds times,
# the number of the process and what the machine has.
_TENSORFLOW_STARTS = re.compile(
    r"^(WARNING: All log messages before absl|"
    r"To enable the following instructions: |"
    r"[IE]0000 .*(port|cudart_stub|cuda_platform|util|cpu_feature_guard)\.cc).*\n?",
    re.MULTILINE,
)


def paths() -> list[pathlib.Path]:
    """Find the notebooks."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    """Read a notebook, which must be a valid one."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def digest_of(notebook: nbformat.NotebookNode) -> str:
    """Return the digest of all its code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def execute(
    notebook: nbformat.NotebookNode, folder: pathlib.Path, check: str = ""
) -> nbformat.NotebookNode:
    """Run a notebook in a kernel of this Python, with the sources of this repository.

    Args:
        notebook: it is left as it is.
        folder: empty; the kernel runs in a folder in it.
        check: code that runs after the notebook's, and is no part of it.

    Returns:
        The notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    executed = nbformat.from_dict(notebook)
    if check:
        executed.cells.append(nbformat.v4.new_code_cell(check))
    work = folder / "work"
    work.mkdir()
    resources = {"metadata": {"path": str(work)}}
    client = NotebookClient(executed, kernel_name="python3", resources=resources, timeout=None)
    client.record_timing = False
    client.coalesce_streams = True
    client.execute(env=_environment(folder))
    if check:
        executed.cells.pop()
    executed.metadata = {**notebook.metadata, DIGEST: digest_of(notebook)}
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = _without_tensorflow_starts(cell.outputs)
    return executed


def _environment(folder: pathlib.Path) -> dict[str, str]:
    """Make `bert-tf` that of this repository, and keep the user's settings of Jupyter out."""
    commands = folder / "bin"
    commands.mkdir()
    script = commands / "bert-tf"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m experiments "$@"\n')
    script.chmod(0o755)
    path = [str(commands), os.path.dirname(sys.executable), os.environ["PATH"]]
    return {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(REPOSITORY),
        "IPYTHONDIR": str(folder / "ipython"),
    }


def _without_tensorflow_starts(outputs: list[Any]) -> list[Any]:
    kept = []
    for output in outputs:
        if output.get("name") == "stderr":
            output.text = _TENSORFLOW_STARTS.sub("", output.text)
            if not output.text.strip():
                continue
        kept.append(output)
    return kept


def faults_of(notebook: nbformat.NotebookNode, logs: Mapping[str, str] | None = None) -> list[str]:
    """Name what a reader should not see: errors, warnings, whatever goes to standard error.

    Args:
        notebook: with outputs.
        logs: name -> text of files that its commands wrote their words to.
    """
    found = [
        f"{name}: {line}"
        for name, text in (logs or {}).items()
        for line in text.splitlines()
        if re.search("warning", line, re.IGNORECASE) and not _TENSORFLOW_STARTS.match(line)
    ]
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            text = output.get("text", "")
            is_warning = re.search("warning", text, re.IGNORECASE)
            if output.output_type == "error" or output.get("name") == "stderr" or is_warning:
                found.append(f"cell {number}: {output.get('evalue', text)}")
    return found


def main(names: list[str]) -> None:
    """Run notebooks, by default all, and write their outputs into them."""
    for path in paths():
        if names and path.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            executed = execute(read(path), pathlib.Path(folder))
        nbformat.write(executed, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)
        for fault in faults_of(executed):
            print(f"    {fault}")


if __name__ == "__main__":
    main(sys.argv[1:])
