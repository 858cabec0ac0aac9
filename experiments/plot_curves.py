"""Draws a run's curves to PNG from its metrics.jsonl, and from nothing else.

    python experiments/plot_curves.py --output_dir=runs/mini

    python experiments/plot_curves.py --output_dir=runs/mini --png=mini.png

The folder is one of run_pretraining.py or of a fine-tuning script, also while it still runs.
"""

from experiments.command_line.command import run_command
from experiments.plots.options import CurvesOptions

if __name__ == "__main__":
    run_command(CurvesOptions, "experiments.plots.curves")
