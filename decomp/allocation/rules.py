"""Rules for sizes: multiples, skipped layers, largest speed-up of a layer."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Rules:
    """What a person holds the sizes to.

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
    skip: frozenset = field(default_factory=frozenset)
    max_layer_speedup: float = np.inf
