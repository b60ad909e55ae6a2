"""What one image costs a network on its way through: work by node, and bytes of the values between nodes."""

from dataclasses import dataclass

import torch
from torch import fx

from decomp.cost.count import COUNTED, module_macs


@dataclass(frozen=True)
class Footprint:
    """Of one image.

    Attributes
    ----------
    work : list of float
        For every node, in order, its share of the multiply-accumulates of a whole pass.
    live : int
        Most bytes of values at one time during a pass that drops each value after its last use.
    total : int
        Bytes of the values of all nodes, as a backward pass needs them.
    largest : int
        Bytes of the largest input and output of one node together.
    """

    work: list
    live: int
    total: int
    largest: int


@torch.no_grad()
def measure(module, image):
    """Run one image through a traced network and look.

    Parameters
    ----------
    module : torch.fx.GraphModule
        In evaluation mode.
    image : torch.Tensor
        (1, C, H, W), where the network is.

    Returns
    -------
    Footprint
    """
    nodes = list(module.graph.nodes)
    last_use = last_uses(nodes)
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    macs, sizes = [], {}
    live = total = largest = 0
    for place, node in enumerate(nodes):
        if node.op == "placeholder":
            value = node.args[0] if node.args and not node.users else image
        else:
            value = interpreter.run_node(node)
        interpreter.env[node] = value
        sizes[node] = value.nbytes if isinstance(value, torch.Tensor) else 0
        macs.append(_macs(module, node, interpreter.env, value))
        live, total = max(live, sum(sizes.values())), total + sizes[node]
        read = sum(sizes.get(source, 0) for source in node.all_input_nodes)
        largest = max(largest, read + sizes[node])
        for other in [n for n in sizes if last_use.get(n, -1) <= place]:
            del interpreter.env[other], sizes[other]
    whole = sum(macs)
    work = [n / whole if whole else 1 / len(nodes) for n in macs]
    return Footprint(work, live, total, largest)


def last_uses(nodes):
    """For each node that is read, the place of the last node that reads it."""
    return {source: place for place, node in enumerate(nodes) for source in node.all_input_nodes}


def _macs(module, node, env, value):
    layer = module.get_submodule(node.target) if node.op == "call_module" else None
    return module_macs(layer, env[node.args[0]], value) if isinstance(layer, COUNTED) else 0
