"""Selection of the channels that stay in whole channel spaces: their numbers, and which ones they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from decomp.allocation.rules import Rules
from decomp.allocation.sizes import fitting_multiple
from decomp.errors import FileError, TargetError
from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.shared_spaces import members_of, readers_of, whole_spaces
from decomp.solvers.joint import grouped, select_jointly

from ...data.formats.digests import digest_json
from ...data.formats.frozen_file import FrozenFile
from ...data.formats.json_files import read_json, write_json
from ..console.reporter import Reporter
from ..distributed.process_group import from_first
from .gather import ProblemGatherer
from .memory import StageMemory
from .survey import output_metrics

KIND = "decomp spaces"
# Bytes for the moments and inverses of all readers of one space.
BUDGET = 6 << 30


def widths_for_share(graph: NetworkGraph, share: float, rules: Rules) -> dict[str, int]:
    """Number of remaining channels of every space that can be narrowed as a whole, at one share.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    share : float
        In (0, 1].
    rules : decomp.allocation.rules.Rules
        Widths are rounded down to its multiple, and spaces that a skipped layer writes or reads stay whole.

    Returns
    -------
    dict of str to int
        Only the spaces that lose channels.

    Raises
    ------
    TargetError
        There is no such space.
    """
    possible, reasons = whole_spaces(graph)
    free = {name: space for name, space in possible.items() if rules.skip.isdisjoint(_layers_at(space))}
    if not free:
        reasons = {**reasons, **dict.fromkeys(possible, "belongs to a layer that keeps its shape")}
        why = "; ".join(f"{name} {reason}" for name, reason in list(reasons.items())[:2]) or "none that is shared"
        raise TargetError(
            "--coupled", "no channel space of this network can be narrowed as a whole", got=why,
            fix="leave it out",
        )  # fmt: skip
    widths = {}
    for name, space in free.items():
        multiple = fitting_multiple(space.width, rules.multiple)
        width = max(multiple, int(space.width * share / multiple + 1e-9) * multiple)
        if width < space.width:
            widths[name] = width
    return widths


def _layers_at(space: ChannelSpace) -> set[str]:
    return {*space.producers, *space.carriers, *space.consumers}


def check_widths(widths: Mapping[str, object], graph: NetworkGraph, plan_name: str) -> None:
    """Check the channel spaces of a plan against the network.

    Raises
    ------
    TargetError
        Naming space, rule and what was given.
    """
    possible, reasons = whole_spaces(graph)
    for space, width in widths.items():
        if space not in possible:
            why = reasons.get(space, "it is frozen, one layer's own, or no space of this network")
            fix = f"take it out of spaces in {plan_name}; inspect lists them"
            raise TargetError(space, "the space cannot be narrowed as a whole", got=why, fix=fix)
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= possible[space].width:
            rule = f"channels that stay in the space must be in 1..{possible[space].width}"
            raise TargetError(space, rule, got=repr(width), fix=f"change it in {plan_name}")


def choose_channels(
    path: Path,
    widths: Mapping[str, int],
    frozen: FrozenFile,
    graph: NetworkGraph,
    *,
    device: torch.device,
    memory: StageMemory,
    reporter: Reporter,
) -> dict[str, list[int]]:
    """Channels that stay in each space, chosen on the original network for all readers of a space together.

    Parameters
    ----------
    path : Path
        ``layers/spaces.json`` of the run; a resumed run reads the same choice from it.
    widths : dict of str to int
        Space to its number of remaining channels; checked by the caller.
    frozen : decomp.data.formats.frozen_file.FrozenFile
    graph : decomp.graph.network_graph.NetworkGraph
        Of the original network on ``device``.
    device : torch.device
    memory : decomp.pipelines.decomposition.memory.StageMemory
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    dict of str to list of int
        Ascending.
    """
    parent = digest_json({"spaces": dict(widths), "frozen": frozen.content})
    channels = _read_earlier(path, parent)
    if channels is None:
        channels = {}
        metrics = output_metrics(frozen, graph, device=device, memory=memory, reporter=reporter)
        with reporter.progress(len(widths), "shared channels", "spaces") as progress:
            for name, width in widths.items():
                gatherer = ProblemGatherer(frozen, graph, metrics=metrics, device=device, memory=memory)
                chosen = _choose(graph, graph.spaces[name], width, gatherer)
                channels[name] = from_first(lambda: chosen)  # noqa: B023  called at once
                memory.clear()
                progress.update(1)
        write_json(path, {"parent": parent, "keep": channels}, kind=KIND)
    for name, places in channels.items():
        reporter.step(
            f"{name}: {len(places)} of {graph.spaces[name].width} channels stay in all layers that write or read them"
        )
    return channels


def _read_earlier(path: Path, parent: str) -> dict[str, list[int]] | None:
    """An earlier choice for the same widths and points; None where there is none."""
    if not path.is_file():
        return None
    record = read_json(path, kind=KIND, fix="run decompose again with --redo")
    if not isinstance(record.get("keep"), dict):
        raise FileError(path, "must list the channels that stay", fix="run decompose again with --redo")
    return record["keep"] if record.get("parent") == parent else None


def _choose(graph: NetworkGraph, space: ChannelSpace, width: int, gatherer: ProblemGatherer) -> list[int]:
    readers = [graph.layer(name) for name in readers_of(graph, space)]
    needed = sum(3 * 8 * layer.columns**2 for layer in readers)
    if needed > BUDGET:
        raise TargetError(
            space.name, f"choosing its channels would take about {needed / 2**30:.0f} GiB, more than {BUDGET >> 30}",
            fix="take this space out of plan.json, or leave out --coupled",
        )  # fmt: skip
    problems, members = [], []
    for layer in readers:
        problem, _ = gatherer.problem(layer)
        columns = members_of(graph, space, layer.name)
        assert columns is not None  # as whole_spaces requires of all readers
        if columns.shape[1] > 1:
            problem, own = grouped(problem, columns), columns.new_tensor(range(space.width))
        else:
            own = columns.flatten()
        problems.append(problem)
        members.append(own)
    return select_jointly(problems, members, width).channels.tolist()
