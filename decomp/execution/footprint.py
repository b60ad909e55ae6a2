"""Work and memory of one forward pass: multiply-accumulates by node, bytes of values, and those kept for gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from decomp.cost.count import COUNTED, module_macs


@dataclass(frozen=True)
class Footprint:
    """Work and memory of one image.

    Attributes
    ----------
    work : list of float
        For every node, in order, its share of the multiply-accumulates of a whole pass.
    live : int
        Peak bytes of values in a pass that drops each value after its last use.
    total : int
        Bytes of the values of all nodes, as a backward pass needs them.
    largest : int
        Bytes of the largest input and output of one node together.
    macs : int
        Multiply-accumulates of a whole pass.
    """

    work: list[float]
    live: int
    total: int
    largest: int
    macs: int = 0


@torch.no_grad()
def measure(module: fx.GraphModule, image: Tensor) -> Footprint:
    """Run one image through a traced network and measure every node.

    Parameters
    ----------
    module : torch.fx.GraphModule
        In evaluation mode.
    image : torch.Tensor
        (1, C, H, W), on the device of the network.

    Returns
    -------
    Footprint
    """
    nodes = list(module.graph.nodes)
    last_use = last_uses(nodes)
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    macs: list[int] = []
    sizes: dict[fx.Node, int] = {}
    live = total = largest = 0
    for place, node in enumerate(nodes):
        value: Any
        if node.op == "placeholder":
            value = node.args[0] if node.args and not node.users else image
        else:
            value = interpreter.run_node(node)
        interpreter.env[node] = value
        sizes[node] = value.nbytes if isinstance(value, Tensor) else 0
        macs.append(_macs(module, node, interpreter.env, value))
        live, total = max(live, sum(sizes.values())), total + sizes[node]
        read = sum(sizes.get(source, 0) for source in node.all_input_nodes)
        largest = max(largest, read + sizes[node])
        for other in [n for n in sizes if last_use.get(n, -1) <= place]:
            del interpreter.env[other], sizes[other]
    whole = sum(macs)
    work = [n / whole if whole else 1 / len(nodes) for n in macs]
    return Footprint(work, live, total, largest, whole)


#: Values of the largest size that a backward pass has beside the kept ones: the gradients of a node's output and input,
#: that of a branch which waits, and the copies that convolutions make of two of them.
IN_FLIGHT = 5


def training_bytes(module: nn.Module, image: Tensor) -> int:
    """Bytes that one image takes in a forward and a backward pass, weights and their gradients not counted.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode, so that it is not changed; what is kept is about the same as in training mode.
    image : torch.Tensor
        (1, C, H, W), on the device of the module.

    Returns
    -------
    int
        Everything that is kept for the backward pass, each tensor once, and `IN_FLIGHT` times the largest of it.
    """
    weights = {value.untyped_storage().data_ptr() for value in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    # An address is not used twice: what is kept lives as long as the output.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = module(image)
    del output
    return sum(kept.values()) + IN_FLIGHT * max(kept.values(), default=0)


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """For each node that is read, the index of the last node that reads it."""
    return {source: place for place, node in enumerate(nodes) for source in node.all_input_nodes}


def _macs(module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any], value: Any) -> int:
    layer: nn.Module | None = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    source = node.args[0] if node.args else None
    if not isinstance(layer, COUNTED) or not isinstance(source, fx.Node):
        return 0
    return module_macs(layer, env[source], value)
