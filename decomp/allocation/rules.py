"""Rules for sizes: multiples, skipped layers, largest speed-up of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rules:
    """Conditions that every allocation keeps.

    Attributes
    ----------
    multiple : int
        Widths and ranks are multiples of it where the layer is wide enough, see
        :func:`decomp.allocation.sizes.fitting_multiple`.
    skip : frozenset of str
        Layers that keep their shape on both sides.
    max_layer_speedup : float
        No layer may cost less than the original's cost over this.
    """

    multiple: int = 1
    skip: frozenset[str] = field(default_factory=frozenset)
    max_layer_speedup: float = math.inf
