"""Channel spaces shared by several layers: which of them can be narrowed as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.network_graph import NetworkGraph


def whole_spaces(graph: NetworkGraph) -> tuple[dict[str, ChannelSpace], dict[str, str]]:
    """Spaces that can be narrowed as a whole: all of their readers are fitted again.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph

    Returns
    -------
    able : dict of str to decomp.graph.channel_spaces.ChannelSpace
    reasons : dict of str to str
        The reason for every other space that is not frozen and not a single layer's own.
    """
    able: dict[str, ChannelSpace] = {}
    reasons: dict[str, str] = {}
    layers = {layer.name: layer for layer in graph.layers}
    narrowed = (layer for layer in graph.layers if layer.input_space is not None and not layer.input_space.sampled)
    private = {graph.own_space(layer).name for layer in narrowed}
    for space in graph.spaces.all:
        if space.frozen is not None or space.name in private:
            continue
        readers = readers_of(graph, space)
        unfitted = [name for name in readers if name not in layers or not layers[name].fitted]
        if space.width < 2:
            reasons[space.name] = "has one channel that can be kept or dropped"
        elif not readers:
            reasons[space.name] = "is read by no layer"
        elif unfitted:
            reasons[space.name] = f"is read by {unfitted[0]}, which is not fitted"
        elif any(members_of(graph, space, name) is None for name in readers):
            reasons[space.name] = "is read in blocks of columns beside other channels"
        else:
            able[space.name] = space
    return able, reasons


def readers_of(graph: NetworkGraph, space: ChannelSpace) -> list[str]:
    """Paths of the layers whose outputs change when a space loses channels.

    Not among them: a grouped convolution whose every group is one channel of the space, as its other groups give
    what they gave before.
    """
    own = set(space.roots.tolist())

    def passes_on(name: str) -> bool:
        use = graph.spaces.use(name)
        if use is None or not use.grouped:
            return False
        return own.issuperset(graph.spaces.roots_of(np.concatenate([use.reads, use.writes])).tolist())

    return [name for name in space.consumers if not passes_on(name)]


def members_of(graph: NetworkGraph, space: ChannelSpace, reader: str) -> torch.Tensor | None:
    """Input channels of a reader that belong to each channel of a space.

    Returns
    -------
    torch.LongTensor, shape (width, r), or None
        r columns for each of the space's channels; more than one only where the reader reads nothing else.
    """
    use = graph.spaces.use(reader)
    if use is None:
        return None
    roots = graph.spaces.roots_of(use.reads)
    place = {root: i for i, root in enumerate(space.roots.tolist())}
    found: list[list[int]] = [[] for _ in range(space.width)]
    for column, root in enumerate(roots.tolist()):
        if root in place:
            found[place[root]].append(column)
    r = len(found[0])
    if any(len(columns) != r for columns in found) or r == 0 or (r > 1 and r * space.width != len(roots)):
        return None
    return torch.tensor(found, dtype=torch.int64)


def kept_outputs(graph: NetworkGraph, keep: Mapping[str, Iterable[int]]) -> dict[str, torch.Tensor]:
    """Remaining output channels of every layer that loses some: {layer: torch.LongTensor}."""
    alive = graph.spaces.alive(keep)
    kept: dict[str, torch.Tensor] = {}
    for layer in graph.layers:
        use = graph.spaces.use(layer.name)
        if use is not None and not alive[use.writes].all():
            kept[layer.name] = torch.from_numpy(np.flatnonzero(alive[use.writes]))
    return kept
