"""Learning curves drawn from metrics.jsonl."""

from __future__ import annotations

import os
import pathlib

from bert_tf.training.log import read_metrics

# What log lines hold beside losses and scores.
_NOT_SCORES = {
    "kind",
    "step",
    "learning_rate",
    "loss_scale",
    "sequences_per_second",
    "tokens_per_second",
    "time_seconds",
}


def plot_curves(metrics_file: str | os.PathLike, png: str | os.PathLike) -> pathlib.Path:
    """Draw losses with their baselines, accuracies, learning rate and throughput.

    Args:
        metrics_file: metrics.jsonl of a run.
        png: the picture to write.

    Returns:
        The path of the picture.

    Raises:
        FileNotFoundError: there is no metrics file.
        ValueError: the file has no training line, or a line is damaged.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    train, evaluations = read_metrics(metrics_file), read_metrics(metrics_file, "eval")
    baselines = read_metrics(metrics_file, "baseline")
    if not train:
        raise ValueError(f"{metrics_file}: no training line to draw")
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")

    def lines(axis, names, log):
        for name in names:
            for rows, prefix, style in ((train, "", "-"), (evaluations, "eval_", "o--")):
                points = [(r["step"], r[prefix + name]) for r in rows if prefix + name in r]
                if points:
                    label = f"{name} (held out)" if prefix else name
                    axis.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if log:
            axis.set_yscale("log")

    names = sorted({name.removeprefix("eval_") for row in train + evaluations for name in row})
    losses = [name for name in names if name.endswith("_loss")] or ["loss"]
    scores = [name for name in names if "loss" not in name and name not in _NOT_SCORES]
    lines(axes[0, 0], losses, log=False)
    for row in baselines[-1:]:
        for name, style in (("uniform_loss", ":"), ("unigram_loss", "--")):
            if name in row:
                axes[0, 0].axhline(
                    row[name], color="grey", linestyle=style, label=name.replace("_", " ")
                )
    axes[0, 0].set_ylabel("nats")
    in_percent = any(row.get(f"eval_{name}", 0) > 1.1 for row in evaluations for name in scores)
    if in_percent:  # as of entities and answers, while the running ones are fractions
        train = [{k: 100 * v if k in scores else v for k, v in row.items()} for row in train]
        axes[0, 1].set_ylabel("percent")
    lines(axes[0, 1], scores, log=False)
    axes[0, 1].set_ylim(0, 100 if in_percent else 1)
    lines(axes[1, 0], ("learning_rate",), log=False)
    lines(axes[1, 1], ("tokens_per_second",), log=False)
    axes[1, 1].set_ylim(bottom=0)
    for axis, title in zip(
        axes.flat, ("Loss", "Scores", "Learning rate", "Tokens per second"), strict=True
    ):
        axis.set_title(title)
        if axis.lines:
            axis.legend()
    png = pathlib.Path(png)
    temporary = png.with_name(f".{png.name}.tmp.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    os.replace(temporary, png)
    return png
