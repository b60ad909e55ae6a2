"""Objective of the allocation: loss of every size of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from decomp.allocation.interfaces import Graph
from decomp.allocation.layer_curves import Curve, LayerCurves
from decomp.allocation.plan import ALLOCATIONS, STEPS
from decomp.errors import TargetError, check_choice

Curves = Mapping[str, LayerCurves]
# The weight of the loss of pruning, see `geometric_means`.
PRUNING_COUNTS = 2.0


def objective_curves(allocation: str, own: Curves, output: Curves) -> Curves:
    """Curves that an allocation minimises.

    Parameters
    ----------
    allocation : str
        One of :data:`decomp.allocation.plan.ALLOCATIONS`.
    own : dict of str to LayerCurves
        Relative error of each layer's own responses.
    output : dict of str to LayerCurves
        The change of the network's output that goes with it.

    Returns
    -------
    dict of str to LayerCurves

    Raises
    ------
    UsageError
        There is no such allocation.
    """
    allocation = check_choice("allocation", allocation, ALLOCATIONS)
    return own if allocation == "energy" else geometric_means(own, output)


def geometric_means(own: Curves, output: Curves) -> dict[str, LayerCurves]:
    """Loss of the joint allocation: for each size the geometric mean of own error and change of the output.

    Own errors alone know nothing of the layers behind; measured changes alone are noisy, and blind to the repair by
    the layers behind. Pruning counts twice: it spends the very redundancy with which a layer would repair the
    errors before it. On a VGG half-way through its training, each layer fitted and refined, the KL divergence of the
    output at 4x and 8x was .0089 and .0391 by own errors, .0079 and .0271 by changes of the output, .0059 and
    .0200 by own errors with pruning twice, .0055 and .0212 by the geometric mean with pruning twice.
    """
    return {
        name: LayerCurves(
            **{step: _mean(step, getattr(curves, step), getattr(output[name], step)) for step in STEPS},
        )
        for name, curves in own.items()
    }


def _mean(step: str, own: Curve | None, output: Curve | None) -> Curve | None:
    if own is None or output is None:
        return None
    factor = PRUNING_COUNTS if step == "prune" else 1.0
    return factor * np.sqrt(np.maximum(own, 0) * np.maximum(output, 0))


def for_steps(curves: Curves, graph: Graph, steps: Sequence[str]) -> dict[str, LayerCurves]:
    """Only the curves of the given steps.

    Raises
    ------
    UsageError
        There is no such step.
    TargetError
        No layer allows any of the steps; says why.
    """
    steps = [check_choice("steps", step, STEPS) for step in steps]
    usable = {}
    for name, layer_curves in curves.items():
        left_alone = graph.layer(name).left_alone
        usable[name] = layer_curves.only(*(step for step in steps if step not in left_alone))
    if not any(layer_curves.available for layer_curves in usable.values()):
        reasons = sorted({why for layer in graph.layers for step, why in layer.left_alone.items() if step in steps})
        raise TargetError(
            graph.name, f"no layer can be treated with the steps {','.join(steps)}", got="; ".join(reasons[:3]),
            fix="allow other steps",
        )  # fmt: skip
    return usable
