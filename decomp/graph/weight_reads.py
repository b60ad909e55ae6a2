"""Weights of layers that forward reads besides calling the layers: `x.to(self.conv.weight)`, `f - self.conv.bias`.

Sizes of weights are constants of the trace (:mod:`decomp.graph.tracer`). Device and type are those of the images. A
layer whose values are read stays as it is: with another weight in its place, the reader would get other values.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

_OF_IMAGES = ("device", "dtype", "is_cuda")
_MAKES_NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "type")
_LIKE = {torch.zeros_like: "new_zeros", torch.ones_like: "new_ones", torch.full_like: "new_full"}


def ask_the_images(network: fx.GraphModule) -> None:
    """Take device and type from the images where forward asks a weight for them, in place.

    The weight itself is then not read, and its layer can be exchanged.

    Parameters
    ----------
    network : torch.fx.GraphModule
        Whose first input are the images.
    """
    images = next((node for node in network.graph.nodes if node.op == "placeholder"), None)
    if images is None:
        return
    for node in network.graph.nodes:
        first = node.args[0] if node.args else None
        second = node.args[1] if len(node.args) > 1 else None
        if node.target is getattr and second in _OF_IMAGES and _is_weight(first):
            node.args = (images, second)
        elif node.op == "call_method" and node.target in _MAKES_NEW and _is_weight(first):
            node.args = (images, *node.args[1:])
        elif node.op == "call_method" and node.target in ("to", "type_as") and _is_weight(second):
            node.args = (first, images, *node.args[2:])
        elif node.target in _LIKE and _is_weight(first) and set(node.kwargs) <= {"dtype", "device", "fill_value"}:
            assert isinstance(first, fx.Node)
            node.args = (images, tuple(_tensor(network, first).shape), *node.args[1:])
            node.op, node.target = "call_method", _LIKE[node.target]


def unchangeable(network: fx.GraphModule) -> dict[str, str]:
    """Modules that a network calls and that must stay as they are, each with the reason.

    Parameters
    ----------
    network : torch.fx.GraphModule

    Returns
    -------
    dict of str to str
        By path: modules whose tensors forward reads besides, and those that are left as they are because somebody asked
        for it (``meta["leaves"]``).
    """
    found = dict.fromkeys(network.meta.get("leaves", ()), "it is left as it is, as asked")
    return found | {path: f"forward also reads {name}" for path, name in _read_besides(network).items()}


def _read_besides(network: fx.GraphModule) -> dict[str, str]:
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    read = {str(node.target) for node in network.graph.nodes if node.op == "get_attr" and node.users}
    found: dict[str, str] = {}
    for path in sorted(read):
        parts = path.split(".")
        for end in range(1, len(parts)):
            if ".".join(parts[:end]) in called:
                found.setdefault(".".join(parts[:end]), path)
    return found


def _is_weight(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _tensor(network: fx.GraphModule, node: fx.Node) -> Tensor:
    holder, _, name = str(node.target).rpartition(".")
    found = getattr(network.get_submodule(holder), name)
    assert isinstance(found, Tensor)
    return found
