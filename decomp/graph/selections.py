"""Selections of channels before batch normalisations, so that one branch can read fewer channels than others.

Where a normalisation reads channels that other layers read too, such as a residual stream before a pre-activation
block, removing a channel for this branch alone needs a layer that selects (Liu et al., Network Slimming, 2017,
section 3). With such a layer in place, the selected channels are a channel space of their own, written by the
selection, which can be narrowed like any other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import fx, nn

from decomp.modules.replace import set_module
from decomp.modules.select import Select

SELECT, NORM = "select", "norm"


def insert_selections(network: fx.GraphModule, paths: Iterable[str], *, behind: bool = False) -> None:
    """Put a selection of all channels before batch normalisations, in place; the outputs stay the same bit for bit.

    Parameters
    ----------
    network : torch.fx.GraphModule
    paths : iterable of str
        Of nn.BatchNorm1d or nn.BatchNorm2d. At each there is then a sequence of the selection and the normalisation,
        which the graph calls one after the other.
    behind : bool
        The selection comes after the normalisation, which keeps all its channels.
    """
    paths = set(paths)
    for path in paths:
        norm = network.get_submodule(path)
        assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
        select = Select(norm.num_features, norm.num_features).to(next(norm.buffers(), next(norm.parameters())).device)
        parts = [(SELECT, select), (NORM, norm)]
        both = nn.Sequential(OrderedDict(reversed(parts) if behind else parts))
        set_module(network, path, both.train(norm.training))
    for node in list(network.graph.nodes):
        if node.op == "call_module" and node.target in paths:
            path = node.target
            first, second = (NORM, SELECT) if behind else (SELECT, NORM)
            with network.graph.inserting_before(node):
                between = network.graph.call_module(f"{path}.{first}", (node.args[0],))
            node.args, node.target = (between,), f"{path}.{second}"
    network.recompile()


def remove_selections(network: fx.GraphModule, paths: Iterable[str]) -> None:
    """Undo :func:`insert_selections` in place, for selections that still pass all channels on."""
    removed = {f"{path}.{SELECT}": path for path in paths}
    targets = {f"{path}.{NORM}": path for path in removed.values()}
    for node in list(network.graph.nodes):
        if node.op == "call_module" and node.target in removed:
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
        elif node.op == "call_module" and node.target in targets:
            node.target = targets[node.target]
    for path in removed.values():
        set_module(network, path, network.get_submodule(f"{path}.{NORM}"))
    network.recompile()
