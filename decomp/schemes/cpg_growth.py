"""Networks of growing width: the same structure with more channels in every channel space, earlier ones leading.

Hung et al. 2019, section 3.3. The channels of a space of c channels are int(c √m) at the width m, a multiplier of the
parameters. A weight of the narrow network is the leading slice of the wide one along both of its channel axes; columns
behind a flatten are in the order of the channels, so that this holds for linear layers too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from decomp.errors import TraceError
from decomp.graph.channel_numbers import Use
from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.network_graph import NetworkGraph
from decomp.modules.convolution import padding, pair
from decomp.modules.replace import set_module

_FIXED = ("is the image itself", "is the network's output")


def channels_at(channels: int, width: float) -> int:
    """Channels of a space at a width, cut to a whole number as the published code cuts it: 64 at 1.5 are 78."""
    return max(1, int(channels * math.sqrt(width) + 1e-9))


@dataclass(frozen=True, eq=False)
class Family:
    """One network at all widths and for any number of classes.

    Attributes
    ----------
    base : torch.fx.GraphModule
        At width 1.
    input_shape : tuple of int
    head : str
        Path of the layer that writes the class scores; every task has its own.
    layers : tuple of str
        Paths of the other convolutions and linear layers, whose weights the tasks share, in execution order.
    sizes : mapping of str to tuple of (int, int)
        For every module that grows, what it reads and writes per entry: channels at width 1 and columns per channel.
    """

    base: fx.GraphModule
    input_shape: tuple[int, ...]
    head: str
    layers: tuple[str, ...]
    sizes: Mapping[str, tuple[_Side, _Side]]

    @classmethod
    def of(cls, graph: NetworkGraph, name: str, *, grows: bool = True) -> Family:
        """The family of a traced network.

        Parameters
        ----------
        graph : NetworkGraph
        name : str
            For messages.
        grows : bool
            Whether other widths than 1 are asked for.

        Raises
        ------
        TraceError
            The network has no single layer that gives class scores, or, where it is to grow, channels that cannot.
        """
        uses = _layer_uses(graph, name)
        head = _head(graph, uses, name)
        sizes = {}
        if grows:
            sizes = {use.path: _sides(graph, use, name) for use in graph.spaces.uses}
        layers = tuple(path for path in uses if path != head)
        if not layers:
            raise TraceError(name, "must have a layer before the one that gives the class scores")
        family = cls(graph.module, tuple(graph.input_shape), head, layers, sizes)
        if grows:
            family._require_runs(name)
        return family

    def build(self, width: float, n_classes: int) -> fx.GraphModule:
        """The network at a width, with a head for a number of classes, in evaluation mode.

        Weights of the layers that change are 0, normalisations as they begin; all values are to be loaded.
        """
        network = copy.deepcopy(self.base)
        for path, (reads, writes) in self.sizes.items():
            module = network.get_submodule(path)
            n_out = n_classes if path == self.head else writes.at(width)
            set_module(network, path, _resized(module, reads.at(width), n_out))
        if self.head not in self.sizes:
            head = network.get_submodule(self.head)
            set_module(network, self.head, _resized(head, _read_width(head), n_classes))
        return network.eval()

    def _require_runs(self, name: str) -> None:
        try:
            with torch.no_grad():
                scores = self.build(2.25, 3)(torch.zeros(2, *self.input_shape))
        except Exception as error:  # of the network's own forward pass
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise _cannot_grow(name, f"does not run with more channels ({reason})") from error
        if tuple(scores.shape) != (2, 3):
            raise _cannot_grow(name, f"gives {tuple(scores.shape)} with more channels in place of (2, 3)")


@dataclass(frozen=True)
class _Side:
    """Channels that a module reads or writes: their number at width 1, columns per channel, whether they grow."""

    channels: int
    repeat: int = 1
    grows: bool = True

    def at(self, width: float) -> int:
        return self.repeat * (channels_at(self.channels, width) if self.grows else self.channels)


def _cannot_grow(thing: str, why: str) -> TraceError:
    return TraceError(thing, f"cannot grow: {why}", fix="give a largest width of 1 (max_width), or another network")


def _layer_uses(graph: NetworkGraph, name: str) -> dict[str, Use]:
    if graph.functional_convs:
        raise TraceError(name, "calls a convolution as a function", got=graph.functional_convs[0], fix="use a module")
    uses: dict[str, Use] = {}
    for use in graph.spaces.uses:
        module = graph.module.get_submodule(use.path)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            uses.setdefault(use.path, use)
    return uses


def _head(graph: NetworkGraph, uses: Mapping[str, Use], name: str) -> str:
    rule = "must end in one layer that gives the class scores"
    fix = "give a classifier"
    (output,) = [node for node in graph.module.graph.nodes if node.op == "output"]
    value = output.args[0]
    shape = graph.shape(value) if isinstance(value, fx.Node) else None
    if shape is None or len(shape) != 2:
        raise TraceError(name, rule, got="outputs of another form", fix=fix)
    writers = [
        path for path in uses if any(space.frozen == _FIXED[1] for space in graph.spaces.written_by(path))
    ]  # fmt: skip
    if len(writers) != 1:
        raise TraceError(name, rule, got=", ".join(writers) or "none", fix=fix)
    (space,) = graph.spaces.written_by(writers[0])
    module = graph.module.get_submodule(writers[0])
    plain = type(module) is nn.Linear or type(module) is nn.Conv2d and module.groups == 1
    if space.carriers or space.producers != (writers[0],) or not plain or space.width != shape[1]:
        raise TraceError(name, rule, got=f"{writers[0]} with {', '.join(space.carriers) or 'others'}", fix=fix)
    return writers[0]


def _sides(graph: NetworkGraph, use: Use, name: str) -> tuple[_Side, _Side]:
    module, spaces = graph.module.get_submodule(use.path), graph.spaces
    thing = f"{name}: {use.path}" if use.path else name
    if getattr(module, "groups", 1) != 1:
        raise _cannot_grow(thing, f"its convolution has {module.groups} groups")
    if not isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)):
        raise _cannot_grow(thing, f"{type(module).__name__} is no convolution, linear layer or batch normalisation")
    return _side(thing, spaces.read_by(use.path), spaces.roots_of(use.reads)), _side(
        thing, spaces.written_by(use.path), spaces.roots_of(use.writes)
    )


def _side(thing: str, spaces: Sequence[ChannelSpace], roots: np.ndarray) -> _Side:
    """The channels along one side of a module, which must be one whole space in order."""
    if spaces and all(space.frozen in _FIXED for space in spaces):
        return _Side(len(roots), grows=False)
    if len(spaces) != 1:
        raise _cannot_grow(thing, f"its input joins {len(spaces)} channel spaces")
    (space,) = spaces
    if space.frozen is not None:
        raise _cannot_grow(thing, f"a channel space of it {space.frozen}")
    repeat, rest = divmod(len(roots), space.width)
    if rest or not (roots.reshape(space.width, repeat) == space.roots[:, None]).all():
        raise _cannot_grow(thing, "its channels are not those of one space in order")
    return _Side(space.width, repeat)


def _read_width(module: nn.Module) -> int:
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


def _resized(module: nn.Module, n_in: int, n_out: int) -> nn.Module:
    """A module of the same kind with other numbers of channels and values as they begin; weights of layers are 0."""
    if isinstance(module, nn.Linear):
        linear = nn.Linear(n_in, n_out, module.bias is not None, device="meta")
        return _empty(linear)
    if isinstance(module, nn.Conv2d):
        conv = nn.Conv2d(
            n_in, n_out, pair(module.kernel_size), pair(module.stride), padding(module), pair(module.dilation), 1,
            module.bias is not None, module.padding_mode, device="meta",
        )  # fmt: skip
        return _empty(conv)
    if isinstance(module, nn.PReLU):
        return nn.PReLU(1 if module.num_parameters == 1 else n_out)
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    return type(module)(
        n_out, module.eps, module.momentum, module.affine, module.track_running_stats
    )  # fmt: skip


def _empty(module: nn.Module) -> nn.Module:
    module = module.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


def grown(narrow: Tensor, wide: Tensor) -> Tensor:
    """A copy of a wide tensor whose leading slice has the values of a narrow one.

    Parameters
    ----------
    narrow, wide : torch.Tensor
        Of as many axes; none of `narrow` is longer.
    """
    result = wide.clone()
    result[tuple(slice(0, size) for size in narrow.shape)] = narrow
    return result


def leading(wide: Tensor, shape: Sequence[int]) -> Tensor:
    """The leading slice of a tensor, contiguous."""
    return wide[tuple(slice(0, size) for size in shape)].contiguous()


def initial_weight(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A new weight (He et al. 2015, normal): by the outputs for convolutions and by the inputs for linear layers."""
    n_out, n_in, *kernel = shape
    fan = n_out * math.prod(kernel) if kernel else n_in
    return torch.randn(tuple(shape), generator=generator) * math.sqrt(2.0 / fan)
