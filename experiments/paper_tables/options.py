"""The options of paper.py."""

import dataclasses

from bert_tf.options import option
from experiments.paper_tables.recipes import Places


@dataclasses.dataclass(frozen=True)
class PaperOptions:
    """Which table is made, of what, and where."""

    table: str = option(
        None, "Its number.", choices=tuple("12345678"), required=True, group="table"
    )
    scale: str = option("full", "Sizes: full, small, or a JSON file of what differs from one.")
    output_dir: str = option(
        None, "Folder of runs and reports.", required=True, path="local", group="output"
    )
    places: Places = Places()
    jobs: int | None = option(
        None, "Runs at once; by default one a GPU, or one a core.", minimum=1, group="runs"
    )
    device_tflops: float = option(
        125.0,
        "What a device does, for the estimate: 40% of an NVIDIA A100's 312 by default.",
        minimum=0.001,
    )
    text: str = option(
        "The capital of the country is a large [MASK].",
        "Sentence of the pictures.",
        group="pictures",
    )
    text_b: str = option("It lies on both banks of the river.", "The one after it.")
    dry_run: bool = option(False, "Show commands and cost, and run nothing.", group="runs")
    report_only: bool = option(False, "Make the report of what is there.")
