"""File prune.json: the channels that stay in each channel space of a pruned network; can be read and edited."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decomp.errors import FileError, TargetError
from decomp.graph.network_graph import NetworkGraph

from ...data.formats.digests import digest_json
from ...data.formats.json_files import read_json, write_json
from ..console.parse import refuse_without_latency
from ..console.prune_options import PruneOptions
from ..console.words import listed

KIND = "decomp pruning"
_FIX = "make it anew with prune, or put back a copy"


@dataclass(frozen=True)
class PruningPlan:
    """Channels of a network that stay, and how they were chosen.

    Attributes
    ----------
    keep : dict of str to list of int
        By channel space, ascending; only spaces that lose channels. None stays inside a branch that goes.
    widths : dict of str to int
        By channel space, its number of channels before.
    facts : dict
        Options, costs and notes, for people; not read.
    """

    keep: Mapping[str, list[int]]
    widths: Mapping[str, int]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the choice itself."""
        return digest_json({"keep": dict(self.keep), "widths": dict(self.widths)})


def write_plan(path: Path, plan: PruningPlan) -> None:
    """Write a plan with one object for each channel space, in the order of the network."""
    spaces = [
        {"space": name, "channels": width, "stay": len(plan.keep[name]), "keep": plan.keep[name]}
        for name, width in plan.widths.items()
        if name in plan.keep
    ]
    write_json(path, {**plan.facts, "spaces": spaces}, kind=KIND)


def read_plan(path: str | os.PathLike[str]) -> PruningPlan:
    """Read a plan that may have been edited.

    Raises
    ------
    FileError
        It is no such file, or an entry is not as it must be; names the channel space.
    """
    content = read_json(Path(path), kind=KIND, fix=_FIX)
    spaces = content.get("spaces")
    if not isinstance(spaces, list):
        raise FileError(path, "must have a list 'spaces'", got=type(spaces).__name__, fix=_FIX)
    keep: dict[str, list[int]] = {}
    widths: dict[str, int] = {}
    for entry in spaces:
        name = entry.get("space") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in keep:
            raise FileError(path, "each of 'spaces' must name a channel space of its own", got=repr(name), fix=_FIX)
        width, places = entry.get("channels"), entry.get("keep")
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise FileError(path, f"{name}: 'channels' must be a number from 1", got=repr(width), fix=_FIX)
        whole = isinstance(places, list) and all(isinstance(p, int) and not isinstance(p, bool) for p in places)
        if not whole or places != sorted(set(places)) or (places and not 0 <= places[0] <= places[-1] < width):
            rule = f"{name}: 'keep' must have ascending numbers in 0..{width - 1}"
            raise FileError(path, rule, got=repr(places)[:60], fix=_FIX)
        keep[name], widths[name] = places, width
    return PruningPlan(keep, widths)


def prune_options(given: PruningPlan | None = None, **choices: Any) -> PruneOptions:
    """Options of a pruning from keywords, or from a given plan, which decides the channels.

    Parameters
    ----------
    given : PruningPlan, optional
    **choices
        Fields of :class:`decomp.pipelines.console.prune_options.PruneOptions`.

    Raises
    ------
    UsageError
        For a value that is not allowed, none or several targets, or a target beside a plan.
    """
    if given is None:
        options = PruneOptions(**choices)
        refuse_without_latency(options.cost, choices)
        return options
    kept = ("speedup", "ratio", "bias", "recalibrate_bn", "seed")  # a target is refused, the others still decide
    return PruneOptions(keep=given.digest, **{name: value for name, value in choices.items() if name in kept})


def check_plan(plan: PruningPlan, graph: NetworkGraph, name: str, inner: Container[str] = ()) -> None:
    """Refuse a plan that was made for another network.

    Only the channel spaces `inner`, of residual branches, may lose all channels.

    Raises
    ------
    TargetError
        Names the first channel space that does not fit.
    """
    fix = "give the plan of a run of the same network"
    for space, width in plan.widths.items():
        if space not in graph.spaces:
            there = [entry.name for entry in graph.spaces.all if not entry.frozen]
            rule = f"{name} is for another network: this one has no channel space {space}"
            raise TargetError("--keep", rule, got=f"the spaces {listed(there, 12)}", fix=fix)
        found = graph.spaces[space]
        if found.width != width:
            rule = f"{name} is for another network: {space} has {found.width} channels in this one"
            raise TargetError("--keep", rule, got=width, fix=fix)
        if not plan.keep[space] and space not in inner:
            rule = f"{space} must keep a channel: it is not inside a residual branch that could go"
            raise TargetError("--keep", rule, got="none", fix=f"give it one in {name}")
        if found.frozen is not None and len(plan.keep[space]) < width:
            fix = f"take {space} out of {name}"
            rule = f"{space} must keep its channels: it {found.frozen}"
            raise TargetError("--keep", rule, got=len(plan.keep[space]), fix=fix)
