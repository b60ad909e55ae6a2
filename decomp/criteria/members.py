"""Members of a channel space that a criterion looks at, and the sum of their numbers per channel of the space."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from decomp.graph.channel_spaces import ChannelSpace, Spaces
from decomp.graph.union_find import IntArray


def writers(network: nn.Module, spaces: Spaces, space: ChannelSpace) -> tuple[str, ...]:
    """Paths of the layers whose filters belong to a space: those that write it, and depthwise convolutions in it."""
    depthwise = [path for path in space.carriers if isinstance(network.get_submodule(path), _CONVOLUTIONS)]
    return (*space.producers, *depthwise)


def projections(spaces: Spaces, space: ChannelSpace) -> tuple[str, ...]:
    """Paths of the layers that write a space as shortcuts of blocks.

    Such a layer reads what the block reads, and another layer that reads it reaches the same space by a longer way,
    through spaces of the block's own. Li et al. (2017, on pruning across several layers) rank its filters for the
    whole space.
    """
    return tuple(path for path in space.producers if len(space.producers) > 1 and _is_projection(spaces, space, path))


def _is_projection(spaces: Spaces, space: ChannelSpace, path: str) -> bool:
    read = spaces.read_by(path)
    if not read or space in read:
        return False
    beside = {reader for source in read for reader in source.consumers} - {path}
    inner = {written for reader in beside for written in spaces.written_by(reader)} - {space, *read}
    reached: set[ChannelSpace] = set()
    while inner:
        reached |= inner
        readers = {reader for one in inner for reader in one.consumers}
        written = {one for reader in readers for one in spaces.written_by(reader)}
        if space in written:
            return True
        inner = written - reached - set(read)
    return False


def places_in(space: ChannelSpace, roots: IntArray) -> IntArray:
    """For each channel its place in a space; −1 for those of other spaces."""
    order = np.argsort(space.roots, kind="stable")
    at = np.searchsorted(space.roots, roots, sorter=order).clip(max=space.width - 1)
    places: IntArray = order[at]
    return np.where(space.roots[places] == roots, places, -1)


def per_channel(space: ChannelSpace, parts: Iterable[tuple[IntArray, Tensor]], *, mean: bool) -> Tensor:
    """Sum or mean, for each channel of a space, of the numbers of all its members.

    Parameters
    ----------
    space : ChannelSpace
    parts : iterable of (numpy.ndarray of int64, torch.Tensor)
        The representatives of a member's channels (:meth:`decomp.graph.channel_spaces.Spaces.roots_of`) and their
        numbers.
    mean : bool
        The mean over the numbers of a channel, otherwise the sum.

    Returns
    -------
    torch.Tensor of float64, shape (space.width,)
    """
    total = torch.zeros(space.width, dtype=torch.float64)
    count = torch.zeros(space.width, dtype=torch.float64)
    for roots, values in parts:
        places = torch.from_numpy(places_in(space, roots))
        inside = places >= 0
        total.index_add_(0, places[inside], values.to("cpu", torch.float64)[inside])
        count.index_add_(0, places[inside], torch.ones(int(inside.sum()), dtype=torch.float64))
    return total / count.clamp_min(1.0) if mean else total


_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
