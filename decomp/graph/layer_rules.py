"""Channel rules of modules that hold numbers per channel: convolution, linear layer, normalisation, selection."""

from __future__ import annotations

import numpy as np
from torch import fx, nn

from decomp.graph.channel_numbers import ChannelNumbers, Layout, Use
from decomp.modules.select import Select
from decomp.modules.zeros import Zeros


def convolution(
    channels: ChannelNumbers, node: fx.Node, module: nn.Conv2d | nn.ConvTranspose2d, source: Layout
) -> None:
    """New channels come out; each group of a grouped convolution is united, a depthwise one is a carrier."""
    path = str(node.target)
    if type(module) not in (nn.Conv2d, nn.ConvTranspose2d) or len(source.ids) != module.in_channels:
        channels.not_understood(node, f"goes through {path} ({type(module).__name__})")
        return
    groups = module.groups
    if groups == module.in_channels == module.out_channels and groups > 1:
        channels.call(node, Use(path, "carrier", source.ids, source.ids))
        return
    writes = channels.numbers.add(module.out_channels)
    if groups > 1:
        for reads, written in zip(np.split(source.ids, groups), np.split(writes, groups)):
            group = np.concatenate([reads, written])
            channels.numbers.unite(group, np.full_like(group, group[0]))
        channels.unite_event(f"groups of {path}", np.concatenate([source.ids, writes]))
    channels.call(node, Use(path, "layer", source.ids, writes, grouped=groups > 1))


def linear(channels: ChannelNumbers, node: fx.Node, module: nn.Linear, source: Layout) -> None:
    """New channels come out, where the columns lie along axis 1."""
    if type(module) is not nn.Linear:
        channels.not_understood(node, f"goes through {node.target} ({type(module).__name__})")
        return
    if len(channels.shape(node)) != 2:
        # Channels last: its columns are not along axis 1.
        channels.not_understood(node, f"goes through {node.target} (Linear on more than two axes)")
        return
    writes = channels.numbers.add(module.out_features)
    channels.call(node, Use(str(node.target), "layer", source.ids, writes, source.map_shape))


def carrier(
    channels: ChannelNumbers, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d | nn.PReLU, source: Layout
) -> None:
    """A normalisation or PReLU passes each channel on, with one number of its own for each."""
    width = module.num_parameters if isinstance(module, nn.PReLU) else module.num_features
    if isinstance(module, nn.PReLU) and width == 1:
        channels.pass_on(node, source)
    elif width != len(source.ids):
        channels.not_understood(node)
    else:
        channels.call(node, Use(str(node.target), "carrier", source.ids, source.ids, source.map_shape))


def selection(channels: ChannelNumbers, node: fx.Node, module: Select, source: Layout) -> None:
    """A copy of some channels, which can be fewer without the channels it copies; those must stay in their places."""
    if len(source.ids) != module.in_channels:
        channels.not_understood(node)
        return
    channels.freeze(source.ids, f"is read by the selection {node.target}")
    writes = channels.numbers.add(module.out_channels)
    channels.call(node, Use(str(node.target), "layer", source.ids, writes))


def zeros(channels: ChannelNumbers, node: fx.Node, module: Zeros) -> None:
    """New channels without weights, whatever it reads; there can be fewer."""
    path, written = str(node.target), channels.numbers.add(module.out_channels)
    channels.origins.append((path, written))
    channels.call(node, Use(path, "carrier", written, written))
