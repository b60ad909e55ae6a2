"""Channel maps of a convolution, an operation, and a layer that reads the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from decomp.graph.channel_map import ChannelMap, map_channels
from decomp.graph.tracing import trace


@dataclass(frozen=True)
class Followed:
    """The channels behind an operation on the outputs of convolution ``a``.

    Attributes
    ----------
    reads : list of int or None
        For every column of the layer behind it, the first channel of ``a`` that goes with it; None for another one.
    united : list of int
        For every channel of ``a``, the first one that goes with it.
    frozen : list of str
        The reasons for which channels of ``a`` must stay.
    map : ChannelMap
    """

    reads: list[int | None]
    united: list[int]
    frozen: list[str]
    map: ChannelMap


class _Shapes(fx.Interpreter):
    def run_node(self, n):
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def map_of(module: nn.Module, shape: tuple[int, ...], leaves: tuple[str, ...] = ()) -> ChannelMap:
    """The channel map of a network on images of one shape."""
    network = trace(module, leaves=leaves)
    shapes = _Shapes(network)
    shapes.shapes = {}
    with torch.no_grad():
        shapes.run(torch.zeros(2, *shape))
    return map_channels(network, shapes.shapes)


def follow(body: Callable | nn.Module, width: int = 4, shape: tuple[int, int] = (6, 5), leaves=()) -> Followed:
    """Follow the channels of a convolution of ``width`` outputs through an operation to the layer behind it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.body = nn.Conv2d(1, width, 1), body
            result = body(torch.zeros(2, width, *shape))
            self.b = nn.Conv2d(result.shape[1], 2, 1) if result.dim() == 4 else nn.Linear(result.shape[-1], 2)

        def forward(self, x):
            return self.b(self.body(self.a(x)))

    found = map_of(Net().eval(), (1, *shape), leaves)
    use_of = {use.path: use for use in found.uses}
    written = found.roots[use_of["a"].writes].tolist()
    reads = found.roots[use_of["b"].reads].tolist() if "b" in use_of else []
    return Followed(
        [written.index(root) if root in written else None for root in reads],
        [written.index(root) for root in written],
        list(dict.fromkeys(found.reasons[root] for root in written if root in found.reasons)),
        found,
    )
