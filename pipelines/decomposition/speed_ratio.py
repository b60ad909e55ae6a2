"""Measured speed-up of a network over the original: interleaved rounds until their median is certain enough.

The original runs twice in each round. The spread of its times against themselves, and the time for which the process
waited for processors, say whether the machine was quiet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from ..measure.contention import MOST_WAITED, Contention

#: Half the width of the interval of the median ratio, relative to it, at which no more rounds are needed.
PRECISION = 0.012
#: Blocks of rounds of one measurement. The first blocks may all lie in one disturbance, so there are at least two.
FEWEST_BLOCKS, MOST_BLOCKS = 2, 8
#: Spread of the ratios of the original to itself, and relative distance of their median from 1, on a quiet machine.
NOISE, BIAS = 0.2, 0.02
#: Quantiles of the ratios of single rounds that are said with a measured speed-up.
LOW, HIGH = 0.1, 0.9
#: Two-sided 95 % of a normal distribution; the places of a median's interval among n sorted values are n/2 ± 0.98 √n.
_DEVIATIONS = 1.96 / 2

#: Times of ``original``, ``planned`` and ``again`` (the original) in the rounds of one block, in milliseconds.
Block: TypeAlias = "Mapping[str, Sequence[float]]"


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
    """

    original_ms: float
    planned_ms: float
    low: float
    high: float
    interval: tuple[float, float]
    noise: float = 0.0
    bias: float = 0.0
    waited: float = 0.0

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
        return signs

    def to_json(self) -> dict[str, Any]:
        """Fields of a plan's ``latency``."""
        return {
            "original_ms": round(self.original_ms, 4), "measured_ms": round(self.planned_ms, 4),
            "measured_speedup": round(self.speedup, 3), "low": round(self.low, 3), "high": round(self.high, 3),
            "interval": [round(bound, 3) for bound in self.interval], "noise": round(self.noise, 3),
            "waited": round(self.waited, 3), "busy": bool(self.disturbances),
        }  # fmt: skip


def of_rounds(times: Block, waited: float = 0.0) -> SpeedRatio:
    """The speed-up from the times of all rounds.

    Parameters
    ----------
    times : mapping of str to sequence of float
        ``original``, ``planned`` and ``again``, equally many.
    waited : float
    """
    ratios, itself = (np.asarray(times["original"]) / np.asarray(times[key]) for key in ("planned", "again"))
    low, high = np.quantile(ratios, (LOW, HIGH))
    quiet_low, quiet_high = np.quantile(itself, (LOW, HIGH))
    return SpeedRatio(
        median(times["original"]), median(times["planned"]), float(low), float(high), median_interval(ratios),
        float(quiet_high - quiet_low), float(np.median(itself)) - 1, waited,
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


def measure_ratio(block: Callable[[], Block], fewest_blocks: int = FEWEST_BLOCKS) -> SpeedRatio:
    """Measure in blocks of rounds until the median ratio is known to :data:`PRECISION`.

    Parameters
    ----------
    block : callable
        Measures one block.
    fewest_blocks : int

    Returns
    -------
    SpeedRatio
        Of all rounds.
    """
    times: dict[str, list[float]] = {"original": [], "planned": [], "again": []}
    contention = Contention()
    for done in range(1, MOST_BLOCKS + 1):
        for name, values in block().items():
            times[name].extend(values)
        found = of_rounds(times, contention.share())
        low, high = found.interval
        if done >= fewest_blocks and high - low <= 2 * PRECISION * found.speedup:
            break
    return found
