"""Objective of the allocation: loss of every size of every layer."""

import numpy as np

from decomp.allocation.layer_curves import LayerCurves
from decomp.errors import TargetError

PRUNING_COUNTS = 2.0


def losses(known):
    """What the joint allocation minimises: for each size the geometric mean of own error and change of the output.

    Own errors alone know nothing of what lies behind a layer; measured changes alone are noisy, and blind to what the
    layers behind repair. Pruning counts twice: it spends the very redundancy with which a layer would repair the
    errors before it. On a VGG half-way through its training, each layer fitted and refined, the KL divergence of the
    output at 4x and 8x was .0089 and .0391 by own errors, .0079 and .0271 by changes of the output, .0059 and
    .0200 by own errors with pruning twice, .0055 and .0212 by the geometric mean with pruning twice.
    """

    def mean(one, other, factor=1.0):
        return None if one is None else factor * np.sqrt(np.maximum(one, 0) * np.maximum(other, 0))

    result = {}
    for name, own in known.own.items():
        output = known.output[name]
        result[name] = LayerCurves(
            mean(own.prune, output.prune, PRUNING_COUNTS),
            mean(own.spatial, output.spatial),
            mean(own.channel, output.channel),
        )
    return result


def for_steps(all_curves, view, steps):
    """Only the curves of the steps asked for; at least one must be left somewhere."""
    result = {}
    for name, c in all_curves.items():
        allowed = [step for step in steps if step not in view.layer(name).left_alone]
        result[name] = LayerCurves(**{step: getattr(c, step) for step in allowed})
    if not any(c.prune is not None or c.ranked for c in result.values()):
        reasons = sorted({why for layer in view.layers for step, why in layer.left_alone.items() if step in steps})
        raise TargetError(
            view.name, f"no layer can be treated with --steps {','.join(steps)}", got="; ".join(reasons[:3]),
            fix="allow other steps",
        )  # fmt: skip
    return result
