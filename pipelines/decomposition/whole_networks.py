"""Speed-up of whole networks over the original: in new processes on a CPU, otherwise in this one.

The original is watched: timed in several new processes over some seconds, before plans are judged and again at the end.
A machine with more than one speed is then noticed where it changes; where it does not, the original's shortest time in
earlier runs tells (:mod:`decomp.pipelines.measure.known_times`).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import count
from types import TracebackType

import torch
from torch import nn

from decomp.errors import DecompError

from ..console.reporter import Reporter
from ..measure.known_times import SAME, KnownTimes, key_of
from .fresh_process import FreshProcess
from .speed_ratio import RoundsRule, SpeedRatio, measure_ratio
from .timings import Shape, Timings, block_of_rounds

#: Times that the original is measured at least while it is watched, unless that takes LONG seconds, as where networks
#: are compiled; the seconds over which these are spread, and the pause between two of them.
FEWEST, LONG, SPREAD, PAUSE = 3, 3.0, 2.0, 0.4
#: Seconds for which a machine that is slower than it was is waited for.
PATIENCE = 15.0
#: Of one of these measurements.
BRIEF = RoundsRule(most_blocks=1, block_seconds=0.5)


def in_new_processes(device: torch.device) -> bool:
    """Whether networks on this device are measured in new processes.

    On a GPU a second process would need the memory of the original again, and what a process has done before does not
    change the time of its networks: memory there is torch's own.
    """
    return device.type == "cpu"


class WholeNetworks:
    """Measurements of networks against one original; a context manager.

    Parameters
    ----------
    timings : decomp.pipelines.decomposition.timings.Timings
    original : torch.nn.Module
    shape : tuple of int
        ``(batch_size, C, H, W)``.
    reporter : decomp.pipelines.console.reporter.Reporter
    """

    def __init__(self, timings: Timings, original: nn.Module, shape: Shape, reporter: Reporter) -> None:
        self.timings, self.original, self.shape, self.reporter = timings, original, shape, reporter
        self._fresh: FreshProcess | None = None
        self._expected: float | None = None  # the original's time on a machine that stays slow
        self._known = KnownTimes(reporter)
        self._key: str | None = None

    def __enter__(self) -> WholeNetworks:
        if in_new_processes(self.timings.device):
            self._fresh = FreshProcess(self.timings.runtime, self.shape).__enter__()
        self._key = self._key_now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.timings.save()
        self._known.save()
        if self._fresh is not None:
            self._fresh.__exit__(kind, error, trace)

    @property
    def process(self) -> str:
        """The process in which networks are measured: 'new' ones, or the 'same' that plans."""
        return "same" if self._fresh is None else "new"

    @property
    def shortest(self) -> float | None:
        """The original's shortest time under these conditions, of this run and of earlier ones, in milliseconds."""
        known = [self.timings.fastest_original, self._known.shortest(self._key)]
        return min((time for time in known if time is not None), default=None)

    def ratio(self, planned: nn.Module, rule: RoundsRule = RoundsRule()) -> SpeedRatio:  # noqa: B008 (frozen)
        """Measured speed-up of a planned network over the original.

        Parameters
        ----------
        planned : torch.nn.Module
        rule : decomp.pipelines.decomposition.speed_ratio.RoundsRule
            But for the shortest time of the original, which is known here.
        """
        found = self._measured(planned, replace(rule, fastest=self._expected or self.shortest))
        self._note(found)
        judged = self.judged(found)
        # Where the machine stays slow, the next measurements do not wait for it; each says that it is.
        self._expected = found.original_ms if judged.slowed > SAME - 1 else None
        return judged

    def judged(self, ratio: SpeedRatio) -> SpeedRatio:
        """A measurement with the original's time in it held against the shortest one that is known now."""
        shortest = self.shortest or ratio.original_ms
        return replace(ratio, slowed=max(0.0, ratio.original_ms / shortest - 1))

    def watch(self, patience: float = 0.0) -> float:
        """Time the original in several new processes over some seconds; its shortest time in these, in milliseconds.

        In this process, such as on a GPU, it is timed once.

        Parameters
        ----------
        patience : float
            Seconds to go on for while it is slower than it was at best.
        """
        start, best, said = time.monotonic(), math.inf, False
        for n in count(1):
            found = self._measured(self.original, BRIEF)
            self._note(found)
            best, shortest = min(best, found.original_ms), self.shortest or math.inf
            is_slow, spent = best > SAME * shortest, time.monotonic() - start
            enough = spent >= (max(SPREAD, patience) if is_slow else SPREAD) and (n >= FEWEST or spent >= LONG)
            if self._fresh is None or enough:
                break
            if is_slow and patience and n >= FEWEST and not said:
                words = f"the original takes {best:.3g} ms, {best / shortest:.2f} times as long as at other times"
                self.reporter.step(f"{words}: waiting up to {patience:g} s for the machine")
                said = True
            time.sleep(PAUSE)
        self._expected = best if is_slow else None
        return best

    def _note(self, found: SpeedRatio) -> None:
        self.timings.note_original(found.original_ms)
        self._known.note(self._key, found.original_ms)

    def _key_now(self) -> str | None:
        return key_of(self.original, self.shape, {**self.timings.conditions, "process": self.process})

    def _measured(self, planned: nn.Module, rule: RoundsRule) -> SpeedRatio:
        if self._fresh is not None:
            try:
                return self._fresh.ratio(self.original, planned, rule)
            except DecompError as error:
                self.reporter.warn(f"networks are timed in the process that plans, not in a new one: {error}")
                self._fresh.__exit__(None, None, None)
                self._fresh = None
                self._key = self._key_now()
        prepared = {"original": self.timings.prepared(self.original, self.shape)}
        prepared |= {"planned": self.timings.prepared(planned, self.shape), "again": prepared["original"]}
        device, layout = self.timings.device, self.timings.runtime.layout
        return measure_ratio(block_of_rounds(prepared, self.shape, device, layout, rule.block_seconds), rule)

    def prepare_anew(self) -> None:
        """Prepare the original again, as another process would; new processes do so by themselves."""
        if self._fresh is None:
            self.timings.keep_prepared(self.original, self.shape)
