"""Residual blocks that a network leaves out: their names, and the network that goes on with their shortcuts alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import takewhile

from torch import fx

from decomp.cost.count import cost as count_cost
from decomp.errors import DecompError, TargetError, UsageError, near_miss
from decomp.graph.branches import Branch, reason_to_stay, residual_branches
from decomp.graph.network_graph import NetworkGraph
from decomp.surgery.residual_branches import cut_branches, removable

from ...data.formats.curves_file import Survey
from ..console.words import listed
from .memory import StageMemory, measure
from .session import SurveyedRun


def blocks_of(graph: NetworkGraph, skip: Iterable[str] = ()) -> list[Branch]:
    """The residual blocks that can be left out, in execution order.

    What is left out of a block is its branch: all between its input and the addition of its shortcut, which is the
    input itself or a projection of it.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    skip : iterable of str
        Layers that keep their shape; blocks with one of them stay.
    """
    skipped = set(skip)
    found = [branch for branch in residual_branches(graph) if skipped.isdisjoint(branch.layers)]
    return removable(graph, found)


def place_of(block: Branch) -> str:
    """Path of the smallest module around all layers of a block; '' where that is the network itself."""
    parents = [path.split(".")[:-1] for path in block.layers]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents))
    return ".".join(parts[0] for parts in shared)


def named_blocks(graph: NetworkGraph, names: Sequence[str], what: str, skip: Iterable[str] = ()) -> list[str]:
    """Names of the blocks that some names or patterns mean: the path of the last layer of each, in execution order.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
        Of a network without any of them left out.
    names : sequence of str
        Paths of the last layer of a block, or of the module around it; or patterns of these with * and ?.
    what : str
        Source of the names, for messages.
    skip : iterable of str
        Layers that keep their shape.

    Raises
    ------
    UsageError
        A name of an option means no block that can be left out; says why.
    TargetError
        The same of a plan.
    """
    skipped = set(skip)
    blocks, chosen = blocks_of(graph), list[str]()
    known = [(name, block) for block in blocks for name in (block.name, place_of(block)) if name]
    for name in names:
        means = [block for key, block in known if fnmatchcase(key, name)]
        if not means:
            raise _no_block(graph, name, what, known)
        for block in means:
            if both := skipped.intersection(block.layers):
                rule = f"{what} leaves out a block with a layer that keeps its shape"
                raise _kind(what)(block.name, rule, got=min(both), fix="skip fewer layers, or keep this block")
        chosen += [block.name for block in means]
    return [block.name for block in blocks if block.name in chosen]


def _no_block(graph: NetworkGraph, name: str, what: str, known: Sequence[tuple[str, Branch]]) -> DecompError:
    """The error for a name or pattern that means no block that can be left out."""
    if not known:
        rule = f"{what} names a block, and this network has no residual block that can be left out"
        return _kind(what)(name, rule, fix=f"take it out of {what}")
    there = f"there are {listed(list(dict.fromkeys(block.name for _, block in known)), 6)}"
    if any(sign in name for sign in "*?["):
        return _kind(what)(name, f"{what} matches no residual block that can be left out", fix=there)
    rule = f"{what} names a block that cannot be left out: it {reason_to_stay(graph, name)}"
    return _kind(what)(name, rule, fix=near_miss(name, [key for key, _ in known]) or there)


def _kind(what: str) -> type[DecompError]:
    return UsageError if what.startswith("--") else TargetError


def without_blocks(surveyed: SurveyedRun, names: Sequence[str]) -> SurveyedRun:
    """A surveyed network that leaves out some blocks, for the plan and the fits of the layers that remain.

    The layers behind a block are fitted to the responses of the original as ever, and the last layer of the next block
    makes up for what its shortcut lacks, so they take over what they can of the blocks that are gone.

    Parameters
    ----------
    surveyed : SurveyedRun
        With all blocks; not changed.
    names : sequence of str
        Of :func:`named_blocks`.

    Returns
    -------
    SurveyedRun
        The curves of the other layers are those of the whole network.
    """
    if not names:
        return surveyed
    opened, graph = surveyed.opened, surveyed.graph
    assert isinstance(graph.module, fx.GraphModule)
    branches = [branch for branch in blocks_of(graph) if branch.name in set(names)]
    module = cut_branches(graph.module, branches)
    before = opened.memory
    foot = measure(module, opened.frozen.images(0, 1))
    memory = StageMemory(module, foot, before.limits, before.folder / f"without-{len(names)}")
    memory.count_passes(before.forward_images)
    after = graph.rebuilt(module)
    gone = [path for branch in branches for path in branch.layers]
    narrowed = replace(
        surveyed.narrowed, graph=after, macs_by_layer=count_cost(module, graph.input_shape).per_layer,
        edited=(*surveyed.narrowed.edited, *module.meta["left_out"]), left_out_layers=tuple(gone),
        left_out=tuple(branch.name for branch in branches),
    )  # fmt: skip
    left, all_curves = {layer.name for layer in after.layers}, surveyed.survey
    survey = Survey(
        {name: curves for name, curves in all_curves.own.items() if name in left},
        {name: curves for name, curves in all_curves.output.items() if name in left},
        all_curves.metrics,
    )
    return SurveyedRun(replace(opened, memory=memory), narrowed, after, survey)
