r"""Pictures of what a model does with a pair of sentences: its attention, and its predictions.

    python experiments/plot_attention.py --model_dir=runs/mini --text="He went to the [MASK]." \
        --text_b="There he bought milk." --output_dir=pictures

    python experiments/plot_attention.py --model_dir=runs/mini --text="The [MASK] barked." \
        --output_dir=pictures

In a notebook:

    %matplotlib inline
    from experiments.plots.attention import activations_of, attention_figure, prediction_figure
    activations = activations_of("runs/mini", "He went to the [MASK].", "There he bought milk.")
    attention_figure(activations)
    prediction_figure(activations)
"""

from experiments.command_line.command import run_command
from experiments.plots.options import AttentionOptions

if __name__ == "__main__":
    run_command(AttentionOptions, "experiments.plots.attention")
