"""Chains of layers without a network behind them, small enough to try every combination of sizes."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from decomp.allocation.choices import Choices
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import STEP_TABLE, LayerPlan
from decomp.allocation.rules import Rules
from decomp.cost.chain import chain, chain_macs
from decomp.cost.models import MacsCost
from decomp.graph.layer import InputSpace, Layer


@dataclass
class Chain:
    """Layers in execution order."""

    layers: list
    name: str = "chain"

    def layer(self, name):
        return next(layer for layer in self.layers if layer.name == name)


def chain_of_layers(widths, kernels, sampled=False):
    """Convolutions a, b, c, ... on maps of 4×4, each of which alone reads the one before.

    With ``sampled``, the first reads a subset of channels that others need too; otherwise it reads all of them.
    """
    layers = []
    for place, (c, n, kernel) in enumerate(zip(widths, widths[1:], kernels)):
        name, before = "abcdefg"[place], "abcdefg"[place - 1]
        space = InputSpace(before, name, c) if place else InputSpace(None, name, c) if sampled else None
        left = {} if kernel != (1, 1) else {"spatial": "a 1×1 kernel"}
        left.update({} if space else {"prune": "reads the image itself"})
        layers.append(
            Layer(name, name, "conv", place, c, n, kernel, (4, 4), (4, 4), input_space=space, left_alone=left)
        )
    return Chain(layers)


def macs_of(graph, outside=0):
    """Multiply-accumulates, of which some lie outside the layers."""
    counted = {la.name: chain_macs(chain(la, la.in_channels, la.out_channels)) for la in graph.layers}
    return MacsCost(graph, {**counted, "elsewhere": outside} if outside else counted)


def random_curves(graph, seed, steps=("spatial", "channel", "prune")):
    """Losses that fall with each size, not evenly; `steps` of each layer, or a list of them for each."""
    rng, curves = np.random.default_rng(seed), {}
    for place, layer in enumerate(graph.layers):
        own = steps if isinstance(steps[0], str) else steps[place]
        curves[layer.name] = LayerCurves(
            **{
                step.name: np.sort(rng.uniform(0, 1, step.largest(layer) + 1))[::-1] - 0.0
                for step in STEP_TABLE
                if step.name in own and step.name not in layer.left_alone
            }
        )
    return curves


def every_plan(choices):
    """All combinations of sizes on the grid in which no layer is too cheap: [(plans, cost, error)]."""
    options = [
        [LayerPlan.of(layer.name, keep, ranks) for keep in choices.widths(layer) for ranks in choices.ranks(layer.name)]
        for layer in choices.graph.layers
    ]
    found = []
    for combination in product(*options):
        plans = {plan.layer: plan for plan in combination}
        if not any(choices.too_cheap(plans, layer) for layer in choices.graph.layers):
            found.append((plans, choices.total_cost(plans), choices.error(plans)))
    return found


# (graph, steps of each layer): two, three and four layers, with few enough sizes to try all.
SMALL = {
    "two": (chain_of_layers((2, 5, 3), [(3, 1), (3, 3)]), [("spatial", "channel"), ("spatial", "channel", "prune")]),
    "three": (
        chain_of_layers((2, 4, 5, 3), [(3, 1), (1, 1), (2, 2)]),
        [("spatial",), ("channel", "prune"), ("channel", "prune")],
    ),
    "three, the first reads a subset": (
        chain_of_layers((4, 4, 3, 3), [(1, 1), (1, 1), (1, 1)], sampled=True),
        [("prune",), ("channel", "prune"), ("channel", "prune")],
    ),
    "four": (
        chain_of_layers((2, 4, 4, 5, 2), [(1, 1), (3, 1), (1, 1), (1, 1)]),
        [("channel",), ("prune",), ("channel", "prune"), ("prune",)],
    ),
}


def small_choices(name, seed, rules=None):
    graph, steps = SMALL[name]
    return Choices(graph, random_curves(graph, seed, steps), macs_of(graph, outside=40), rules or Rules())
