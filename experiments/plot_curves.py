"""Draws a run's curves to PNG from its metrics.jsonl, and from nothing else.

python experiments/plot_curves.py --output_dir=RUN [--png=curves.png]
"""

from experiments.command_line.command import run_command
from experiments.plots.options import CurvesOptions

if __name__ == "__main__":
    run_command(CurvesOptions, "experiments.plots.curves")
