r"""Pictures of what a model does with a pair of sentences: its attention, and its predictions.

    python experiments/plot_attention.py --model_dir=runs/mini --text="He went to the [MASK]." \
        --text_b="There he bought milk." --output_dir=pictures

In a notebook:

    from experiments.plot_attention import attention_figure, look, prediction_figure
    seen = look("runs/mini", "He went to the [MASK].", "There he bought milk.")
    attention_figure(seen)
    prediction_figure(seen)
"""

from __future__ import annotations

import pathlib

from absl import app, flags

from experiments.command_line.exit_status import exit_on_error
from experiments.plots.attention import attention_figure, embedding_figure, look, prediction_figure


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    flags.DEFINE_string("model_dir", None, "Model directory or checkpoint.", flag_values=values)
    flags.DEFINE_string("text", None, "A sentence; [MASK] for a piece.", flag_values=values)
    flags.DEFINE_string("text_b", None, "A second sentence.", flag_values=values)
    flags.DEFINE_string("output_dir", None, "Folder of the pictures.", flag_values=values)
    flags.mark_flags_as_required(["model_dir", "text", "output_dir"], values)


def run(values: flags.FlagValues) -> None:
    """Write attention.png, embeddings.png and, where it can, predictions.png.

    Raises:
        ValueError, OSError: bad flags, model or text.
    """
    import matplotlib

    matplotlib.use("Agg")
    seen = look(values.model_dir, values.text, values.text_b)
    folder = pathlib.Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"attention": attention_figure(seen), "embeddings": embedding_figure(seen)}
    if seen.pieces:
        figures["predictions"] = prediction_figure(seen)
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        print(f"wrote {path}")


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return exit_on_error("plot_attention", lambda: run(flags.FLAGS))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
