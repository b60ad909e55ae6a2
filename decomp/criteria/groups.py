"""Group norms: the weights that write, scale and read a channel, in all layers that lose something when it goes.

Fang et al., DepGraph: Towards Any Structural Pruning, 2023, section 3.3: weights that are removed together are judged
together. A channel's number is the sum of |w|ᵖ over them. The biases, and the shifts of normalisations, are left out.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from decomp.criteria.filters import filter_rows
from decomp.criteria.members import per_channel, writers
from decomp.graph.channel_spaces import ChannelSpace, Spaces
from decomp.graph.union_find import IntArray

#: The exponent p of each criterion in :data:`decomp.criteria.names.GROUP_CRITERIA`.
POWERS: Final = {"group-l1": 1, "group-l2": 2}


def group_norm(network: nn.Module, spaces: Spaces, space: ChannelSpace, power: int) -> Tensor:
    """Sum of the absolute weights of every channel, or of their squares.

    Parameters
    ----------
    network : torch.nn.Module
    spaces : decomp.graph.channel_spaces.Spaces
    space : decomp.graph.channel_spaces.ChannelSpace
    power : {1, 2}

    Returns
    -------
    torch.Tensor of float64, shape (space.width,)
    """
    parts = []
    for path in writers(network, spaces, space):
        use = spaces.use(path)
        assert use is not None  # it writes the space
        parts.append((spaces.roots_of(use.writes), _sums(filter_rows(network.get_submodule(path)), power)))
    for path in space.carriers:
        module, use = network.get_submodule(path), spaces.use(path)
        assert use is not None  # it carries the space
        if isinstance(module, _NORMALISATIONS) and module.weight is not None:
            parts.append((spaces.roots_of(use.writes), _sums(module.weight.detach()[:, None], power)))
    for path in space.consumers:
        use = spaces.use(path)
        assert use is not None  # it reads the space
        weight = _by_columns(network.get_submodule(path))
        if path in space.producers:
            weight = _others(weight, spaces.roots_of(use.reads), spaces.roots_of(use.writes))
        parts.append((spaces.roots_of(use.reads), _sums(weight, power)))
    return per_channel(space, parts, mean=False)


def _sums(rows: Tensor, power: int) -> Tensor:
    return rows.to("cpu", torch.float64).abs().pow(power).flatten(1).sum(dim=1)


def _by_columns(module: nn.Module) -> Tensor:
    """The weights of each input channel of a layer, shape (inputs, outputs, …).

    Of a grouped convolution the outputs are those of the input's own group.
    """
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach()
    if isinstance(module, nn.ConvTranspose2d):
        return weight
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    # (groups, outputs of each, inputs of each, …) → one row for each input of each group.
    return torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _others(weight: Tensor, reads: IntArray, writes: IntArray) -> Tensor:
    """Zero where a weight leads from a channel to itself: it was counted among those that write the channel."""
    outputs = writes.reshape(-1, weight.shape[1])  # groups, outputs of each
    inputs = reads.reshape(len(outputs), -1)
    same = torch.from_numpy(inputs[:, :, None] == outputs[:, None, :]).flatten(0, 1)
    return weight.masked_fill(same.view(*same.shape, *[1] * (weight.dim() - 2)), 0.0)


_NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
