"""Result files that commands write and reports read."""

import pathlib
from collections.abc import Mapping
from typing import Any

from bert_tf.files import write_json, write_text

SEEDS_NAME = "seeds.json"  # what the seeds of a fine-tuning came to
COMBINATIONS_NAME = "combinations.json"  # what its learning rates and batch sizes came to
FOLDS_NAME = "folds.json"  # what its cross-validation came to
RESULTS_NAME = "eval_results"
REPORT_NAME = "report.html"


def write_results(
    folder: pathlib.Path, results: Mapping[str, Any], name: str = RESULTS_NAME
) -> None:
    """Write eval_results.txt, "name = value" in each line as the original does, and .json."""
    lines = [f"{key} = {results[key]}\n" for key in sorted(results)]
    write_text(folder / f"{name}.txt", "".join(lines))
    write_json(folder / f"{name}.json", dict(results))
