"""Measured speed-up of a network over the original: interleaved rounds until their median is certain enough.

The original runs twice in each round. The spread of its times against themselves, and the time for which the process
waited for processors, say whether the machine was quiet. What else runs on the hardware of a virtual machine is seen by
neither: it slows the original by a tenth to two thirds for some seconds, and other networks by other shares. So rounds
count where the original is about as fast as it was at best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from ..measure.contention import MOST_WAITED, Contention
from ..measure.known_times import SAME

#: Half the width of the interval of the median ratio, relative to it, at which no more rounds are needed.
PRECISION = 0.012
#: Half the width of that interval at which a ratio is told well enough from one that it is far away from.
COARSE = 0.04
#: Blocks of rounds of one measurement. The first blocks may all lie in one disturbance, so there are at least two.
FEWEST_BLOCKS, MOST_BLOCKS = 2, 10
#: Spread of the ratios of the original to itself, and relative distance of their median from 1, on a quiet machine.
#: Compiled networks of a millisecond spread over up to 25 % there.
NOISE, BIAS = 0.3, 0.02
#: Quantiles of the ratios of single rounds that are said with a measured speed-up.
LOW, HIGH = 0.1, 0.9
#: Two-sided 95 % of a normal distribution; the places of a median's interval among n sorted values are n/2 ± 0.98 √n.
_DEVIATIONS = 1.96 / 2

#: Times of ``original``, ``planned`` and ``again`` (the original) in the rounds of one block, in milliseconds.
Block: TypeAlias = "Mapping[str, Sequence[float]]"


@dataclass(frozen=True)
class RoundsRule:
    """Rounds of a measurement that count, and those that are enough.

    Attributes
    ----------
    wanted : tuple of float, optional
        Ratios of interest. One whose whole interval lies outside of them needs to be known to :data:`COARSE` only, and
        a single block is enough.
    kept : tuple of float, optional
        The whole interval within them is as good as a narrow one.
    fastest : float, optional
        The original's shortest time so far, in milliseconds. Blocks in which it takes more than
        :data:`decomp.pipelines.measure.known_times.SAME` of the shortest do not count, unless there is no other.
    fewest_blocks, most_blocks : int
    block_seconds : float
        No round of a block begins later.
    """

    wanted: tuple[float, float] | None = None
    kept: tuple[float, float] | None = None
    fastest: float | None = None
    fewest_blocks: int = FEWEST_BLOCKS
    most_blocks: int = MOST_BLOCKS
    block_seconds: float = 2.0


@dataclass(frozen=True)
class SpeedRatio:
    """A measured speed-up.

    Attributes
    ----------
    original_ms, planned_ms : float
        Medians of the rounds.
    low, high : float
        Quantiles of the ratios of single rounds, :data:`LOW` and :data:`HIGH`.
    interval : tuple of float
        95 % interval of the median ratio.
    noise : float
        Distance of the same quantiles of the original against itself.
    bias : float
        Median ratio of the original to itself, less 1.
    waited : float
        Time waited for processors over elapsed time.
    slowed : float
        The original's time over its shortest one, that of all measurements, less 1.
    spread : float
        The largest speed-up of the plan in several measurements over the least one, less 1.
    """

    original_ms: float
    planned_ms: float
    low: float
    high: float
    interval: tuple[float, float]
    noise: float = 0.0
    bias: float = 0.0
    waited: float = 0.0
    slowed: float = 0.0
    spread: float = 0.0

    @property
    def speedup(self) -> float:
        """Ratio of medians."""
        return self.original_ms / self.planned_ms

    @property
    def disturbances(self) -> list[str]:
        """Signs of a busy machine, in words; none on a quiet one."""
        signs = []
        if self.noise > NOISE:
            signs.append(f"times of the original against itself spread over {100 * self.noise:.0f} %")
        if abs(self.bias) > BIAS:
            signs.append(f"the original is {100 * abs(self.bias):.0f} % faster or slower than itself")
        if self.waited > MOST_WAITED:
            signs.append(f"the threads waited for a processor for {100 * self.waited:.0f} % of the time")
        if self.slowed > SAME - 1:
            signs.append(f"the original takes {1 + self.slowed:.2f} times as long as at other times")
        if self.spread > SAME - 1:
            signs.append(f"the speed-up differs by {100 * self.spread:.0f} % from one measurement to another")
        return signs

    def is_comparable(self, other: SpeedRatio) -> bool:
        """Whether the original was about as fast in another measurement."""
        first, second = sorted((self.original_ms, other.original_ms))
        return second <= SAME * first

    def to_json(self) -> dict[str, Any]:
        """Fields of a plan's ``latency``."""
        return {
            "original_ms": round(self.original_ms, 4), "measured_ms": round(self.planned_ms, 4),
            "measured_speedup": round(self.speedup, 3), "low": round(self.low, 3), "high": round(self.high, 3),
            "interval": [round(bound, 3) for bound in self.interval], "noise": round(self.noise, 3),
            "waited": round(self.waited, 3), "slowed": round(self.slowed, 3), "busy": bool(self.disturbances),
            "signs": self.disturbances,
        }  # fmt: skip


def of_rounds(times: Block, waited: float = 0.0, fastest: float | None = None) -> SpeedRatio:
    """The speed-up from the times of all rounds.

    Parameters
    ----------
    times : mapping of str to sequence of float
        ``original``, ``planned`` and ``again``, equally many.
    waited : float
    fastest : float, optional
        The original's shortest time, in milliseconds.
    """
    ratios, itself = (np.asarray(times["original"]) / np.asarray(times[key]) for key in ("planned", "again"))
    low, high = np.quantile(ratios, (LOW, HIGH))
    quiet_low, quiet_high = np.quantile(itself, (LOW, HIGH))
    return SpeedRatio(
        median(times["original"]), median(times["planned"]), float(low), float(high), median_interval(ratios),
        float(quiet_high - quiet_low), float(np.median(itself)) - 1, waited,
        0.0 if fastest is None else max(0.0, median(times["original"]) / fastest - 1),
    )  # fmt: skip


def median_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval of the median of independent values, from their order (no distribution is assumed).

    Parameters
    ----------
    values : sequence of float
        Fewer than six give their whole range.
    """
    ordered = np.sort(np.asarray(values, float))
    place = max(0, int(len(ordered) / 2 - _DEVIATIONS * len(ordered) ** 0.5))
    return float(ordered[place]), float(ordered[len(ordered) - 1 - place])


def measure_ratio(block: Callable[[], Block], rule: RoundsRule = RoundsRule()) -> SpeedRatio:  # noqa: B008 (frozen)
    """Measure in blocks of rounds until the median ratio is known to :data:`PRECISION`, or what is asked about it.

    Parameters
    ----------
    block : callable
        Measures one block.
    rule : RoundsRule

    Returns
    -------
    SpeedRatio
    """
    blocks: list[Block] = []
    contention = Contention()
    for _ in range(rule.most_blocks):
        blocks.append(block())
        own = [median([*one["original"], *one["again"]]) for one in blocks]
        shortest = min(own) if rule.fastest is None else min(rule.fastest, *own)
        quick = [one for one, time in zip(blocks, own, strict=True) if time <= SAME * shortest]
        found = of_rounds(_joined(quick or blocks), contention.share(), shortest)
        low, high = found.interval
        outside = rule.wanted is not None and (high < rule.wanted[0] or low > rule.wanted[1])
        inside = rule.kept is not None and rule.kept[0] <= low and high <= rule.kept[1]
        enough, precision = (1, COARSE) if outside else (rule.fewest_blocks, PRECISION)
        if len(quick) >= enough and (inside or high - low <= 2 * precision * found.speedup):
            break
    return found


def _joined(blocks: Sequence[Block]) -> dict[str, list[float]]:
    """The rounds of all blocks."""
    return {name: [time for one in blocks for time in one[name]] for name in ("original", "planned", "again")}
