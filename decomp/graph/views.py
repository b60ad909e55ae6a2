"""Views: values of a graph that share the memory of another, and change with it."""

from __future__ import annotations

import operator

import torch
from torch import fx

# Results that share the memory of their input.
VIEWS = (
    operator.getitem, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    torch.flatten, torch.chunk, torch.split, torch.unbind, torch.narrow, torch.movedim, "view", "reshape", "permute",
    "transpose", "squeeze", "unsqueeze", "flatten", "chunk", "split", "unbind", "narrow", "movedim", "expand",
    "expand_as", "view_as", "detach", "contiguous", "t", "select", "to", "float", "unfold",
)  # fmt: skip


def is_view(node: fx.Node) -> bool:
    """Whether a node's value shares the memory of its input."""
    return node.target in VIEWS or node.target is getattr and node.args[1] in ("T", "mT", "H", "mH", "real", "data")


def view_read_after(changed: fx.Node, change: fx.Node) -> bool:
    """Whether a view of a tensor, made before the tensor was changed, is read after that.

    Parameters
    ----------
    changed : torch.fx.Node
        The tensor.
    change : torch.fx.Node
        The call that changes it.
    """
    place = {node: i for i, node in enumerate(changed.graph.nodes)}
    views = [user for user in changed.users if is_view(user) and place[user] < place[change]]
    for view in views:
        if any(place[user] > place[change] for user in view.users):
            return True
        views += [user for user in view.users if is_view(user)]
    return False
