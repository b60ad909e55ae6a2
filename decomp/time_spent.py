"""Time spent in the parts of a stage: wall and processor seconds, by phase and part.

Code that does one kind of work names it by :func:`part`; where nobody records, that costs nothing and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

#: Between the names of a part and of a part within it.
INSIDE = ": "

_recording: ContextVar[TimeSpent | None] = ContextVar("time spent", default=None)


class TimeSpent:
    """Adds up time by phase and part; the time of a part within another one counts only for the inner one.

    Parameters
    ----------
    processor : callable
        Processor seconds so far: of this process, or of one thread of it.

    Attributes
    ----------
    seconds, processor_seconds : dict of (str, str) to float
        By phase and part; the part is empty for what belongs to no part.
    """

    def __init__(self, processor: Callable[[], float] = time.process_time) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self.processor_seconds: dict[tuple[str, str], float] = {}
        self._processor = processor
        self._phase, self._parts = "", [""]
        self._marks = time.perf_counter(), processor()

    @contextmanager
    def recording(self) -> Iterator[TimeSpent]:
        """Record the parts that the block names, in this thread."""
        token = _recording.set(self)
        self._marks = time.perf_counter(), self._processor()
        try:
            yield self
        finally:
            self._charge()
            _recording.reset(token)

    @property
    def now(self) -> str:
        """The part in work, without the parts within it; empty where there is none."""
        return self._parts[:2][-1]  # one step, as another thread asks

    def phase(self, name: str) -> None:
        """Begin a phase; it ends where the next one begins."""
        self._charge()
        self._phase = name

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as a part of its phase, or of the part around it."""
        self._charge()
        around = self._parts[-1]
        self._parts.append(around + INSIDE + name if around else name)
        try:
            yield
        finally:
            self._charge()
            self._parts.pop()

    def absorb(self, others: Iterable[TimeSpent]) -> None:
        """Add what threads recorded since the last part began or ended, as parts of the present one.

        Each recorded the processor seconds of its own thread. The wall time, which they shared, is divided by them.
        """
        seconds, processor_seconds = self._since()
        recorded: dict[str, float] = {}
        for other in others:
            for (_, name), value in other.processor_seconds.items():
                recorded[name] = recorded.get(name, 0.0) + value
        total = sum(recorded.values())
        around = self._parts[-1]
        for name, value in recorded.items():
            full = around + INSIDE + name if around and name else around or name
            self._add(full, seconds * value / total if total else 0.0, value)
        self._add(around, 0.0 if total else seconds, max(processor_seconds - total, 0.0))

    def rows(self) -> list[dict[str, Any]]:
        """Plain data in the order of the phases, the longest part of each first."""
        self._charge()
        phases = list(dict.fromkeys(phase for phase, _ in self.seconds))
        keys = sorted(self.seconds, key=lambda key: (phases.index(key[0]), -self.seconds[key]))
        return [
            {
                "phase": phase, "part": name, "seconds": round(self.seconds[phase, name], 3),
                "processor_seconds": round(self.processor_seconds[phase, name], 3),
            }
            for phase, name in keys
        ]  # fmt: skip

    def _since(self) -> tuple[float, float]:
        """Seconds of both kinds since the last call."""
        before, self._marks = self._marks, (time.perf_counter(), self._processor())
        return self._marks[0] - before[0], self._marks[1] - before[1]

    def _charge(self) -> None:
        self._add(self._parts[-1], *self._since())

    def _add(self, name: str, seconds: float, processor_seconds: float) -> None:
        key = self._phase, name
        self.seconds[key] = self.seconds.get(key, 0.0) + seconds
        self.processor_seconds[key] = self.processor_seconds.get(key, 0.0) + processor_seconds


@contextmanager
def part(name: str) -> Iterator[None]:
    """Count the block under this name, where time is recorded in this thread; not around a ``yield``."""
    recording = _recording.get()
    if recording is None:
        yield
    else:
        with recording.part(name):
            yield


def current() -> TimeSpent | None:
    """What records in this thread, if anything does."""
    return _recording.get()
