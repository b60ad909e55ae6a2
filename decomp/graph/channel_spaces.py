"""Channel spaces: sets of channels that are written, passed on and read by the same modules.

A *space* is named after the layer that writes it first. Keeping some of its channels means: every producer
writes only those, every carrier passes on only those, every consumer reads only those. A space is frozen where
that is not possible, and holds the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from decomp.errors import DecompError
from decomp.graph.channel_map import ChannelMap, map_channels
from decomp.graph.channel_numbers import Use
from decomp.graph.union_find import IntArray


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
    roots: IntArray
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    carriers: tuple[str, ...]
    couplings: tuple[str, ...]
    frozen: str | None

    @property
    def width(self) -> int:
        """Number of channels that can be kept or dropped each by itself."""
        return len(self.roots)


class Spaces:
    """All channel spaces of a traced network.

    Parameters
    ----------
    module : torch.fx.GraphModule
    shapes : mapping of torch.fx.Node to tuple of int

    Attributes
    ----------
    all : tuple of ChannelSpace
        In the order in which they are written.
    uses : sequence of decomp.graph.channel_numbers.Use
    """

    def __init__(self, module: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]):
        self._map = map_channels(module, shapes)
        self.uses = self._map.uses
        self.all = _group(self._map)
        self._space_of = {root: space for space in self.all for root in space.roots.tolist()}
        self._by_name = {space.name: space for space in self.all}
        self._use_of: dict[str, Use] = {}
        for use in self.uses:
            self._use_of.setdefault(use.path, use)

    def __getitem__(self, name: str) -> ChannelSpace:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def use(self, path: str) -> Use | None:
        """The first call of a module that holds numbers per channel, or None."""
        return self._use_of.get(path)

    def read_by(self, path: str) -> list[ChannelSpace]:
        """The spaces that a module reads, in the order of its columns; empty where that is not known."""
        use = self.use(path)
        return [] if use is None else self._along(use.reads)

    def written_by(self, path: str) -> list[ChannelSpace]:
        """The spaces that a module writes, in the order of its channels."""
        use = self.use(path)
        return [] if use is None else self._along(use.writes)

    def roots_of(self, ids: IntArray) -> IntArray:
        """One representative per channel number: equal for channels that are united."""
        return self._map.roots[ids]

    def _along(self, ids: IntArray) -> list[ChannelSpace]:
        return list(dict.fromkeys(self._space_of[root] for root in self._map.roots[ids].tolist()))

    def alive(self, keep: Mapping[str, Iterable[int]]) -> npt.NDArray[np.bool_]:
        """For every channel number, whether it stays.

        Parameters
        ----------
        keep : mapping of str to iterable of int
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
            space, places = self[name], np.array(list(places), dtype=np.int64)
            if space.frozen is not None and len(places) < space.width:
                raise DecompError(name, f"must keep its {space.width} channels: it {space.frozen}", got=len(places))
            inside = len(places) and places[0] >= 0 and places[-1] < space.width and (np.diff(places) > 0).all()
            if not inside:
                rule = f"channels to keep must ascend in 0..{space.width - 1}, at least one"
                raise DecompError(name, rule, got=places.tolist()[:8])
            alive[space.roots] = False
            alive[space.roots[places]] = True
        return alive[self._map.roots]

    def kept_columns(self, alive: npt.NDArray[np.bool_]) -> dict[fx.Node, torch.Tensor]:
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


_KINDS = ("producers", "consumers", "carriers", "couplings", "origins")


def _group(channels: ChannelMap) -> tuple[ChannelSpace, ...]:
    """Channels with the same members, couplings and reason belong to one space."""
    tags, table = _memberships(channels)
    if not tags:
        return ()
    roots, starts = np.unique(table[0], return_index=True)
    groups: dict[tuple[bytes, str | None], list[tuple[int, IntArray]]] = {}
    for root, part in zip(roots.tolist(), np.split(table[1], starts[1:])):
        groups.setdefault((part.tobytes(), channels.reasons.get(root)), []).append((root, part))
    spaces: list[ChannelSpace] = []
    names: dict[str, int] = {}
    for (_, reason), members in sorted(groups.items(), key=lambda item: item[1][0][0]):
        lists = {
            kind: tuple(dict.fromkeys(tags[tag][1] for tag in members[0][1].tolist() if tags[tag][0] == kind))
            for kind in _KINDS
        }
        first = (lists["producers"] or lists["origins"])[0]
        names[first] = names.get(first, 0) + 1
        spaces.append(
            ChannelSpace(
                name=first if names[first] == 1 else f"{first}#{names[first]}",
                roots=np.array([root for root, _ in members]),
                producers=lists["producers"],
                consumers=lists["consumers"],
                carriers=lists["carriers"],
                couplings=lists["couplings"],
                frozen=reason,
            )
        )
    return tuple(spaces)


def _memberships(channels: ChannelMap) -> tuple[list[tuple[str, str]], IntArray]:
    """Where every channel occurs.

    Returns
    -------
    tags : list of (str, str)
        Kind and name of everything that channels belong to.
    table : numpy.ndarray of int64, shape (2, number of memberships)
        Root and index of a tag, sorted by both.
    """
    tags: list[tuple[str, str]] = []
    members: list[IntArray] = []

    def note(kind: str, name: str, ids: IntArray) -> None:
        roots = np.unique(channels.roots[ids])
        members.append(np.stack([roots, np.full_like(roots, len(tags))]))
        tags.append((kind, name))

    for use in channels.uses:
        if use.role == "layer":
            note("producers", use.path, use.writes)
            note("consumers", use.path, use.reads)
        else:
            note("carriers", use.path, use.reads)
    for words, ids in channels.events:
        note("couplings", words, ids)
    for name, ids in channels.origins:
        note("origins", name, ids)
    table = np.concatenate([np.empty((2, 0), dtype=np.int64), *members], axis=1)
    return tags, table[:, np.lexsort((table[1], table[0]))]
