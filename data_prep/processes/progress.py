"""Progress of long steps on standard error: a bar on a terminal, now and then a line elsewhere."""

import sys
import time

import tqdm

LINE_INTERVAL_SECONDS = 30


class Progress:
    """Shows how far a step is, its rate and the time left.

    On a terminal this is a tqdm bar. In a log file a bar would be one endless line, so there it is
    a plain line at the end and every LINE_INTERVAL_SECONDS before. Use as a context manager.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, show: bool = True):
        """Begin a step.

        Args:
            what: the step, a few words.
            total: amount of work; where it is nearly known, `finish` says that all is done.
            unit: unit of the amount; "B" is shown in kB, MB, ...
            done: amount that an earlier run has done.
            show: False for silence.
        """
        terminal = sys.stderr.isatty()
        tqdm.tqdm.monitor_interval = 0  # no thread beside the worker processes
        self._bar = tqdm.tqdm(
            desc=what,
            total=total,
            initial=done,
            unit=unit,
            unit_scale=True,
            disable=not (show and terminal),
        )
        self._lines = show and not terminal
        self._what, self._total, self._unit = what, total, unit
        self._initial = self._done = done
        self._begin = self._last = time.monotonic()

    def update(self, amount: int) -> None:
        """Add work that was done."""
        self._done += amount
        self._bar.update(amount)
        if self._lines and time.monotonic() - self._last >= LINE_INTERVAL_SECONDS:
            self._last = time.monotonic()
            self._print()

    def finish(self) -> None:
        """Say that nothing is left, where `total` was an estimate."""
        self._total = self._bar.total = self._done

    def _print(self) -> None:
        line = tqdm.tqdm.format_meter(
            self._done,
            self._total,
            time.monotonic() - self._begin,
            ncols=0,
            prefix=self._what,
            unit=self._unit,
            unit_scale=True,
            initial=self._initial,
        )
        print(line.strip(), file=sys.stderr, flush=True)

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback):
        self._bar.close()
        if self._lines and exception_type is None:
            self._print()
