"""Error curves of a layer: loss at every size of every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from decomp.allocation.plan import RANKS, SIZES, LayerPlan

Curve: TypeAlias = NDArray[np.floating]


@dataclass
class LayerCurves:
    """Loss of one layer against each size; index = size, index 0 unused; None where a step is not available.

    Attributes
    ----------
    prune, spatial, channel : numpy.ndarray or None
        Change of the network's output (or any other additive loss), falling to about 0 at the full size.
    """

    prune: Curve | None = None
    spatial: Curve | None = None
    channel: Curve | None = None

    def error(self, plan: LayerPlan) -> float:
        """Loss of a layer plan under these curves; 0 for a layer that stays as it is.

        Raises
        ------
        ValueError
            The plan has a size for which there is no curve.
        """
        loss = 0.0
        for name, curve in self.by_size():
            size = getattr(plan, name)
            if size is None:
                continue
            if curve is None:
                raise ValueError(f"{plan.layer}: there is no curve for {name}")
            loss += curve[size]
        return loss

    def by_size(self) -> list[tuple[str, Curve | None]]:
        """(field of the plan, curve) for each step, with or without a curve."""
        return [(size, getattr(self, step)) for step, size in SIZES.items()]

    def only(self, *steps: str) -> LayerCurves:
        """The curves of some steps."""
        return LayerCurves(**{step: getattr(self, step) for step in steps})

    def map(self, function: Callable[[str, Curve], Curve]) -> LayerCurves:
        """``function(step, curve)`` for each curve that is there."""
        curves = {step: getattr(self, step) for step in SIZES}
        return LayerCurves(**{step: function(step, curve) for step, curve in curves.items() if curve is not None})

    @property
    def available(self) -> bool:
        """Whether any step can be applied."""
        return any(curve is not None for _, curve in self.by_size())

    @property
    def ranked(self) -> bool:
        """Whether any rank can be chosen."""
        return any(curve is not None for name, curve in self.by_size() if name in RANKS)
