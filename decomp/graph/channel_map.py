"""Channel dependencies of a traced network: which channels can only be removed together.

Each output channel of a layer is a new number. A value's *layout* is the numbers along its axis 1. Adding two
values unites their numbers one by one, concatenating joins the layouts, a flatten repeats each number once per
pixel, a grouped convolution unites all numbers of a group, chunks of equal parts unite place by place. Combinations
of operations therefore need no rule of their own: two numbers are united exactly if one channel cannot go without
the other. An operation that is not understood freezes the channels that go into it, with the reason, and gives new
channels that are frozen too.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from decomp.graph import layer_rules, operations, reshape_rules, size_rules, tensor_rules
from decomp.graph.channel_numbers import ChannelNumbers, Layout, Use
from decomp.graph.union_find import IntArray
from decomp.graph.weight_reads import unchangeable
from decomp.modules.select import Select
from decomp.modules.zeros import Zeros

_NO_SIZES = ("dtype", "device", "ndim", "is_cuda", "requires_grad")  # attributes that say nothing of channels
_RESHAPES = ("view", "reshape", torch.flatten, "flatten", torch.reshape)


@dataclass(frozen=True, eq=False)
class ChannelMap:
    """Channel numbers of every value of a traced network.

    Attributes
    ----------
    roots : numpy.ndarray of int64
        For every channel number the one that represents it: equal for channels that are united.
    reasons : mapping of int to str
        For the roots that must stay, why.
    layouts : mapping of torch.fx.Node to Layout or tuple of Layout
    uses : sequence of Use
        In execution order.
    events : sequence of (str, numpy.ndarray)
        What unites or joins channels, in words, and the numbers it concerns.
    origins : sequence of (str, numpy.ndarray)
        Nodes that no layer writes (the image, operations that are not understood), by name, and the numbers they give.
    """

    roots: IntArray
    reasons: Mapping[int, str]
    layouts: Mapping[fx.Node, Layout | tuple[Layout, ...]]
    uses: Sequence[Use]
    events: Sequence[tuple[str, IntArray]]
    origins: Sequence[tuple[str, IntArray]]


def map_channels(module: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> ChannelMap:
    """Follow the channels of a network through its graph.

    Parameters
    ----------
    module : torch.fx.GraphModule
    shapes : mapping of torch.fx.Node to tuple of int
        Of every tensor, for a batch of two.

    Returns
    -------
    ChannelMap
    """
    channels, modules, fixed = ChannelNumbers(shapes), dict(module.named_modules()), unchangeable(module)
    for node in module.graph.nodes:
        _follow(channels, node, modules)
        if node.op == "call_module" and node.target in fixed:
            for value in (*node.all_input_nodes, node):
                for layout in channels.all_layouts(value):
                    channels.freeze(layout.ids, f"goes through {node.target}, which stays as it is")
    roots = channels.numbers.representatives()
    # The first reason in the order of the graph stands for the whole set: united channels share it.
    reasons: dict[int, str] = {}
    for ids, reason in channels.frozen:
        for root in np.unique(roots[ids]).tolist():
            reasons.setdefault(root, reason)
    return ChannelMap(roots, reasons, channels.layouts, channels.uses, channels.events, channels.origins)


def _follow(channels: ChannelNumbers, node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    if node.op == "placeholder":
        channels.start(node, "is the image itself")
    elif node.op == "output":
        for source in node.all_input_nodes:
            for layout in channels.all_layouts(source):
                channels.freeze(layout.ids, "is the network's output")
        channels.freeze_counts_read_by(node)
    elif node.op == "call_module":
        _follow_module(channels, node, modules[str(node.target)])
    elif node.op in ("call_function", "call_method"):
        _follow_call(channels, node)


def _follow_module(channels: ChannelNumbers, node: fx.Node, module: nn.Module) -> None:
    source = channels.layout(node.args[0]) if node.args else None
    if source is None or len(node.all_input_nodes) != 1:
        channels.not_understood(node)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        layer_rules.convolution(channels, node, module, source)
    elif isinstance(module, nn.Linear):
        layer_rules.linear(channels, node, module, source)
    elif isinstance(module, operations.CARRIER_MODULES):
        layer_rules.carrier(channels, node, module, source)
    elif isinstance(module, Select):
        layer_rules.selection(channels, node, module, source)
    elif isinstance(module, Zeros):
        layer_rules.zeros(channels, node, module)
    elif isinstance(module, nn.Flatten):
        reshape_rules.reshape(channels, node, source)
    elif operations.is_channelwise(node, module):
        channels.pass_on(node, source)
    else:
        channels.not_understood(node, f"goes through {node.target} ({type(module).__name__})")


def _follow_call(channels: ChannelNumbers, node: fx.Node) -> None:
    source, attribute = channels.layout(node.args[0]) if node.args else None, _attribute(node)
    if node.target == "size" or attribute == "shape":
        size_rules.read_size(channels, node)
    elif node.target in ("dim", "is_floating_point") or attribute in _NO_SIZES:
        return
    elif node.target is operator.getitem:
        (size_rules.index_size if node.args[0] in channels.size_of else tensor_rules.index)(channels, node)
    elif node.target in operations.UNITING:
        tensor_rules.elementwise(channels, node)
    elif node.target in operations.CONCATENATIONS:
        tensor_rules.concatenate(channels, node)
    elif source is None:
        channels.not_understood(node)
    elif node.target in _RESHAPES:
        reshape_rules.reshape(channels, node, source)
    elif node.target in (torch.chunk, "chunk"):
        tensor_rules.chunk(channels, node, source)
    elif node.target in (torch.split, "split"):
        tensor_rules.split(channels, node, source)
    elif node.target == "expand_as":
        tensor_rules.elementwise(channels, node)
    elif _keeps_channels(channels, node):
        channels.pass_on(node, source)
    else:
        channels.not_understood(node)


def _attribute(node: fx.Node) -> object:
    return node.args[1] if node.target is getattr else None


def _keeps_channels(channels: ChannelNumbers, node: fx.Node) -> bool:
    """Whether a call on one tensor treats every channel by itself."""
    if node.target is F.pad and tensor_rules.pads_only_space(channels, node):
        return True
    if operations.is_reduction(node) and tensor_rules.reduces_only_space(channels, node):
        return True
    return operations.is_channelwise(node) and sum(bool(channels.all_layouts(s)) for s in node.all_input_nodes) == 1
