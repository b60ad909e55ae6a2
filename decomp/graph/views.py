"""Views: values of a graph that share the memory of another, and change with it."""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import Any

import torch
from torch import fx

from decomp.graph.size_branches import SIZE_METHODS

# Results that share the memory of their input.
VIEWS = (
    operator.getitem, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    torch.flatten, torch.chunk, torch.split, torch.unbind, torch.narrow, torch.movedim, "view", "reshape", "permute",
    "transpose", "squeeze", "unsqueeze", "flatten", "chunk", "split", "unbind", "narrow", "movedim", "expand",
    "expand_as", "view_as", "detach", "contiguous", "t", "select", "to", "float", "unfold",
)  # fmt: skip
_OF_NUMBERS = ("_operator", "math", "builtins")  # modules of the functions that make numbers of numbers


def is_view(node: fx.Node) -> bool:
    """Whether a node's value shares the memory of its input."""
    if node.target is operator.getitem:
        return takes_a_view(node.args[1])
    return node.target in VIEWS or node.target is getattr and node.args[1] in ("T", "mT", "H", "mH", "real", "data")


def takes_a_view(index: Any) -> bool:
    """Whether ``x[index]`` shares the memory of x: not for masks and lists of places, which make a copy."""
    if isinstance(index, tuple):
        return all(takes_a_view(part) for part in index)
    if isinstance(index, fx.Node):
        return is_number(index)
    return index is None or index is Ellipsis or isinstance(index, (slice, int)) and not isinstance(index, bool)


def is_number(node: fx.Node) -> bool:
    """Whether a node is a size, or a number or a tuple that is made of sizes."""
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    if node.op == "call_method":
        return node.target in SIZE_METHODS
    if node.target in (len, torch.numel):
        return True
    plain = node.op == "call_function" and getattr(node.target, "__module__", "") in _OF_NUMBERS
    return plain and bool(node.all_input_nodes) and all(is_number(before) for before in node.all_input_nodes)


def read_after_change(changed: fx.Node, change: fx.Node, allowed: Container[fx.Node] = ()) -> bool:
    """Whether memory that a call has changed is read later under a name that does not follow the change.

    Parameters
    ----------
    changed : torch.fx.Node
        The tensor, before the change.
    change : torch.fx.Node
        The call that changes it, whose result stands for the tensor from there on.
    allowed : container of torch.fx.Node
        Calls that may read it.
    """
    place = {node: i for i, node in enumerate(changed.graph.nodes)}
    line = [changed]  # the tensor and what it is a view of
    while is_view(line[-1]) and isinstance(line[-1].args[0], fx.Node):
        line.append(line[-1].args[0])
    shared: dict[fx.Node, fx.Node | None] = dict(zip(line, [None, *line]))
    for node in list(shared):
        views = [view for view in node.users if _overlaps(view, shared[node])]
        for view in views:
            if place[view] < place[change] and view not in shared:
                shared[view] = None
                views += [user for user in view.users if is_view(user)]
    for node, part in shared.items():
        for user in node.users:
            disjoint = part is not None and is_view(user) and not _overlaps(user, part)
            if place[user] > place[change] and user not in allowed and not disjoint:
                return True
    return False


def _overlaps(view: fx.Node, other: fx.Node | None) -> bool:
    """Whether a node is a view and may have entries of another view of the same tensor (None: of the whole)."""
    if not is_view(view):
        return False
    if other is None or view.target is not operator.getitem or other.target is not operator.getitem:
        return True
    one, two = (index if isinstance(index, tuple) else (index,) for index in (view.args[1], other.args[1]))
    for a, b in zip(one, two):
        if a is None or b is None or a is Ellipsis or b is Ellipsis:
            return True
        if _apart(_range(a), _range(b)):
            return False
    return True


def _range(index: Any) -> tuple[float, float] | None:
    """First and last place of an index, where both are known."""
    if isinstance(index, int):
        return (index, index) if index >= 0 else None
    if isinstance(index, slice) and all(part is None or isinstance(part, int) for part in (index.start, index.stop)):
        start, stop = index.start or 0, float("inf") if index.stop is None else index.stop
        return (start, stop - 1) if start >= 0 and stop >= 0 else None
    return None


def _apart(one: tuple[float, float] | None, two: tuple[float, float] | None) -> bool:
    return one is not None and two is not None and (one[1] < two[0] or two[1] < one[0])
