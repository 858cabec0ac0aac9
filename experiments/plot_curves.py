"""Draws a run's curves to PNG from its metrics.jsonl, and from nothing else.

python experiments/plot_curves.py --output_dir=RUN [--png=curves.png]
"""

from __future__ import annotations

import pathlib

from absl import app, flags

from bert_tf.training.log import METRICS_NAME
from experiments.plots.curves import plot_curves


def main(_) -> None:
    """Draw the curves of one run."""
    folder = pathlib.Path(flags.FLAGS.output_dir)
    print(plot_curves(folder / METRICS_NAME, flags.FLAGS.png or folder / "curves.png"))


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("png", None, "Picture to write; curves.png in the folder by default.")
    app.run(main)
