"""Error curves of a layer: loss at every size of every step."""

from dataclasses import dataclass

import numpy as np

from decomp.allocation.plan import SIZES


@dataclass
class LayerCurves:
    """Error of one layer against each size; index = size, index 0 unused; None where a step is not available.

    Attributes
    ----------
    prune, spatial, channel : numpy.ndarray or None
        Change of the network's output (or any other additive loss), falling to about 0 at the full size.
    """

    prune: np.ndarray | None = None
    spatial: np.ndarray | None = None
    channel: np.ndarray | None = None

    def error(self, item):
        """Loss of a layer plan under these curves."""
        sizes = [(curve, getattr(item, name)) for name, curve in self.by_size()]
        return sum(curve[size] for curve, size in sizes if size is not None)

    def by_size(self):
        """(name of the size in a plan, curve) for each step, also where there is none."""
        return [(SIZES[step], getattr(self, step)) for step in SIZES]

    @property
    def ranked(self):
        """Whether any rank can be chosen."""
        return self.spatial is not None or self.channel is not None
