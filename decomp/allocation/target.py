"""Find sizes that meet a target speed-up; otherwise report the maximum reachable and the limiting options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from decomp.allocation.allocator import Allocator, round_down
from decomp.allocation.choices import LayerPlans
from decomp.allocation.interfaces import CostModel, Graph
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.local_search import LOWEST_SHARE
from decomp.allocation.plan import ALLOCATIONS, STEPS
from decomp.allocation.rules import Rules
from decomp.errors import TargetError, check_choice


@dataclass
class Allocation:
    """Sizes for a speed-up.

    Attributes
    ----------
    allocator : Allocator
        With the rules under which the target could be met.
    plans : dict of str to LayerPlan
    speedup : float
        The target.
    latency : dict
        The measurement of a network of these sizes, for a plan by latency.
    """

    allocator: Allocator
    plans: LayerPlans
    speedup: float
    latency: dict[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """Of the network with these sizes."""
        return self.allocator.cost(self.plans)


@dataclass(frozen=True)
class LimitingFactors:
    """The greatest speed-up of a network, and the causes that keep it from becoming cheaper.

    Attributes
    ----------
    most : float
        The greatest speed-up without the rule of multiples.
    rules : dict of str to float
        Rules that bind (fields of :class:`decomp.allocation.rules.Rules`) and the greatest speed-up without each;
        the same as ``most`` where only all of them together bind.
    together : bool
        Whether lifting one of the rules alone gives nothing.
    steps : bool
        Whether not all steps are allowed.
    untouched : tuple of (str, str)
        Layers to which no step can be applied, and the reason; the most expensive first.
    untouched_share : float
        Their share of the cost.
    rest : float
        Share of the cost outside the layers.
    per_call : bool
        Whether the cost is time, of which every call takes some at any width.
    """

    most: float
    rules: Mapping[str, float] = field(default_factory=dict)
    together: bool = False
    steps: bool = False
    untouched: tuple[tuple[str, str], ...] = ()
    untouched_share: float = 0.0
    rest: float = 0.0
    per_call: bool = False


class OutOfReach(TargetError):
    """A speed-up above the maximum.

    Attributes
    ----------
    factors : LimitingFactors
    unit : str
        Of the cost, in words.
    speedup : float
        The target.
    """

    def __init__(self, factors: LimitingFactors, unit: str, speedup: float) -> None:
        self.factors, self.unit, self.speedup = factors, unit, speedup
        rule = f"at most {round_down(factors.most)}x can be reached on this network in {unit}"
        super().__init__("speedup", rule, got=f"{speedup:g}x", fix="lower the target")


def allocate(
    graph: Graph,
    curves: Mapping[str, LayerCurves],
    cost: CostModel,
    rules: Rules,
    *,
    speedup: float,
    allocation: str,
    steps: Sequence[str] = STEPS,
) -> Allocation:
    """Sizes for a target.

    Where 98 % of it cannot be used on multiples, smaller ones are tried; the closest is taken.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    curves : dict of str to LayerCurves
        Of the steps that may be used.
    cost : CostModel
    rules : Rules
    speedup : float
    allocation : str
        One of :data:`decomp.allocation.plan.ALLOCATIONS`.
    steps : sequence of str
        The steps that may be used, for the report of limits.

    Raises
    ------
    OutOfReach
        With the greatest speed-up that can be reached, and its causes.
    UsageError
        There is no such allocation.
    """
    check_choice("allocation", allocation, ALLOCATIONS)
    best = None
    while True:
        allocator = _that_reaches(graph, curves, cost, rules, speedup, allocation)
        if allocator is None:
            raise OutOfReach(limiting_factors(graph, curves, cost, rules, steps), cost.unit, speedup)
        if allocation == "uniform":
            plans = allocator.uniform(speedup)
        else:
            plans = (allocator.with_energy() if allocation == "energy" else allocator).joint(speedup)
        attempt = Allocation(allocator, plans, speedup)
        if best is None or attempt.cost > best.cost:
            best = attempt
        # On small networks a search on multiples can end where no single size that leaves them fits any more.
        if best.cost * speedup >= LOWEST_SHARE * cost.total or allocator.rules.multiple == 1:
            return best
        rules = replace(rules, multiple=allocator.rules.multiple // 2)


def most(graph: Graph, curves: Mapping[str, LayerCurves], cost: CostModel, rules: Rules) -> float:
    """The greatest speed-up without the rule of multiples."""
    return Allocator(graph, curves, cost, replace(rules, multiple=1)).most()


def _that_reaches(
    graph: Graph, curves: Mapping[str, LayerCurves], cost: CostModel, rules: Rules, speedup: float, allocation: str
) -> Allocator | None:
    """An allocator that can reach the target, with as few concessions as possible.

    Fitted last, to all that the others left, the output layer repairs most of the errors before it; every channel it
    reads helps it. So for the joint allocation it reads all of them where the target can be reached that way. The
    multiple gives way after that: half of it, a quarter, down to 1.
    """
    attempts = [curves]
    if allocation == "joint":
        last = _output_layer(graph)
        attempts.insert(0, {name: replace(c, prune=None) if name == last else c for name, c in curves.items()})
    multiple = rules.multiple
    while True:
        for usable in attempts:
            allocator = Allocator(graph, usable, cost, replace(rules, multiple=multiple))
            if allocator.most() >= speedup:
                return allocator
        if multiple == 1:
            return None
        multiple //= 2


def limiting_factors(
    graph: Graph, curves: Mapping[str, LayerCurves], cost: CostModel, rules: Rules, steps: Sequence[str] = STEPS
) -> LimitingFactors:
    """The greatest speed-up, and the causes that keep the network from becoming cheaper.

    Parameters
    ----------
    graph, curves, cost, rules, steps
        As for :func:`allocate`.
    """
    highest = most(graph, curves, cost, rules)
    without = {}
    if rules.skip:
        without["skip"] = most(graph, curves, cost, replace(rules, skip=frozenset()))
    if math.isfinite(rules.max_layer_speedup):
        without["max_layer_speedup"] = most(graph, curves, cost, replace(rules, max_layer_speedup=math.inf))
    binding = {rule: higher for rule, higher in without.items() if higher > highest * 1.001}
    whole = {
        layer.name: float(cost.layer(layer, layer.in_channels, layer.out_channels))
        for layer in graph.layers
        if set(STEPS) <= set(layer.left_alone)
    }
    untouched = sorted(whole, key=lambda name: -whole[name])
    return LimitingFactors(
        highest,
        rules=binding or without,
        together=bool(without) and not binding,
        steps=set(steps) != set(STEPS),
        # A convolution without steps has one reason for all; of a linear layer only pruning is a question.
        untouched=tuple((name, graph.layer(name).left_alone["prune"]) for name in untouched),
        untouched_share=sum(whole.values()) / cost.total,
        rest=cost.rest / cost.total,
        per_call=cost.name == "latency",
    )


def _output_layer(graph: Graph) -> str | None:
    """The linear layer that gives the network's output, if there is one."""
    last = graph.layers[-1]
    return last.name if last.kind == "linear" and last.activation == "identity" else None
