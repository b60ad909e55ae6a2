"""Channel spaces that several layers write or read: which of them can be narrowed as a whole, and what that saves."""

import numpy as np
import torch


def whole_spaces(view):
    """Spaces that can be narrowed as a whole, all of their readers fitted anew.

    Parameters
    ----------
    view : decomp.graph.network_graph.NetworkGraph

    Returns
    -------
    able : dict of str to decomp.graph.channel_spaces.ChannelSpace
    reasons : dict of str to str
        For every other space that is not frozen and not a single layer's own, why it cannot.
    """
    able, reasons = {}, {}
    layers = {layer.name: layer for layer in view.layers}
    private = {view.spaces.read_by(la.name)[0].name for la in view.layers if la.input_space and la.input_space.producer}
    for space in view.spaces.all:
        if space.frozen is not None or space.name in private:
            continue
        readers = readers_of(view, space)
        unfitted = [name for name in readers if name not in layers or not layers[name].fitted]
        if space.width < 2:
            reasons[space.name] = "has one channel that can be kept or dropped"
        elif not readers:
            reasons[space.name] = "is read by no layer"
        elif unfitted:
            reasons[space.name] = f"is read by {unfitted[0]}, which is not fitted anew"
        elif any(members_of(view, space, name) is None for name in readers):
            reasons[space.name] = "is read in blocks of columns beside other channels"
        else:
            able[space.name] = space
    return able, reasons


def readers_of(view, space):
    """Paths of the layers that feel it when a space loses channels.

    Not among them: a grouped convolution whose every group is one channel of the space. What its other groups give
    does not change when one goes.
    """
    own = set(space.roots.tolist())

    def passes_on(name):
        use = view.spaces.use(name)
        return use.grouped and own.issuperset(view.spaces.roots_of(np.concatenate([use.reads, use.writes])).tolist())

    return [name for name in space.consumers if not passes_on(name)]


def members_of(view, space, reader):
    """Which input channels of a reader belong to each channel of a space.

    Returns
    -------
    torch.LongTensor, shape (width, r), or None
        r columns for each of the space's channels; more than one only where the reader reads nothing else.
    """
    roots = view.spaces.roots_of(view.spaces.use(reader).reads)
    place = {root: i for i, root in enumerate(space.roots.tolist())}
    found = [[] for _ in range(space.width)]
    for column, root in enumerate(roots.tolist()):
        if root in place:
            found[place[root]].append(column)
    r = len(found[0])
    if any(len(columns) != r for columns in found) or r == 0 or (r > 1 and r * space.width != len(roots)):
        return None
    return torch.tensor(found, dtype=torch.int64)


def kept_outputs(view, keep):
    """Output channels that stay of every layer that loses some: {layer: torch.LongTensor}."""
    alive, kept = view.spaces.alive(keep), {}
    for layer in view.layers:
        use = view.spaces.use(layer.name)
        if use is not None and not alive[use.writes].all():
            kept[layer.name] = torch.from_numpy(np.flatnonzero(alive[use.writes]))
    return kept
