"""Search for a plan whose measured speed-up is the one asked for, neither less nor more.

A table of times proposes plans, whole networks are measured, and the next proposal corrects the table by what was
measured. Where the table's proposals leave out the target, plans between the closest slow one and the closest fast one
are measured, down to single sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from decomp.allocation.choices import LayerPlans

from ..console.reporter import Reporter
from .speed_ratio import SpeedRatio

#: A speed-up is reached between these shares of the one asked for. More gives accuracy away.
LEAST, MOST = 0.97, 1.10
#: Shares between which a measurement ends the search, so that the next one still lies between LEAST and MOST; their
#: middle is aimed at.
ENOUGH, SURPLUS = 0.99, 1.06
#: The same for a plan that is measured again, of which the lower speed-up counts, from LEAST and from MOST.
MARGIN = 0.015
CENTRE = (ENOUGH + SURPLUS) / 2
#: Plans that are proposed by the table, and plans between a slow and a fast one, that are measured at most.
PROPOSALS, REFINEMENTS = 5, 7


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan that the search can measure.

    Attributes
    ----------
    plans : dict of str to LayerPlan
    milliseconds : float
        By the table of times.
    loss : float
    """

    plans: LayerPlans
    milliseconds: float
    loss: float


@dataclass(eq=False)
class Attempt:
    """A candidate and its measurements.

    Attributes
    ----------
    candidate : Candidate
    ratios : list of SpeedRatio
        At least one.
    """

    candidate: Candidate
    ratios: list[SpeedRatio]

    @property
    def ratio(self) -> SpeedRatio:
        """The middle one of the measurements, the lower of two."""
        return sorted(self.ratios, key=lambda ratio: ratio.speedup)[(len(self.ratios) - 1) // 2]

    @property
    def speedup(self) -> float:
        """Of :attr:`ratio`."""
        return self.ratio.speedup

    @property
    def spread(self) -> float:
        """The largest speed-up in the measurements over the least one, less 1."""
        found = [ratio.speedup for ratio in self.ratios]
        return max(found) / min(found) - 1

    def add(self, ratio: SpeedRatio) -> None:
        """Add a measurement; it takes the place of those during which the machine was faster or slower."""
        self.ratios = [*(known for known in self.ratios if known.is_comparable(ratio)), ratio]


@dataclass(eq=False)
class TargetSearch:
    """Search for one speed-up.

    Attributes
    ----------
    asked : float
    whole : float
        Time of the original in units of the table.
    slowest : Candidate
        The network in which no layer is replaced; narrower than the original where whole channel spaces lost channels.
    most : callable
        The greatest speed-up by the table that can be proposed now.
    propose : callable
        The plan of least loss for a speed-up by the table.
    between : callable
        Plans between a slow and a fast one.
    measure : callable
    reporter : decomp.pipelines.console.reporter.Reporter
    attempts : list of Attempt
    latest : SpeedRatio
        The last measurement. Those before it count where the machine was as fast.
    proposals, refinements : int
        Plans of the table, and plans between a slow and a fast one, that are measured at most.
    first : float, optional
        Speed-up by the table of the first proposal; the one asked for where it is not given.
    """

    asked: float
    whole: float
    slowest: Candidate
    most: Callable[[], float]
    propose: Callable[[float], Candidate]
    between: Callable[[Candidate, Candidate], Sequence[Candidate]]
    measure: Callable[[Candidate], SpeedRatio]
    reporter: Reporter
    attempts: list[Attempt] = field(default_factory=list)
    latest: SpeedRatio | None = None
    proposals: int = PROPOSALS
    refinements: int = REFINEMENTS
    first: float | None = None

    @property
    def comparable(self) -> list[Attempt]:
        """The attempts during which the machine was about as fast as in the last measurement."""
        latest = self.latest
        return [one for one in self.attempts if latest is None or one.ratio.is_comparable(latest)]

    def measure_again(self, attempt: Attempt) -> SpeedRatio:
        """Add a measurement to an attempt."""
        self.latest = self.measure(attempt.candidate)
        attempt.add(self.latest)
        return self.latest

    def run(self) -> Attempt:
        """Measure plans until one is as fast as asked; the one of least loss among the best, see :meth:`best`.

        Called again after a measurement was corrected, it goes on from all that was measured.
        """
        time = self._corrected() if self.attempts else self.whole / (self.first or self.asked)
        speedup = self.asked if time is None else self.whole / time
        for _ in range(self.proposals):
            reachable = self.most()
            speedup = min(speedup, reachable)
            candidate = self.propose(speedup)
            if self._known(candidate):
                break
            attempt = self._try(candidate)
            if self.is_near(attempt.speedup):
                return self.best()
            if attempt.speedup < self.asked and speedup >= self.most():
                break
            if (time := self._corrected()) is None:
                break
            speedup = self.whole / time
        if all(attempt.speedup < self.asked for attempt in self.comparable):
            fastest = self.propose(self.most())
            if not self._known(fastest):
                self._try(fastest)
        return self.refine()

    def is_near(self, speedup: float) -> bool:
        """Whether a measured speed-up ends the search."""
        return ENOUGH * self.asked <= speedup <= SURPLUS * self.asked

    def is_kept(self, speedup: float) -> bool:
        """Whether a measured speed-up is the one asked for."""
        return LEAST * self.asked <= speedup <= MOST * self.asked

    def is_sure(self, speedup: float) -> bool:
        """Whether a speed-up that was measured again is far enough from both ends of a kept promise."""
        return (LEAST + MARGIN) * self.asked <= speedup <= (MOST - MARGIN) * self.asked

    def best(self) -> Attempt:
        """The attempt of least loss that is as fast as asked; if there is none, the slowest faster or the fastest."""
        near = [attempt for attempt in self.comparable if self.is_near(attempt.speedup)]
        kept = near or [attempt for attempt in self.comparable if self.is_kept(attempt.speedup)]
        if kept:
            return min(kept, key=lambda attempt: attempt.candidate.loss)
        faster = [attempt for attempt in self.comparable if attempt.speedup >= self.asked]
        if faster:
            return min(faster, key=lambda attempt: attempt.speedup)
        return max(self.comparable, key=lambda attempt: attempt.speedup)

    def neighbours(self) -> tuple[float, float]:
        """The closest measured speed-ups below and above the one asked for; the original is 1."""
        found = [attempt.speedup for attempt in self.comparable]
        slower, faster = [s for s in found if s < self.asked], [s for s in found if s >= self.asked]
        return max(slower, default=1.0), min(faster, default=float("inf"))

    def _try(self, candidate: Candidate) -> Attempt:
        self.latest = self.measure(candidate)
        attempt = Attempt(candidate, [self.latest])
        self.attempts.append(attempt)
        self.reporter.step(f"measured speed-up with the planned sizes: {attempt.speedup:.2f}x")
        return attempt

    def _known(self, candidate: Candidate) -> bool:
        return any(attempt.candidate.plans == candidate.plans for attempt in self.comparable)

    # -- correction of the table --------------------------------------------------------------------------

    def _ends(self) -> tuple[tuple[Candidate, float], tuple[Candidate, float] | None]:
        """The fastest of the plans that are too slow and the slowest of those that are too fast, with measured times.

        Times are in units of the table: those at which the original takes as long as there.
        """
        points = [(self.slowest, self.slowest.milliseconds)]
        points += [(attempt.candidate, self.whole / attempt.speedup) for attempt in self.comparable]
        aim = self.whole / (CENTRE * self.asked)
        slow = min((point for point in points if point[1] > aim), key=lambda point: point[1], default=points[0])
        fast = max((point for point in points if point[1] <= aim), key=lambda point: point[1], default=None)
        return slow, fast

    def _corrected(self) -> float | None:
        """Time by the table at which the measured one should be as wanted.

        None where the table orders the closest slow and the closest fast plan the other way round.
        """
        whole = self.whole
        aim, ((slow, slow_time), fast) = whole / (CENTRE * self.asked), self._ends()
        if fast is not None:
            share = (slow_time - aim) / (slow_time - fast[1])
            time = slow.milliseconds - min(max(share, 0.1), 0.9) * (slow.milliseconds - fast[0].milliseconds)
            return time if slow.milliseconds > fast[0].milliseconds else None
        # All are too slow: of what the table says is saved, this share is saved; the rest of the network takes more.
        last = self.comparable[-1]
        expected, saved = whole - last.candidate.milliseconds, whole - whole / last.speedup
        share = max(saved / expected, 0.25) if expected > 0 else 1.0
        return max(whole - (whole - aim) / share, 1e-3 * whole)

    # -- between two plans ---------------------------------------------------------------------------------

    def refine(self) -> Attempt:
        """Measure plans between the closest slow and the closest fast one; the best of all, see :meth:`best`."""
        for _ in range(self.refinements):
            if any(self.is_near(attempt.speedup) for attempt in self.comparable):
                break
            (slow, slow_time), fast = self._ends()
            path = [] if fast is None else [one for one in self.between(slow, fast[0]) if not self._known(one)]
            if fast is None or not path:
                break
            aim = self.whole / (CENTRE * self.asked)
            share = (slow_time - aim) / (slow_time - fast[1])
            self._try(path[_place(path, slow.milliseconds, fast[0].milliseconds, share)])
        return self.best()


def _place(path: Sequence[Candidate], slow: float, fast: float, share: float) -> int:
    """The plan that lies at a share of the way between two times of the table, in the middle three quarters of it."""
    margin = len(path) // 8
    wanted = slow - share * (slow - fast)
    if slow <= fast:  # the table orders the two the other way round
        return len(path) // 2
    inside = range(margin, len(path) - margin)
    return min(inside, key=lambda place: abs(path[place].milliseconds - wanted))
