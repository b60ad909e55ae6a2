"""Output sizes that a network gives to transposed convolutions, written as their output padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from decomp.modules.convolution import pair

Pair = tuple[int, int]


def sizes_to_padding(network: fx.GraphModule, shape: Sequence[int]) -> list[str]:
    """Let transposed convolutions get their output size by their output padding, in place.

    ``up(x, output_size=skip.shape[2:])`` computes the same as an ``up`` with the output padding that gives this size,
    and a layer that reads one tensor alone can be exchanged.

    Parameters
    ----------
    network : torch.fx.GraphModule
        In evaluation mode, with modules of its own.
    shape : sequence of int
        (C, H, W) of the images.

    Returns
    -------
    list of str
        Paths of the modules whose output padding may be another one for images of another size.
    """
    modules = dict(network.named_modules())
    calls: dict[str, list[fx.Node]] = {}
    for node in network.graph.nodes:
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.ConvTranspose2d:
            calls.setdefault(str(node.target), []).append(node)
    sized = {path: nodes for path, nodes in calls.items() if any(map(_has_size, nodes))}
    if not sized:
        return []
    channels, height, width = shape
    here = _paddings(network, sized, shape)
    elsewhere = _paddings(network, sized, (channels, height + 33, width + 65))  # odd sizes for even ones
    special = []
    for path, nodes in sized.items():
        found = {here.get(node) for node in nodes}
        padding = found.pop()
        if found or padding is None:
            continue
        module = modules[path]
        assert isinstance(module, nn.ConvTranspose2d)
        module.output_padding = padding
        if any(elsewhere.get(node) != padding for node in nodes):
            special.append(path)
        for node in nodes:
            node.args, node.kwargs = node.args[:1], {}
    network.graph.eliminate_dead_code()
    network.recompile()
    return special


def _has_size(node: fx.Node) -> bool:
    return len(node.args) == 2 or "output_size" in node.kwargs


def _paddings(
    network: fx.GraphModule, calls: Mapping[str, Sequence[fx.Node]], shape: Sequence[int]
) -> dict[fx.Node, Pair]:
    """The output padding with which each call gives the size that it gives; none where the network does not run."""
    like = next(network.parameters())
    wanted, found = {node for nodes in calls.values() for node in nodes}, {}

    class Sizes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted:
                module, source = self.fetch_attr(str(n.target)), self.env[n.all_input_nodes[0]]
                found[n] = _padding(module, source, value)
            return value

    try:
        with torch.no_grad():
            Sizes(network, garbage_collect_values=False).run(
                torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
            )
    except Exception:  # does not run on these images; the stages report that in their own words
        return {}
    return found


def _padding(module: nn.ConvTranspose2d, x: Tensor, y: Tensor) -> Pair:
    """Rows and columns of the output beyond those without output padding."""
    assert not isinstance(module.padding, str)  # it takes numbers only
    sizes = zip(
        x.shape[2:], y.shape[2:], pair(module.stride), pair(module.padding), pair(module.dilation),
        pair(module.kernel_size),
    )  # fmt: skip
    over = [out - ((n - 1) * stride - 2 * pad + dilation * (k - 1) + 1) for n, out, stride, pad, dilation, k in sizes]
    return over[0], over[1]
