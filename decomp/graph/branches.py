"""Residual branches: what an addition reads beside a shortcut, and the channel spaces without which it is constant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.operations import SUMS, is_channelwise
from decomp.modules.zeros import REPLACED


@dataclass(frozen=True)
class Branch:
    """A branch that is added to a shortcut, and that nothing else reads.

    Attributes
    ----------
    name : str
        Path of its last layer.
    last, shortcut : str
        Names of the nodes that are added.
    inner : tuple of str
        Channel spaces of its own. Without the channels of any of them its output does not depend on the image.
    layers : tuple of str
        Paths of all its modules with weights, and of its selections.
    """

    name: str
    last: str
    shortcut: str
    inner: tuple[str, ...]
    layers: tuple[str, ...]


def residual_branches(graph: NetworkGraph) -> list[Branch]:
    """The branches that can go, so that the addition passes the shortcut alone.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph

    Returns
    -------
    list of Branch
        In execution order. Of two branches that are added to each other neither can go.
    """
    found = []
    for node in graph.module.graph.nodes:
        sides = [side for side in node.args if isinstance(side, fx.Node)]
        if node.target not in SUMS or node.kwargs or len(sides) != 2 or len(node.args) != 2 or sides[0] is sides[1]:
            continue
        if len({graph.shape(one) for one in (*sides, node)}) > 1:
            continue
        branches = [_branch(graph, node, one, other) for one, other in (sides, sides[::-1])]
        ours = [branch for branch in branches if branch is not None]
        found += ours if len(ours) == 1 else []
    return found


def reason_to_stay(graph: NetworkGraph, path: str) -> str:
    """The reason for which no branch that can go holds a module, in words that follow its name.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    path : str
        Of a module, or of one around it.
    """
    inside = [
        node for node in graph.module.graph.nodes
        if node.op == "call_module" and f"{node.target}.".startswith(f"{path}.")
    ]  # fmt: skip
    if not inside:
        return "is no module of this network"
    behind = {inside[-1]}
    for node in graph.module.graph.nodes:
        if behind.isdisjoint(node.all_input_nodes):
            continue
        if node.target in SUMS:
            if len({graph.shape(one) for one in (*node.all_input_nodes, node)}) > 1:
                return "is added to a value of another shape"
            return "shares its branch with others, or no value passes beside it unchanged or by a projection"
        module = graph.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not is_channelwise(node, module):
            break
        behind.add(node)
    return "is not added to a shortcut"


def without_branches(
    keep: Mapping[str, Sequence[int]], branches: Iterable[Branch], graph: NetworkGraph
) -> tuple[dict[str, list[int]], list[Branch]]:
    """The branches that a choice empties, and the rest of the choice.

    Parameters
    ----------
    keep : mapping of str to sequence of int
        Channels that stay, by channel space.
    branches : iterable of Branch
    graph : decomp.graph.network_graph.NetworkGraph

    Returns
    -------
    keep : dict of str to list of int
        Without the spaces of branches that go.
    gone : list of Branch
        Those with a space of which no channel stays.
    """
    gone = [branch for branch in branches if any(name in keep and not keep[name] for name in branch.inner)]
    layers = {path for branch in gone for path in branch.layers}
    return {name: list(places) for name, places in keep.items() if not _within(graph.spaces[name], layers)}, gone


def _within(space: ChannelSpace, layers: set[str]) -> bool:
    return bool(layers) and layers.issuperset((*space.producers, *space.carriers))


def _branch(graph: NetworkGraph, total: fx.Node, last: fx.Node, shortcut: fx.Node) -> Branch | None:
    own = _own_nodes(graph, total, last)
    called = {str(node.target): node for node in own if node.op == "call_module"}
    modules = {path: graph.module.get_submodule(path) for path in called}
    layers = [path for path, module in modules.items() if any(True for _ in module.state_dict())]
    calls = [node for node in graph.module.graph.nodes if node.op == "call_module" and node.target in layers]
    shared = {id(p) for path in layers for p in modules[path].parameters()} & {
        id(p)
        for path, module in graph.module.named_modules(remove_duplicate=False)
        if path not in called
        for p in module.parameters(recurse=False)
    }
    if not own.issuperset(calls) or shared or any(node.op in ("get_attr", "placeholder") for node in own):
        return None
    if any(type(modules[path]) not in REPLACED for path in layers):
        return None
    inner = tuple(space.name for space in graph.spaces.all if _cuts(graph, space, own, last))
    ordered = [str(node.target) for node in graph.module.graph.nodes if node in own and node.target in layers]
    if not inner:
        return None
    return Branch(ordered[-1], last.name, shortcut.name, inner, tuple(dict.fromkeys(ordered)))


def _own_nodes(graph: NetworkGraph, total: fx.Node, last: fx.Node) -> set[fx.Node]:
    """The nodes that nothing needs when an addition does not read `last`."""
    own: set[fx.Node] = set()
    for node in reversed(list(graph.module.graph.nodes)):
        beyond = set(node.users) - own
        if (node is last and beyond == {total}) or (node.users and not beyond):
            own.add(node)
    return own


def _cuts(graph: NetworkGraph, space: ChannelSpace, own: set[fx.Node], last: fx.Node) -> bool:
    """Whether the value of `last` is constant when the layers that read a space read zeros or other constants."""
    members = {*space.producers, *space.consumers, *space.carriers}
    called = {str(node.target) for node in own if node.op == "call_module"}
    if space.frozen is not None or not space.producers or not space.consumers or not members <= called:
        return False
    if any(graph.spaces.read_by(path) != [space] for path in space.consumers):
        return False
    reached = {source for node in own for source in node.all_input_nodes if source not in own}
    for node in graph.module.graph.nodes:
        stops = node.op == "call_module" and node.target in space.consumers
        if node in own and not stops and not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return last not in reached
