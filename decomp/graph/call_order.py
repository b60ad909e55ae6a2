"""Order of execution in which the calls of one layer follow each other, as far as the values they read allow it.

A layer that is called several times is fitted to what it reads at all calls. Where an encoder runs on one image and
then on another, its calls lie half a network apart, and the fit of each layer would run that half again. With the calls
of each layer side by side, only what lies between two layers is run.
"""

from __future__ import annotations

import operator
from collections import Counter

from torch import fx, nn

from decomp.modules.convolution import CONVOLUTIONS

# Methods and functions that may give a view of their input, by name.
_VIEWS = {
    "getitem", "getattr", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "chunk", "split",
    "tensor_split", "unbind", "permute", "transpose", "swapaxes", "movedim", "t", "expand", "expand_as", "squeeze",
    "unsqueeze", "contiguous", "narrow", "select", "diagonal", "unfold", "detach", "to", "type", "type_as", "float",
    "dropout", "dropout2d", "real", "imag", "broadcast_to", "atleast_2d", "identity",
}  # fmt: skip
_OPERATORS_IN_PLACE = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.setitem, setattr
}  # fmt: skip
_NEW_VALUES = (*CONVOLUTIONS, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)


def bring_calls_together(module: fx.GraphModule) -> list[fx.Node] | None:
    """Reorder the nodes of a traced network in place; each still gives the same value.

    Nodes that change a value in place, and all that share memory with it, keep their order.

    Parameters
    ----------
    module : torch.fx.GraphModule

    Returns
    -------
    list of torch.fx.Node or None
        The nodes in their order of before, for :func:`put_in_order`; None where no layer is called several times.
    """
    nodes = list(module.graph.nodes)
    modules = dict(module.named_modules())
    with_weights = [
        node
        for node in nodes
        if node.op == "call_module" and next(modules[str(node.target)].parameters(), None) is not None
    ]
    calls = Counter(node.target for node in with_weights)
    shared = {node for node in with_weights if calls[node.target] > 1}
    if not shared:
        return None
    waits_for = {node: set(node.all_input_nodes) for node in nodes}
    for earlier, later in _fixed_orders(nodes, modules):
        waits_for[later].add(earlier)
    put_in_order(module, [*_scheduled(nodes, shared, waits_for), nodes[-1]])
    return nodes


def put_in_order(module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Give the nodes of a traced network an order, in place; the output is the last."""
    for node in nodes[:-1]:
        nodes[-1].prepend(node)
    module.recompile()


def _scheduled(nodes: list[fx.Node], shared: set[fx.Node], waits_for: dict[fx.Node, set[fx.Node]]) -> list[fx.Node]:
    """All nodes but the last, the output: calls of shared layers only where nothing else can run."""
    order: list[fx.Node] = []
    done: set[fx.Node] = set()
    left = nodes[:-1]
    while left:
        ready = next((node for node in left if node not in shared and waits_for[node] <= done), None)
        if ready is not None:
            run = [ready]
        else:
            first = next(node for node in left if waits_for[node] <= done)
            run = [node for node in left if node.target == first.target and node in shared and waits_for[node] <= done]
        order += run
        done.update(run)
        left = [node for node in left if node not in done]
    return order


def _fixed_orders(nodes: list[fx.Node], modules: dict[str, nn.Module]) -> list[tuple[fx.Node, fx.Node]]:
    """Pairs (earlier, later) that must not be exchanged, because one of them changes memory that the other uses."""
    memory: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        memory[node] = {node}
        if _may_share_memory(node, modules):
            for source in node.all_input_nodes:
                memory[node] |= memory[source]
            for member in memory[node]:
                memory[member] = memory[node]
    pairs = []
    for changed in {id(memory[node]): memory[node] for node in nodes if _is_in_place(node, modules)}.values():
        users = [node for node in nodes if node in changed or not changed.isdisjoint(node.all_input_nodes)]
        pairs += list(zip(users, users[1:]))
    return pairs


def _name(node: fx.Node) -> str:
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def _may_share_memory(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if _is_in_place(node, modules):
        return True
    if node.op == "call_module":
        return not isinstance(modules[str(node.target)], _NEW_VALUES)
    return node.op in ("call_function", "call_method") and _name(node) in _VIEWS


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return any(getattr(part, "inplace", False) for part in module.modules())
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node)
    changes = name.endswith("_") and not name.endswith("__")
    return changes or node.target in _OPERATORS_IN_PLACE or node.kwargs.get("inplace") is True or "out" in node.kwargs
