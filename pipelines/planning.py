"""From what is known of the original network to plan.json: one allocation over all layers and steps."""

from dataclasses import replace

import numpy as np

from decomp.allocation import Allocator, LayerCurves
from decomp.alternatives import plan_cost
from decomp.cost import MacsCost
from decomp.errors import TargetError
from decomp.pipelines import files
from decomp.plan import Plan

PRUNING_COUNTS = 2.0


def plan(run, asked, known, view, counted, *, reporter):
    """The plan of a run: the one that is there, or a new one, written to plan.json.

    Parameters
    ----------
    run : RunDirectory
    asked : dict
        speedup, steps, allocation.
    known : decomp.pipelines.survey.Survey
        Error curves of the original network.
    view : decomp.graph.NetworkGraph
    counted : decomp.cost.Cost
    reporter : decomp.pipelines.log.Reporter

    Returns
    -------
    decomp.plan.Plan
    """
    if run.plan_json.is_file():
        data = files.read_json(run.plan_json, fix="remove it, or run decompose again with --redo")
        made = Plan.from_json(data, str(run.plan_json))
        made.validate(view, str(run.plan_json))
        made.macs_before = counted.macs
        made.macs_after = plan_cost(view, {item.layer: item for item in made.layers}, MacsCost(view, counted.per_layer))
        return made
    curves = known.own if asked["allocation"] == "energy" else losses(known)
    usable = for_steps(curves, view, asked["steps"])
    allocator, items = _allocate(view, usable, counted, asked)
    macs = allocator.cost(items)
    made = Plan(asked["speedup"], tuple(asked["steps"]), asked["allocation"], list(items.values()), counted.macs, macs)
    if macs < 0.98 * counted.macs / asked["speedup"]:
        reporter.warn(f"the plan is {counted.macs / macs:.2f}x: sizes are too coarse to come closer to the target")
    files.write_json(run.plan_json, made.to_json())
    return made


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


def _allocate(view, usable, counted, asked):
    allocator = Allocator(view, usable, MacsCost(view, counted.per_layer))
    if asked["allocation"] == "uniform":
        return allocator, allocator.uniform(asked["speedup"])
    if asked["allocation"] == "energy":
        return allocator, allocator.with_energy().joint(asked["speedup"])
    # Fitted last, to all that the others left, the output layer repairs most of what came before; every channel it
    # reads helps it. So it reads all of them, unless the target is out of reach that way.
    whole = {n: replace(c, prune=None) if n == _output_layer(view) else c for n, c in usable.items()}
    spared = Allocator(view, whole, MacsCost(view, counted.per_layer))
    if spared.most() >= asked["speedup"]:
        return spared, spared.joint(asked["speedup"])
    return allocator, allocator.joint(asked["speedup"])


def _output_layer(view):
    """The linear layer that gives the network's output, if there is one."""
    last = view.layers[-1]
    return last.name if last.kind == "linear" and last.activation == "identity" else None


def for_steps(all_curves, view, steps):
    """Only the curves of the steps asked for; at least one must be left somewhere."""
    result = {name: LayerCurves(**{step: getattr(c, step) for step in steps}) for name, c in all_curves.items()}
    if not any(c.prune is not None or c.spatial is not None or c.channel is not None for c in result.values()):
        reasons = sorted({why for layer in view.layers for step, why in layer.left_alone.items() if step in steps})
        raise TargetError(
            view.name, f"no layer can be treated with --steps {','.join(steps)}", got="; ".join(reasons[:3]),
            fix="allow other steps",
        )  # fmt: skip
    return result
