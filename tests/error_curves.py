"""Error curves as a survey finds them, drawn instead."""

import numpy as np

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import limits


def falling(n, scale, power=2.0):
    """An error curve that falls to nearly 0 at size n."""
    sizes = np.arange(n + 1)
    return scale * (1 - sizes / n) ** power


def curves_for(view, seed=0):
    """One for each step that each layer allows."""
    rng, found = np.random.default_rng(seed), {}
    for layer in view.layers:
        made = {}
        for step, (_, limit, _) in limits(layer).items():
            if step not in layer.left_alone:
                made[step] = falling(limit, rng.uniform(0.2, 2), rng.uniform(1.5, 4))
        found[layer.name] = LayerCurves(**made)
    return found
