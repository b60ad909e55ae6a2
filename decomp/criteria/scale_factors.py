"""Scale factors of batch normalisations that say how much a channel matters, and the way in which each can go.

Network slimming (Liu et al. 2017) removes channels whose scale factor γ is small. That is right where everything that
reads the channel reads it through γ: behind a convolution (the channel is cut), or in a branch of its own (the branch
selects its channels and the stream that it reads keeps them all).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from decomp.criteria.candidates import candidates
from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.operations import is_channelwise, is_reduction
from decomp.graph.selections import NORM, insert_selections, remove_selections
from decomp.modules.copies import deep_copy

BATCHNORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)
#: Modules that a scale factor passes through unchanged, as a factor.
_LINEAR = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Conv2d,
    *BATCHNORMS,
)
_LINEAR_METHODS = ("contiguous", "float", "clone", "detach")
_LINEAR_FUNCTIONS = (F.dropout, F.dropout2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.neg)


@dataclass(frozen=True)
class ScaleFactors:
    """The scale factors of one batch normalisation.

    Attributes
    ----------
    path : str
        Of the normalisation, in the network as it was given.
    how : {'cut', 'select'}
        The channels are removed with the filters that write them; or a selection before the normalisation passes on
        only those that stay.
    space : str
        The channel space that is narrowed, in the network with selections.
    """

    path: str
    how: Literal["cut", "select"]
    space: str


@dataclass(frozen=True, eq=False)
class ScaledChannels:
    """A network in which all channels that its scale factors can judge are channel spaces.

    Attributes
    ----------
    network : torch.fx.GraphModule
        A copy, with selections of all channels before some normalisations.
    graph : decomp.graph.network_graph.NetworkGraph
        Of it.
    factors : tuple of ScaleFactors
        In execution order.
    left_out : dict of str to str
        The other normalisations with scale factors by path, with the reason as the end of a sentence.
    """

    network: fx.GraphModule
    graph: NetworkGraph
    factors: tuple[ScaleFactors, ...]
    left_out: dict[str, str]

    @property
    def spaces(self) -> list[str]:
        """Names of the channel spaces that can be narrowed, in execution order."""
        names = {entry.space for entry in self.factors}
        return [space.name for space in self.graph.spaces.all if space.name in names]


def scaled_channels(network: fx.GraphModule, input_shape: Sequence[int], *, coupled: bool = False) -> ScaledChannels:
    """Find the scale factors by which channels can be removed.

    Parameters
    ----------
    network : torch.fx.GraphModule
        Traced, with its batch normalisations; not changed.
    input_shape : sequence of int
        (C, H, W) of one image.
    coupled : bool
        Streams that additions unite are cut as a whole, in place of a selection in each branch that reads them.

    Returns
    -------
    ScaledChannels
    """
    network = deep_copy(network)
    before = NetworkGraph(network, input_shape)
    verdicts = {path: _judged(before, path, path, "cut", coupled) for path in _normalisations(network)}
    others = [path for path, verdict in verdicts.items() if isinstance(verdict, str) and _can_select(before, path)]
    if others and not coupled:
        insert_selections(network, others)
        between = NetworkGraph(network, input_shape)
        for path in others:
            found = _judged(between, path, f"{path}.{NORM}", "select", False)
            verdicts[path] = found if isinstance(found, ScaleFactors) else verdicts[path]
        remove_selections(network, [path for path in others if isinstance(verdicts[path], str)])
    factors = tuple(verdict for verdict in verdicts.values() if isinstance(verdict, ScaleFactors))
    left_out = {path: verdict for path, verdict in verdicts.items() if isinstance(verdict, str)}
    return ScaledChannels(network, NetworkGraph(network, input_shape), factors, left_out)


def rankable_spaces(graph: NetworkGraph, *, coupled: bool = False) -> tuple[list[str], dict[str, str]]:
    """Channel spaces of a network as it is whose scale factors judge them.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
        With selections, where :func:`scaled_channels` has put them.
    coupled : bool
        As for :func:`scaled_channels`.

    Returns
    -------
    names : list of str
    reasons : dict of str to str
        For the normalisations that judge none, by path, why not, as the end of a sentence.
    """
    assert isinstance(graph.module, fx.GraphModule)
    verdicts = {path: _judged(graph, path, path, "cut", coupled) for path in _normalisations(graph.module)}
    names = {verdict.space for verdict in verdicts.values() if isinstance(verdict, ScaleFactors)}
    reasons = {path: verdict for path, verdict in verdicts.items() if isinstance(verdict, str)}
    return [space.name for space in graph.spaces.all if space.name in names], reasons


def _normalisations(network: fx.GraphModule) -> list[str]:
    """Paths of the batch normalisations with scale factors, in the order of their calls."""
    called = dict.fromkeys(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    modules = {path: network.get_submodule(path) for path in called}
    return [path for path, module in modules.items() if isinstance(module, BATCHNORMS) and module.affine]


def _can_select(graph: NetworkGraph, path: str) -> bool:
    """Whether the channels that a normalisation reads are there for others too.

    Those of the image always are; those of a layer that nothing else reads, and that it is folded into, are not.
    """
    if any("image" in (space.frozen or "") for space in graph.spaces.read_by(path)):
        return False
    for node in graph.module.graph.nodes:
        if node.op == "call_module" and node.target == path:
            (source,) = node.all_input_nodes
            module = graph.module.get_submodule(str(source.target)) if source.op == "call_module" else None
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and len(source.users) == 1:
                return False
    return True


def _judged(
    graph: NetworkGraph, path: str, norm: str, how: Literal["cut", "select"], coupled: bool
) -> ScaleFactors | str:
    """The scale factors of the normalisation at `norm`, or why they judge no channel that could go."""
    calls = [node for node in graph.module.graph.nodes if node.op == "call_module" and node.target == norm]
    spaces = graph.spaces.read_by(norm)
    if len(calls) > 1:
        return "is called more than once"
    if not spaces:
        return "has channels that cannot be followed"
    if len(spaces) > 1:
        return f"reads {len(spaces)} groups of channels that are joined"
    (space,) = spaces
    if space.frozen is not None:
        return f"has channels that must stay: it {space.frozen}"
    if space.width < 2 or space.name not in candidates(graph.spaces, coupled=coupled):
        return "has channels that several layers write and a sum unites" if space.width > 1 else "has one channel"
    if not coupled and (other := _reader_past(graph, space, calls[0])):
        return f"has channels that {other} reads past it"
    if reader := _linear_reader(graph, space, calls[0]):
        return f"is read by {reader} without an activation in between, which can undo its scale"
    return ScaleFactors(path, how, space.name)


def _reader_past(graph: NetworkGraph, space: ChannelSpace, norm: fx.Node) -> str | None:
    """A layer that reads channels of a space without their going through a normalisation; None where there is none."""
    nodes = graph.module.graph.nodes
    written = [node for node in nodes if node.op == "call_module" and node.target in space.producers]
    return _first_reader(graph, space, written, lambda node: node is norm)


def _linear_reader(graph: NetworkGraph, space: ChannelSpace, norm: fx.Node) -> str | None:
    """A layer that the outputs of a normalisation reach without a nonlinear operation; None where there is none."""

    def bends(node: fx.Node) -> bool:
        module = graph.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None:
            return is_channelwise(node, module) and not isinstance(module, _LINEAR)
        kept = node.target in _LINEAR_METHODS or node.target in _LINEAR_FUNCTIONS or is_reduction(node)
        return is_channelwise(node) and not kept

    return _first_reader(graph, space, [norm], bends)


def _first_reader(
    graph: NetworkGraph, space: ChannelSpace, reached: list[fx.Node], stops: Callable[[fx.Node], bool]
) -> str | None:
    """The first layer that reads a space and that values of some nodes reach, past nodes at which that ends."""
    for node in reached:
        for user in node.users:
            if user.op == "call_module" and user.target in space.consumers:
                return str(user.target)
            if graph.shape(user) is not None and user not in reached and not stops(user):
                reached.append(user)
    return None
