"""Blocks of a traced network: stretches of nodes that read one value and write one, such as residual blocks."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from decomp.graph.network_graph import NetworkGraph


@dataclass(frozen=True)
class Block:
    """A stretch of nodes between two places that a single value crosses.

    Attributes
    ----------
    source, target : str
        Names of the node whose value it reads and of the node whose value it writes.
    nodes : tuple of str
        Names of its nodes in execution order, the target last.
    layers : tuple of str
        Paths of the convolution and linear layers that it calls, each once.
    """

    source: str
    target: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]


def find_blocks(graph: NetworkGraph, least_layers: int) -> list[Block]:
    """Divide a network into blocks of at least so many layers.

    A residual block or an inverted residual is never cut: inside it two values are alive. Neighbours are joined until
    they have enough layers; what follows the last place that a single value crosses belongs to no block.

    Parameters
    ----------
    graph : NetworkGraph
    least_layers : int
        A network of fewer layers is one block.

    Returns
    -------
    list of Block
        In execution order; each reads what the one before it writes, and the first one reads the images.
    """
    nodes = list(graph.module.graph.nodes)
    layers = {layer.name for layer in graph.layers}
    cuts = _cuts(graph, nodes)
    if not cuts:
        return []
    (start, source), blocks = cuts[0], list[Block]()
    for end, target in cuts[1:]:
        part = nodes[start + 1 : end + 1]
        called = tuple(dict.fromkeys(str(n.target) for n in part if n.op == "call_module" and n.target in layers))
        block = Block(source.name, target.name, tuple(node.name for node in part), called)
        if blocks and (len(blocks[-1].layers) < least_layers or not called):
            blocks[-1] = joined(blocks[-1], block)
        else:
            blocks.append(block)
        start, source = end, target
    if len(blocks) > 1 and len(blocks[-1].layers) < least_layers:
        last = blocks.pop()
        blocks[-1] = joined(blocks[-1], last)
    return [block for block in blocks if block.layers]


def joined(first: Block, second: Block) -> Block:
    """One block of two, the second of which reads what the first one writes."""
    layers = dict.fromkeys((*first.layers, *second.layers))
    return Block(first.source, second.target, first.nodes + second.nodes, tuple(layers))


def _cuts(graph: NetworkGraph, nodes: list[fx.Node]) -> list[tuple[int, fx.Node]]:
    """(place, node) of each value that is the only one alive behind a place; a tensor with the images along axis 0."""
    last_use = {source: place for place, node in enumerate(nodes) for source in node.all_input_nodes}
    alive: set[fx.Node] = set()
    found: list[tuple[int, fx.Node]] = []
    for place, node in enumerate(nodes):
        alive = {other for other in alive if last_use[other] > place}
        # Parameters and constants are there at any place, and so is the number of images.
        if node in last_use and node.op != "get_attr" and not _is_image_count(graph, node):
            alive.add(node)
        if len(alive) == 1:
            (value,) = alive
            if (graph.shape(value) or (0,))[0] == 2 and (not found or found[-1][1] is not value):
                found.append((place, value))
            elif found and found[-1][1] is value:
                found[-1] = (place, value)
    return found


def sized(node: fx.Node) -> fx.Node | None:
    """The node whose length along axis 0 a node is: that of x for ``x.size(0)`` and ``x.shape[0]``."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
        return source
    if node.op == "call_function" and node.target is operator.getitem and node.args[1:] == (0,):
        of_shape = source.op == "call_function" and source.target is getattr and source.args[1:] == ("shape",)
        return source.args[0] if of_shape and isinstance(source.args[0], fx.Node) else None
    return None


def _is_image_count(graph: NetworkGraph, node: fx.Node) -> bool:
    source = sized(node)
    return source is not None and (graph.shape(source) or (0,))[0] == 2
