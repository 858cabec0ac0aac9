"""What a training run shows while it goes: log lines, a progress bar, TensorBoard's summaries."""

import contextlib
import logging
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from bert_tf.training.log import METRICS_NAME, append_metrics

_log = logging.getLogger(__name__)


class Progress(keras.utils.Progbar):
    """A Keras progress bar for a run that may begin in the middle; plain lines without a terminal.

    The time left follows from the steps after the first log line, since those before it are slowed
    by tracing and compiling.
    """

    def __init__(self, target: int, start: int, names: Sequence[str]):
        super().__init__(target, stateful_metrics=names, interval=0)
        self._is_terminal = sys.stdout.isatty()
        self._origin: tuple[int, float] = (start, time.time())
        self._has_first_line = False

    def _estimate_step_duration(self, current: int, now: float) -> float:
        step, since = self._origin
        seconds = (now - since) / max(1, current - step)
        if not self._has_first_line:
            self._has_first_line, self._origin = True, (current, now)
        return seconds

    def update(self, current: int, values: Any = None, finalize: bool | None = None) -> None:
        """Show the figures of a step: (name, value) pairs."""
        if self._is_terminal:
            super().update(current, values, finalize)
            return
        left = self._estimate_step_duration(current, time.time()) * (self.target - current)
        figures = " - ".join(f"{name}: {value:.5g}" for name, value in values)
        sys.stdout.write(f"{current}/{self.target} - {left:.0f} s left - {figures}\n")
        sys.stdout.flush()


class RunLog:
    """Writes log lines to metrics.jsonl, the progress bar and TensorBoard."""

    def __init__(
        self,
        output_dir: pathlib.Path,
        names: Sequence[str],
        *,
        start: int,
        target: int,
        tokens: int,
        verbose: bool = True,
        tensorboard: bool = True,
        is_chief: bool = True,
    ):
        """Open what is written to.

        Args:
            output_dir: folder of metrics.jsonl.
            names: of the figures that a progress bar shows as they are, not as means of all.
            start: steps taken before.
            target: steps in all.
            tokens: tokens taken before.
            verbose: whether to show a progress bar.
            tensorboard: whether to write summaries.
            is_chief: False to write nothing, on all but one of several hosts.
        """
        self._path = output_dir / METRICS_NAME
        self._is_chief = is_chief
        self._bar = None
        if verbose and is_chief:
            names = [*names, "lr", "seq/s", "tokens/s", "loss_scale", "skipped_steps"]
            self._bar = Progress(target, start, names)
        self._summaries = _summary_writer(output_dir) if tensorboard and is_chief else None
        # Rates leave out the first call, which traces and compiles, where there is another.
        self._mark = time.perf_counter()
        self._cpu_mark = time.process_time()
        self._step = start
        self._tokens = tokens

    def write(
        self,
        step: int,
        means: Mapping[str, float],
        *,
        learning_rate: float,
        loss_scaling: Mapping[str, float],
        sequences_per_batch: float,
        tokens: int,
    ) -> dict[str, float]:
        """Write the line of a step.

        Args:
            step: steps taken.
            means: figures since the last line.
            learning_rate: of the step.
            loss_scaling: loss_scale and skipped_steps, where losses are scaled.
            sequences_per_batch: for the rates.
            tokens: tokens taken.

        Returns:
            The line; its cpu_seconds are the process' since the last one, of all threads.
        """
        now, cpu = time.perf_counter(), time.process_time()
        seconds = max(now - self._mark, 1e-9)
        line: dict[str, float] = {
            "step": step,
            **means,
            "learning_rate": learning_rate,
            "sequences_per_second": (step - self._step) * sequences_per_batch / seconds,
            "tokens_per_second": (tokens - self._tokens) / seconds,
            "tokens": tokens,
            "cpu_seconds": cpu - self._cpu_mark,
            "time_seconds": time.time(),
            **loss_scaling,
        }
        self._mark, self._cpu_mark = now, cpu
        self._step, self._tokens = step, tokens
        self._emit("train", line)
        if self._bar is not None:
            shown = {
                **means,
                "lr": learning_rate,
                "seq/s": line["sequences_per_second"],
                "tokens/s": line["tokens_per_second"],
                **loss_scaling,
            }
            self._bar.update(step, list(shown.items()))
        return line

    def write_eval(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of an evaluation, with the prefix "eval_"."""
        self._emit("eval", {"step": step, **{f"eval_{k}": v for k, v in figures.items()}})

    def _emit(self, kind: str, line: Mapping[str, float]) -> None:
        if not self._is_chief:
            return
        append_metrics(self._path, kind, line)
        if self._summaries is not None:
            with self._summaries.as_default(step=int(line["step"])):
                for name, value in line.items():
                    if name not in ("step", "time_seconds"):
                        tf.summary.scalar(f"{kind}/{name.removeprefix('eval_')}", value)
            self._summaries.flush()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Take the time of a block (saving, evaluating) out of the rates."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - since

    def close(self) -> None:
        """Close the summaries."""
        if self._summaries is not None:
            self._summaries.close()


def _summary_writer(output_dir: pathlib.Path):
    try:
        return tf.summary.create_file_writer(str(output_dir / "tensorboard"))
    except (ImportError, AttributeError, tf.errors.OpError):
        _log.warning("no TensorBoard summaries: the package tensorboard is not installed")
        return None
