"""Removal of whole residual branches: zeros in the place of their layers, or their calls taken out of the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from decomp.graph.branches import Branch
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.operations import ACTIVATIONS, NO_OP_MODULES
from decomp.graph.serialise import describe_module
from decomp.modules.copies import deep_copy
from decomp.modules.replace import set_module
from decomp.modules.zeros import Zeros
from decomp.surgery.constant_channels import EQUAL


def remove_branches(network: nn.Module, paths: Iterable[str]) -> list[str]:
    """Put zeros in the place of the layers of branches, in place.

    The additions then give their shortcuts, as they do where the last layers of the branches, with biases and
    normalisations, are zero. The calls stay as they are, so that the class of the network takes the same exchange.

    Parameters
    ----------
    network : torch.nn.Module
    paths : iterable of str
        As :attr:`decomp.graph.branches.Branch.layers`.

    Returns
    -------
    list of str
        The paths.
    """
    paths = list(paths)
    for path in paths:
        set_module(network, path, Zeros.of(network.get_submodule(path)))
    return paths


@torch.no_grad()
def removable(graph: NetworkGraph, branches: Sequence[Branch]) -> list[Branch]:
    """Those branches that give zeros when their layers do: not one that ends in a sigmoid, for example."""
    if not branches:
        return []
    copy = deep_copy(graph.module)
    remove_branches(copy, dict.fromkeys(path for branch in branches for path in branch.layers))
    reader = _Reader(copy, {branch.last for branch in branches})
    like = next(graph.module.parameters())
    reader.run(torch.zeros(2, *graph.input_shape, device=like.device, dtype=like.dtype))
    return [branch for branch in branches if not reader.values[branch.last].any()]


def cut_branches(network: fx.GraphModule, branches: Iterable[Branch]) -> fx.GraphModule:
    """A copy of a traced network without the calls of some branches: what read their additions reads their shortcuts.

    Nothing of a branch is computed any more, not even zeros. A ReLU behind the addition goes too where the shortcut
    ends in the same one.

    Parameters
    ----------
    network : torch.fx.GraphModule
        Not changed.
    branches : iterable of Branch
        Of :func:`removable`, in execution order.

    Returns
    -------
    torch.fx.GraphModule
        Its ``meta["left_out"]`` has, by the path of each layer that is gone, the zeros that the class of the network
        gets in its place, as :func:`decomp.graph.serialise.describe_module` writes them; and normalisations that were
        folded into them.
    """
    copy = deep_copy(network)
    nodes, graph, before = {node.name: node for node in copy.graph.nodes}, copy.graph, _called(copy)
    layers = set[str]()
    for branch in branches:
        layers |= set(branch.layers)
        last = nodes[branch.last]
        (total,) = last.users
        (shortcut,) = (source for source in total.all_input_nodes if source is not last)
        behind = list(total.users)
        total.replace_all_uses_with(shortcut)
        graph.erase_node(total)
        for user in behind:
            if _activation(copy, user) is not None and _activation(copy, user) == _activation(copy, shortcut):
                user.replace_all_uses_with(shortcut)
                graph.erase_node(user)
        _erase(graph, last)
    graph.lint()
    left_out: dict[str, Any] = dict(network.meta.get("left_out", {}))
    for path in [path for path in before if path not in _called(copy)]:
        module = copy.get_submodule(path)
        if path in layers or type(module) is nn.Identity:  # of a normalisation that was folded
            left_out[path] = describe_module(Zeros.of(module) if path in layers else module, path)
    made = fx.GraphModule(copy, graph)
    made.meta.update(network.meta, left_out=left_out)
    return made


def _called(network: fx.GraphModule) -> dict[str, None]:
    return dict.fromkeys(str(node.target) for node in network.graph.nodes if node.op == "call_module")


def _erase(graph: fx.Graph, last: fx.Node) -> None:
    """Take a node that nothing reads out of a graph, with all that only it needed."""
    waiting, gone = [last], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in gone or node.users or node.op in ("placeholder", "output"):
            continue
        waiting += node.all_input_nodes
        graph.erase_node(node)
        gone.add(node)


def _activation(network: fx.GraphModule, node: fx.Node) -> str | None:
    """'relu' or 'relu6' for a node that applies it; None for any other."""
    key: Any = type(network.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return ACTIVATIONS.get(key) if node.op.startswith("call") else None


@dataclass(frozen=True)
class Constant:
    """The output of a branch without the channels of an inner space.

    Attributes
    ----------
    branch : str
    largest : float
        Largest absolute value; 0 where the branch gave nothing.
    layer : str or None
        Path of the layer or normalisation whose bias took it over; None where the shortcut has none.
    exact : bool
        Whether it is the same at all positions, beside zero padding too.
    """

    branch: str
    largest: float
    layer: str | None
    exact: bool


@torch.no_grad()
def move_constant(
    network: fx.GraphModule, graph: NetworkGraph, branch: Branch, space: str, batch: Tensor, *, means: bool = False
) -> Constant:
    """Move the constant that a branch gives without an inner space into the bias of the shortcut's layer, in place.

    Parameters
    ----------
    network : torch.fx.GraphModule
        With all channels, in evaluation mode.
    graph : decomp.graph.network_graph.NetworkGraph
    branch : Branch
    space : str
        The inner space of which no channel stays. Its channels count with their values where these are constant on
        the images, as with a scale factor of zero, and otherwise as zero.
    batch : torch.Tensor, shape (B, C, H, W)
        Two different images or more.
    means : bool
        Also channels that are not constant count, with their means.
    """
    reader = _Reader(network, {branch.last}, set(graph.spaces[space].consumers), means)
    reader.run(batch)
    value = reader.values[branch.last]
    maps = value.flatten(2) if value.dim() > 2 else value[:, :, None]
    middle = maps.shape[2] // 2
    if value.dim() == 4:
        middle = value.shape[2] // 2 * value.shape[3] + value.shape[3] // 2
    constant, largest = maps[0, :, middle], float(maps.abs().max())
    exact = bool((maps - constant[None, :, None]).abs().max() <= EQUAL * max(largest, 1e-30))
    layer = _biased(network, branch) if largest else None
    if layer is not None:
        module: Any = network.get_submodule(layer)
        if module.bias is None:
            module.bias = nn.Parameter(torch.zeros_like(constant))
        module.bias += constant.to(module.bias)
    return Constant(branch.name, largest, layer, exact)


def _biased(network: fx.GraphModule, branch: Branch) -> str | None:
    """The layer or normalisation that ends the shortcut of a branch, for this addition alone."""
    node = next(node for node in network.graph.nodes if node.name == branch.shortcut)
    while node.op == "call_module" and len(node.users) == 1:
        module = network.get_submodule(str(node.target))
        once = sum(other.op == "call_module" and other.target == node.target for other in network.graph.nodes) == 1
        if isinstance(module, (nn.Conv2d, nn.Linear)) or (isinstance(module, nn.BatchNorm2d) and module.affine):
            return str(node.target) if once else None
        if not isinstance(module, NO_OP_MODULES):
            return None
        node = node.all_input_nodes[0]
    return None


class _Reader(fx.Interpreter):
    """Keeps the values of some nodes; some layers read constants in the place of their inputs."""

    def __init__(
        self, network: fx.GraphModule, names: set[str], constant: set[str] = frozenset(), means: bool = False  # type: ignore[assignment]
    ) -> None:  # fmt: skip
        super().__init__(network)
        self.names, self.constant, self.means = names, constant, means
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = value.clone()  # what follows may change it in place
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in self.constant:
            args = (_constant_channels(args[0], self.means), *args[1:])
        return super().call_module(target, args, kwargs)


def _constant_channels(x: Tensor, means: bool) -> Tensor:
    """Each channel as its value where it is the same everywhere, and otherwise as zero or as its mean."""
    values = x.transpose(0, 1).flatten(1)
    low, high, mean = values.amin(1), values.amax(1), values.mean(1)
    kept = (high - low <= EQUAL * torch.maximum(high.abs(), low.abs())) | means
    return torch.where(kept, mean, torch.zeros_like(mean)).view(1, -1, *(1,) * (x.dim() - 2)).expand_as(x).clone()
