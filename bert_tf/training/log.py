"""The files in which a training run tells what it was and how it went: JSON, one line a figure.

Nothing here needs TensorFlow, so that what only reads a log is quick.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from bert_tf.files import local_path, write_json, write_text

METRICS_NAME = "metrics.jsonl"
RUN_CONFIG_NAME = "config.json"


def append_metrics(path: str | os.PathLike, kind: str, line: Mapping[str, Any]) -> None:
    """Append one line to a metrics file.

    Args:
        path: metrics.jsonl.
        kind: what sort of line; see `read_metrics`.
        line: must hold "step".

    Raises:
        OSError: it cannot be written, as where the disk is full; names the file.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **line}) + "\n")
    except OSError as error:  # which of a write that fails does not name it
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def cut_metrics(path: str | os.PathLike, step: int) -> None:
    """Remove from a metrics file the lines after a step, and a last line that was cut off.

    Args:
        path: metrics.jsonl; nothing happens where it is missing.
        step: the last step to keep.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the process was killed while it wrote this line
        if line["step"] <= step:
            kept.append(text)
    write_text(path, "".join(text + "\n" for text in kept))


def read_metrics(path: str | os.PathLike, kind: str = "train") -> list[dict[str, float]]:
    """Return the lines of a metrics file.

    Args:
        path: metrics.jsonl.
        kind: "train" or "eval".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not JSON; names file and line.
    """
    lines = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
            if line.get("kind") == kind:
                lines.append(line)
    return lines


def read_metrics_or_nothing(path: str | os.PathLike, kind: str) -> list[dict[str, float]]:
    """As `read_metrics`; a file that does not exist has no lines."""
    return read_metrics(path, kind) if os.path.exists(path) else []


def write_config(output_dir: str | os.PathLike, values: Mapping[str, Any]) -> None:
    """Write config.json: all that a run was begun with."""
    write_json(local_path(output_dir) / RUN_CONFIG_NAME, values)
