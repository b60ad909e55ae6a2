"""Removal of channels from a network: the choice applied to a copy, with its counted cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from decomp.cost.count import Cost
from decomp.cost.count import cost as count_cost
from decomp.criteria.names import NEEDS
from decomp.errors import TargetError, UsageError
from decomp.graph.branches import Branch, residual_branches, without_branches
from decomp.graph.network_graph import NetworkGraph
from decomp.modules.copies import deep_copy
from decomp.surgery.narrow_network import shrink
from decomp.surgery.residual_branches import removable, remove_branches

from ..console.prune_options import PruneOptions
from ..console.reporter import Reporter
from ..console.words import listed
from .choice import Chosen, CostOf, Images, choose, counted_cost, matching
from .compensation import branch_constants, choose_statistics, compensate
from .compensation import words as compensation_words
from .measured import MeasuredCost
from .plan_file import PruningPlan, check_plan
from .selection import as_before, with_selections, without_full_selections
from .unfolded import Unfolded, folded_copy

_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, eq=False)
class Pruned:
    """A network without some of its channels.

    Attributes
    ----------
    network : torch.fx.GraphModule
        With its batch normalisations.
    keep : dict of str to list of int
        Channels that stay, by channel space; only spaces that lose some.
    widths : dict of str to int
        Channels of these spaces before.
    left_alone : dict of str to str
        Channel spaces that keep all, and why.
    changed : tuple of str
        Paths of the modules that were exchanged.
    before, planned : decomp.cost.count.Cost
        Of the folded network before, counted, and after, by formula.
    notes : tuple of str
        What else is to be known about the choice, a line each.
    measured : float or None
        Measured speed-up, where the target was one of latency.
    share : float or None
        Share of the channels that go among those of all spaces that may lose some; None where a plan decides.
    """

    network: fx.GraphModule
    keep: Mapping[str, list[int]]
    widths: Mapping[str, int]
    left_alone: Mapping[str, str]
    changed: tuple[str, ...]
    before: Cost
    planned: Cost
    notes: tuple[str, ...] = ()
    measured: float | None = None
    share: float | None = None


def remove(
    source: Unfolded, options: PruneOptions, given: PruningPlan | None = None, *, images: Images | None = None,
    device: torch.device, reporter: Reporter,
) -> Pruned:  # fmt: skip
    """Choose the channels that stay, and make the narrower network.

    Parameters
    ----------
    source : Unfolded
        Not changed.
    options : PruneOptions
    given : PruningPlan, optional
        A plan that decides the channels.
    images : Images, optional
        For criteria that need some, for means and statistics.
    device : torch.device
        On which latency is measured.
    reporter : Reporter

    Raises
    ------
    TargetError
        The target is out of reach, nothing can be pruned, or the plan is for another network.
    """
    source, selecting = with_selections(source, options, given)
    graph, folded = source.graph, folded_copy(source.network)
    before = count_cost(folded, graph.input_shape)
    branches = removable(graph, residual_branches(graph))
    measured = MeasuredCost(source, options, device, reporter, branches) if options.latency_batch else None
    chosen = _chosen(
        source, options, given, images, _cost_of(graph, folded, options, before, measured, branches), branches
    )
    keep = {name: places for name, places in chosen.keep.items() if len(places) < graph.spaces[name].width}
    left, gone = without_branches(keep, branches, graph)
    keep = {**left, **{name: [] for branch in gone for name in branch.inner if not keep.get(name, [0])}}
    notes = _limit_notes(chosen, branches, options.remove_branches) + _branch_notes(gone)
    network = deep_copy(source.network)
    moved = compensate(network, graph, left, images, options.bias)
    notes += compensation_words(moved, options.bias)
    taken, words = branch_constants(network, graph, keep, gone, images, options.bias)
    notes += words
    changed = without_full_selections(network, selecting, shrink(network, graph.spaces, left))
    removed = as_before(selecting, (path for branch in gone for path in branch.layers))
    changed = list(dict.fromkeys([*changed, *remove_branches(network, removed)]))
    if options.recalibrate_bn:
        network, note = _recalibrated(source, network, images)
        notes.append(note)
    planned = counted_cost(graph, folded, keep, before, branches)
    numbers = 0
    for layer in dict.fromkeys([*(one.layer for one in moved), *taken]):
        bias = getattr(network.get_submodule(layer), "bias", None)
        if isinstance(bias, Tensor) and getattr(folded.get_submodule(layer), "bias", bias) is None:
            numbers += bias.numel()
    return Pruned(
        network, keep, {name: graph.spaces[name].width for name in keep}, chosen.left_alone, tuple(changed), before,
        replace(planned, params=planned.params + numbers), tuple(notes),
        None if measured is None else 1 / measured(keep), None if given is not None else _share(chosen, graph),
    )  # fmt: skip


def rehearse(source: Unfolded, options: PruneOptions, given: PruningPlan | None = None) -> None:
    """Raise the errors of :func:`remove` that can be known without images: wrong names, plans and targets.

    Parameters
    ----------
    source : Unfolded
        Not changed.
    options : PruneOptions
    given : PruningPlan, optional

    Raises
    ------
    UsageError, TargetError
    """
    matching(source.graph, options.skip)
    if options.recalibrate_bn:
        _require_normalisations(source, source.network)
    source, _ = with_selections(source, options, given)
    if given is None and (NEEDS[options.criterion] in ("images", "loss") or options.latency_batch is not None):
        return
    graph, folded = source.graph, folded_copy(source.network)
    branches, before = removable(graph, residual_branches(graph)), count_cost(folded, graph.input_shape)
    cost = _cost_of(graph, folded, options, before, None, branches)
    _chosen(source, replace(options, scoring="independent"), given, None, cost, branches)


def _chosen(
    source: Unfolded, options: PruneOptions, given: PruningPlan | None, images: Images | None,
    cost: tuple[CostOf, float], branches: Sequence[Branch],
) -> Chosen:  # fmt: skip
    """The channels that stay, of a plan or by the options; an error where no channel space can lose any."""
    graph = source.graph
    if given is not None:
        check_plan(given, graph, "the plan", {name for branch in branches for name in branch.inner})
        chosen = Chosen(dict(given.keep), (), {})
    else:
        chosen = choose(source, options, images, *cost, branches)
    stay = {space.name: chosen.keep[space.name] for space in graph.spaces.all if space.name in chosen.keep}
    if not stay and given is not None:
        fix = "edit it, or make one with a ratio above 0"
        raise TargetError("--keep", "the plan must list channel spaces that lose channels", got="none", fix=fix)
    if not stay:
        raise nothing_to_prune(graph, chosen.left_alone, options.criterion)
    share = _share(chosen, graph)
    if options.ratio and share == 0:
        rule, fix = "no channel goes, as the limits of each layer keep all", "loosen --floor, --cap or --multiple"
        raise TargetError("--ratio", rule, got=f"{options.ratio:g}", fix=fix)
    return replace(chosen, keep=stay)


def _require_normalisations(source: Unfolded, network: fx.GraphModule) -> None:
    if not source.normalised and not any(isinstance(part, _NORMALISATIONS) for part in network.modules()):
        rule = "estimates the statistics of batch normalisations, and the network has none"
        raise UsageError("--recalibrate-bn", rule, fix="leave it out; --bias mean needs none")


def _recalibrated(source: Unfolded, network: fx.GraphModule, images: Images | None) -> tuple[fx.GraphModule, str]:
    _require_normalisations(source, network)
    if images is None:
        raise UsageError("--recalibrate-bn", "needs images", got="none", fix="give images, or leave it out")
    return choose_statistics(source.network, network, images, images.outputs)


def _cost_of(
    graph: NetworkGraph, folded: fx.GraphModule, options: PruneOptions, before: Cost, measured: MeasuredCost | None,
    branches: Sequence[Branch],
) -> tuple[CostOf, float]:  # fmt: skip
    """The cost that a speed-up counts, and that of the original."""
    if measured is not None:
        return measured, 1.0
    name = "params" if options.cost == "params" else "macs"
    return lambda keep: getattr(counted_cost(graph, folded, keep, before, branches), name), getattr(before, name)


def _share(chosen: Chosen, graph: NetworkGraph) -> float:
    whole = sum(graph.spaces[name].width for name in chosen.keep)
    return 1 - sum(map(len, chosen.keep.values())) / whole


def _limit_notes(chosen: Chosen, branches: Sequence[Branch], may_go: bool) -> list[str]:
    if not chosen.limited:
        return []
    note = f"kept from losing more channels by the limits of a layer: {listed(chosen.limited)}"
    inner = {name for branch in branches for name in branch.inner}
    if not may_go and (inside := [name for name in chosen.limited if name in inner]):
        note += f" (with --remove-branches the branches of {listed(inside)} could go as a whole)"
    return [note]


def _branch_notes(gone: Sequence[Branch]) -> list[str]:
    if not gone:
        return []
    names = listed([branch.name for branch in gone])
    return [f"branches removed as a whole, by their last layers: {names}; their shortcuts pass on alone"]


def nothing_to_prune(graph: NetworkGraph, left_alone: Mapping[str, str], criterion: str = "l1") -> TargetError:
    """The error for a network of which no channel can go, with the first reasons."""
    why = "; ".join(f"{name}: {reason}" for name, reason in list(left_alone.items())[:2])
    fix = "give --coupled" if any("--coupled" in reason for reason in left_alone.values()) else None
    if fix is None and criterion == "bn-scale":
        fix = "take another criterion, such as l1"
    if fix is None and any(reason.endswith(" is skipped") for reason in left_alone.values()):
        fix = "skip fewer layers"
    fix = fix or "decompose may still split its convolutions"
    return TargetError(graph.name, "no channel of this network can be removed", got=why or "no layer", fix=fix)
