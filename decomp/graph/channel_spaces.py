"""Channel spaces: sets of channels that are written, passed on and read by the same modules.

A *space* is named after the layer that writes it first. Keeping some of its channels means: every producer
writes only those, every carrier passes on only those, every consumer reads only those. A space is frozen where
that is not possible, and says why.
"""

from dataclasses import dataclass

import numpy as np
import torch

from decomp.errors import DecompError
from decomp.graph.channel_map import ChannelMap


@dataclass(frozen=True, eq=False)
class ChannelSpace:
    """Channels that the same modules write, carry and read.

    Attributes
    ----------
    name : str
        Path of the first module that writes it, or the node that gives it; numbered where that gives several spaces.
    roots : numpy.ndarray of int64
        The channels' numbers in the :class:`decomp.graph.channel_map.ChannelMap`, in the order in which they are
        written.
    producers, consumers, carriers : tuple of str
        Module paths in execution order. A consumer reads it, perhaps together with other spaces.
    couplings : tuple of str
        What unites or joins its channels, in words.
    frozen : str or None
        Why it must keep its width, as the end of a sentence that begins with "it".
    """

    name: str
    roots: np.ndarray
    producers: tuple
    consumers: tuple
    carriers: tuple
    couplings: tuple
    frozen: str | None

    @property
    def width(self):
        """Number of channels that can be kept or dropped each by itself."""
        return len(self.roots)


class Spaces:
    """All channel spaces of a traced network.

    Parameters
    ----------
    module : torch.fx.GraphModule
    shapes : dict of torch.fx.Node to tuple of int

    Attributes
    ----------
    all : list of ChannelSpace
        In the order in which they are written.
    uses : list of decomp.graph.channel_map.Use
    """

    def __init__(self, module, shapes):
        self._map = ChannelMap(module, shapes)
        self.uses = self._map.uses
        self.all = self._group()
        self._space_of = {root: space for space in self.all for root in space.roots.tolist()}
        self._by_name = {space.name: space for space in self.all}
        self._use_of = {}
        for use in self.uses:
            self._use_of.setdefault(use.path, use)

    def __getitem__(self, name):
        return self._by_name[name]

    def __contains__(self, name):
        return name in self._by_name

    def use(self, path):
        """The first call of a module that holds numbers per channel, or None."""
        return self._use_of.get(path)

    def read_by(self, path):
        """The spaces that a module reads, in the order of its columns; empty where that is not known."""
        use = self.use(path)
        return [] if use is None else self._along(use.reads)

    def written_by(self, path):
        """The spaces that a module writes, in the order of its channels."""
        use = self.use(path)
        return [] if use is None else self._along(use.writes)

    def roots_of(self, ids):
        """One representative per channel number: equal for channels that are united."""
        return self._map.roots[ids]

    def _along(self, ids):
        return list(dict.fromkeys(self._space_of[root] for root in self._map.roots[ids].tolist()))

    def _group(self):
        """Channels with the same members, couplings and reason belong to one space."""
        tags, members = [], []

        def note(tag, ids):
            roots = np.unique(self._map.roots[ids])
            members.append(np.stack([roots, np.full_like(roots, len(tags))]))
            tags.append(tag)

        for use in self.uses:
            if use.role == "layer":
                note(("producers", use.path), use.writes)
                note(("consumers", use.path), use.reads)
            else:
                note(("carriers", use.path), use.reads)
        for words, ids in self._map.events:
            note(("couplings", words), ids)
        for name, ids in self._map.origins:
            note(("origins", name), ids)
        if not members:
            return []
        table = np.concatenate(members, axis=1)
        table = table[:, np.lexsort((table[1], table[0]))]
        roots, starts = np.unique(table[0], return_index=True)
        groups = {}
        for root, part in zip(roots.tolist(), np.split(table[1], starts[1:])):
            groups.setdefault((part.tobytes(), self._map.reasons.get(root)), []).append((root, part))
        spaces, names = [], {}
        for (_, reason), found in sorted(groups.items(), key=lambda item: item[1][0][0]):
            lists = {"producers": [], "consumers": [], "carriers": [], "couplings": [], "origins": []}
            for tag in found[0][1].tolist():
                kind, name = tags[tag]
                if name not in lists[kind]:
                    lists[kind].append(name)
            first = (lists["producers"] or lists["origins"])[0]
            del lists["origins"]
            names[first] = names.get(first, 0) + 1
            name = first if names[first] == 1 else f"{first}#{names[first]}"
            members_of = {kind: tuple(entries) for kind, entries in lists.items()}
            spaces.append(ChannelSpace(name, np.array([root for root, _ in found]), **members_of, frozen=reason))
        return spaces

    # -- what stays --------------------------------------------------------------------------------------

    def alive(self, keep):
        """For every channel number, whether it stays.

        Parameters
        ----------
        keep : dict of str to sequence of int
            For some spaces, ascending places of the channels that stay.

        Returns
        -------
        numpy.ndarray of bool

        Raises
        ------
        DecompError
            For a space that is not there or is frozen, or places that are not in it.
        """
        alive = np.ones(len(self._map.roots), dtype=bool)
        for name, places in keep.items():
            if name not in self:
                raise DecompError(name, "is not a channel space of this network")
            space, places = self[name], np.asarray(places, dtype=np.int64)
            if space.frozen is not None and len(places) < space.width:
                raise DecompError(name, f"must keep its {space.width} channels: it {space.frozen}", got=len(places))
            inside = len(places) and places[0] >= 0 and places[-1] < space.width and (np.diff(places) > 0).all()
            if not inside:
                rule = f"channels to keep must ascend in 0..{space.width - 1}, at least one"
                raise DecompError(name, rule, got=places.tolist()[:8])
            alive[space.roots] = False
            alive[space.roots[places]] = True
        return alive[self._map.roots]

    def kept_columns(self, alive):
        """For every value of the graph that loses channels, the places along axis 1 that stay.

        Returns
        -------
        dict of torch.fx.Node to torch.LongTensor
        """
        columns = {}
        for node, layout in self._map.layouts.items():
            if not isinstance(layout, tuple) and not alive[layout.ids].all():
                columns[node] = torch.from_numpy(np.flatnonzero(alive[layout.ids]))
        return columns
