"""Progress of long work: bars, pace, and the time left, of one step and of a whole command."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TextIO

from tqdm import tqdm

#: Neither less work nor less time than this is a base for an estimate.
LEAST_SHARE, LEAST_SECONDS = 0.02, 2.0
#: No more than this share of a unit is taken as done before it is.
MOST_OF_A_UNIT = 0.9


class Progress:
    """Progress of one step; made by :meth:`decomp.pipelines.console.reporter.Reporter.progress`.

    Parameters
    ----------
    label : str
        Name of the step.
    total : int or None
        Number of units to process.
    unit : str
        Their name in the plural.
    work : sequence of float, optional
        Relative work of each unit, where it differs; the time left is estimated from it.
    """

    def __init__(
        self, label: str, total: int | None = None, unit: str = "units", work: Sequence[float] | None = None
    ) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, 0
        self.start = time.monotonic()
        self._done_before = [0.0, *accumulate(work)] if work else None
        self._bar: Any = None
        # Units in work: their name, their number and the time of their begin.
        self._begun: tuple[str, int, float] | None = None

    def draw(self, bar: Any) -> None:
        """Show the progress by a bar from now on."""
        self._bar = bar

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def refresh(self) -> None:
        """Draw the bar again, with the time that has passed and the units in work."""
        if self._bar is not None:
            self._bar.refresh()

    @property
    def begun(self) -> str:
        """Name of the units in work; empty where it is not known."""
        return "" if self._begun is None else self._begun[0]

    def begin(self, name: str, n: int = 1) -> None:
        """Name the next `n` units, which are in work until the next update."""
        self._begun = name, n, time.monotonic()

    def update(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        self._begun = None
        if self._bar is not None:
            self._bar.update(n)

    @property
    def share(self) -> float:
        """Share of the work that is done, in 0..1; 0 where the total is not known.

        Of the units in work as much as their time brings at the pace of those before, and never all.
        """
        done, begun = self._share_of(self.done), self._begun
        if begun is None or not done:
            return done
        _, n, since = begun
        own, elapsed = self._share_of(self.done + n) - done, since - self.start
        at_this_pace = done * (time.monotonic() - since) / elapsed if elapsed > 0 else 0.0
        return done + min(at_this_pace, MOST_OF_A_UNIT * own)

    def _share_of(self, n: int) -> float:
        """Share of the first `n` units in the work of all."""
        if self._done_before is not None and self._done_before[-1] > 0:
            return self._done_before[min(n, len(self._done_before) - 1)] / self._done_before[-1]
        return min(n / self.total, 1.0) if self.total else 0.0

    def words(self, part: str = "") -> str:
        """Units that are done, and the seconds since the start; the units in work, and there the part of the work."""
        of, now, begun = "" if self.total is None else f" of {self.total:,}", time.monotonic(), self._begun
        words = f"{self.label}: {self.done:,}{of} {self.unit}, {format_seconds(now - self.start)} so far"
        if begun is None:
            return words
        return f"{words}, {begun[0]} for {format_seconds(now - begun[2])}" + (f" ({part})" if part else "")


class Work:
    """All long steps of a command with their expected shares of its time.

    Parameters
    ----------
    expected : mapping of str to float
        Label of each step and its weight, in the order of execution. A step that is not taken, because its result is
        there already, takes no time and does not count.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self.expected = dict(expected)
        self.start: float | None = None
        self._current: Progress | None = None
        self._done = 0.0

    def begin(self, step: Progress) -> None:
        """Begin a step; those before it that were not taken are left out."""
        if step.label not in self.expected:
            return
        self.start = step.start if self.start is None else self.start
        for label in list(self.expected):
            if label == step.label:
                break
            self.expected.pop(label)
        self._current = step

    def end(self, step: Progress) -> None:
        """Count a step as done."""
        self._done += self.expected.pop(step.label, 0.0)
        if self._current is step:
            self._current = None

    def seconds_left(self) -> float | None:
        """Time until the end of all steps at the pace so far; None where too little is done for an estimate."""
        if self.start is None:
            return None
        done, left = self._done, sum(self.expected.values())
        if self._current is not None:
            part = self.expected[self._current.label] * self._current.share
            done, left = done + part, left - part
        elapsed = time.monotonic() - self.start
        if elapsed < LEAST_SECONDS or done < LEAST_SHARE * (done + left):
            return None
        return elapsed * left / done


class _Bar(tqdm):
    """A bar that names its pace by unit and the time left of the whole command."""

    progress: Progress | None = None
    work: Work | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        values = dict(super().format_dict)
        rate = values["rate"] or (values["n"] / values["elapsed"] if values["elapsed"] and values["n"] else None)
        left = None if self.work is None else self.work.seconds_left()
        if left is None and rate and self.total:
            left = (self.total - self.n) / rate
        unit = "units" if self.progress is None else self.progress.unit
        begun = "" if self.progress is None else self.progress.begun
        values.update(pace=pace_words(rate, unit), left="" if left is None else f", {rough_time(left)} left")
        values.update(now=f" ({begun})" if begun else "")
        return values


BAR_FORMAT = "{desc}{now}: {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt} [{elapsed}{left}, {pace}]"


def make_bar(progress: Progress, work: Work | None, stream: TextIO) -> Any:
    """A bar for a step: in a notebook one of its widgets, elsewhere a line of the terminal."""
    options: dict[str, Any] = {"total": progress.total, "desc": progress.label, "leave": False}
    if in_notebook():
        from tqdm.auto import tqdm as widget

        return widget(**options, unit=" " + progress.unit)
    bar = _Bar(**options, file=stream, dynamic_ncols=True, bar_format=BAR_FORMAT, disable=False)
    bar.progress, bar.work = progress, work
    return bar


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def pace_words(rate: float | None, unit: str) -> str:
    """A rate per second as ``'24 images/s'``, or ``'1.3 s/layer'`` where a unit takes longer than a second."""
    if not rate:
        return f"? {unit}/s"
    if rate >= 1:
        return f"{rate:,.0f} {unit}/s"
    return f"{1 / rate:,.{1 if rate > 0.1 else 0}f} s/{unit.removesuffix('s')}"


def rough_time(seconds: float) -> str:
    """An estimated duration without false precision: ``'about 3 min'``, ``'about 25 min'``, ``'about 2.5 h'``."""
    minutes = seconds / 60
    if minutes < 0.75:
        return "less than a minute"
    if minutes < 9.5:
        return f"about {max(1, round(minutes))} min"
    if minutes < 57.5:
        return f"about {5 * round(minutes / 5)} min"
    return f"about {round(minutes / 30) / 2:g} h"


def format_seconds(seconds: float) -> str:
    """A duration in words: ``'0.4 s'``, ``'12 s'``, ``'3 min 20 s'``, ``'2 h 5 min'``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
