"""An allocation within the limits a person set, or why there is none: the most there is, and what holds it."""

from dataclasses import dataclass, field, replace

import numpy as np

from decomp.allocation.allocator import Allocator, round_down
from decomp.allocation.local_search import LOWEST_SHARE
from decomp.allocation.plan import STEPS
from decomp.errors import TargetError


@dataclass
class Found:
    """Sizes, who found them, for which speed-up, and what was measured on the way."""

    allocator: Allocator
    items: dict
    speedup: float
    latency: dict = field(default_factory=dict)

    @property
    def cost(self):
        """Of the network with these sizes."""
        return self.allocator.cost(self.items)


def allocate(view, usable, cost, asked, rules, speedup=None):
    """Sizes for a target.

    Where 98 % of it cannot be used on multiples, smaller ones are tried; what comes closest is taken.

    Parameters
    ----------
    view : decomp.graph.network_graph.NetworkGraph
    usable : dict of str to LayerCurves
    cost : a cost model, see :class:`decomp.cost.models.MacsCost`
    asked : dict
        speedup, steps, allocation.
    rules : decomp.allocation.allocator.Rules
    speedup : float, optional
        Instead of the one asked for.

    Returns
    -------
    Found

    Raises
    ------
    TargetError
        Out of reach; says the most that is, and what holds it.
    """
    speedup = speedup or asked["speedup"]
    best = None
    while True:
        allocator = _that_reaches(view, usable, cost, asked, rules, speedup)
        if asked["allocation"] == "uniform":
            items = allocator.uniform(speedup)
        else:
            items = (allocator.with_energy() if asked["allocation"] == "energy" else allocator).joint(speedup)
        found = Found(allocator, items, speedup)
        if best is None or found.cost > best.cost:
            best = found
        # On small networks a search on multiples can end where no single size that leaves them fits any more.
        if best.cost * speedup >= LOWEST_SHARE * cost.total or allocator.rules.multiple == 1:
            return best
        rules = replace(rules, multiple=allocator.rules.multiple // 2)


def most(view, usable, cost, rules):
    """The greatest speed-up there is, without the rule of multiples."""
    return Allocator(view, usable, cost, replace(rules, multiple=1)).most()


def _that_reaches(view, usable, cost, asked, rules, speedup):
    """An allocator that can reach the target, with as few concessions as possible.

    Fitted last, to all that the others left, the output layer repairs most of what came before; every channel it
    reads helps it. So for the joint allocation it reads all of them where the target can be reached that way. The
    multiple gives way after that: half of it, a quarter, down to 1.
    """
    whole = {n: replace(c, prune=None) if n == _output_layer(view) else c for n, c in usable.items()}
    multiple = rules.multiple
    while True:
        for curves in (whole, usable) if asked["allocation"] == "joint" else (usable,):
            allocator = Allocator(view, curves, cost, replace(rules, multiple=multiple))
            if allocator.most() >= speedup:
                return allocator
        if multiple == 1:
            raise _out_of_reach(view, usable, cost, asked, rules, speedup)
        multiple //= 2


def _out_of_reach(view, usable, cost, asked, rules, speedup):
    highest = most(view, usable, cost, rules)
    words = holding(view, usable, cost, asked, rules)
    because = f", held by {'; '.join(words)}" if words else ""
    return TargetError(
        "--speedup", f"at most {round_down(highest)}x can be reached on this network in {cost.unit}{because}",
        got=f"{speedup:g}x", fix="ask for less" + (" or lift a limit" if words else ""),
    )  # fmt: skip


def holding(view, usable, cost, asked, rules):
    """What keeps a network from becoming cheaper, in words; limits of a person with what lifting each would give."""

    def without(**lifted):
        return most(view, usable, cost, replace(rules, **lifted))

    highest, held = most(view, usable, cost, rules), []
    if rules.skip:
        by = " and ".join([f"--skip {pattern}" for pattern in asked["skip"]] + ["--keep-first"] * asked["keep_first"])
        held.append((by, without(skip=frozenset())))
    if np.isfinite(rules.max_layer_speedup):
        held.append((f"--max-layer-speedup {rules.max_layer_speedup:g}", without(max_layer_speedup=np.inf)))
    words = [f"{by} (without: {round_down(higher)}x)" for by, higher in held if higher > highest * 1.001]
    if not words and held:
        words = [" together with ".join(by for by, _ in held)]
    if set(asked["steps"]) != set(STEPS):
        words.append(f"--steps {','.join(asked['steps'])}")
    untouched = [layer for layer in view.layers if set(STEPS) <= set(layer.left_alone)]
    if untouched:
        count = f"{len(untouched)} layer{'s' if len(untouched) > 1 else ''}"
        first = untouched[0]
        words.append(f"{count} that cannot be treated ({first.name}: {first.left_alone['channel']})")
    if cost.rest > 0.01 * cost.total:
        words.append(f"{cost.rest / cost.total:.0%} of it outside the layers")
    if cost.name == "latency":
        words.append("the time that every call takes, however narrow")
    return words


def _output_layer(view):
    """The linear layer that gives the network's output, if there is one."""
    last = view.layers[-1]
    return last.name if last.kind == "linear" and last.activation == "identity" else None
