"""Channels of a network that can be absent for a while, and the entries of all tensors that belong to each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.foreign_batchnorm import NORM
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace

#: Per channel of a space, the places in a module that belong to it.
Members = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class DroppableSpace:
    """Channels that can be absent one by one.

    Attributes
    ----------
    name : str
        Of the channel space.
    width : int
    writers : tuple of (str, Members)
        Paths of the convolutions that compute the channels, with the filters of each channel.
    carriers : tuple of (str, Members)
        Modules in between with entries per channel: normalisations, PReLU, depthwise convolutions.
    readers : tuple of (str, Members)
        Layers that read the channels, with the input channels or columns of each.
    """

    name: str
    width: int
    writers: tuple[tuple[str, Members], ...]
    carriers: tuple[tuple[str, Members], ...]
    readers: tuple[tuple[str, Members], ...]


def droppable_spaces(
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    first: bool = False,
    coupled: bool = False,
    leaves: Iterable[str] = (),
) -> tuple[tuple[DroppableSpace, ...], dict[str, str]]:
    """Find the channels of a network that convolutions write and that can be left out.

    Parameters
    ----------
    network : torch.nn.Module
        A copy of it is traced.
    input_shape : sequence of int
        (C, H, W) of one image.
    first : bool
        Also the convolutions that read the image. Few weights per filter overlap more by chance: for random
        directions of d numbers, E|cos| = √(2/(πd)). One list over all layers would drop mostly those.
    coupled : bool
        Also channels that several convolutions write, such as those of a residual stream, each as a whole.
    leaves : iterable of str
        As for :func:`decomp.graph.tracing.trace`.

    Returns
    -------
    spaces : tuple of DroppableSpace
        In the order in which they are written.
    reasons : dict of str to str
        For the other convolutions by path, why none of their filters is dropped, as the end of a sentence.

    Raises
    ------
    TraceError
        The network cannot be traced, or does not run on such images.
    """
    traced = trace(network, leaves=leaves, shape=input_shape)
    graph = NetworkGraph(traced, input_shape)
    finder = _Finder(network, graph, first, coupled)
    spaces, reasons = [], {}
    for space in graph.spaces.all:
        kept = finder.reasons(space)
        reasons.update(kept or {})
        if kept is None:
            spaces.append(finder.members(space))
    # A convolution of which some channels can go is not left out.
    for found in spaces:
        for path, _ in found.writers:
            reasons.pop(path, None)
    reasons.update({path: "is a depthwise convolution" for path in finder.depthwise})
    return tuple(spaces), reasons


class _Finder:
    def __init__(self, network: nn.Module, graph: NetworkGraph, first: bool, coupled: bool) -> None:
        self.network, self.graph, self.first, self.coupled = network, graph, first, coupled
        self.layers = {layer.name: layer for layer in graph.layers}
        convolutions = {name for name, layer in self.layers.items() if layer.kind == "conv"}
        roles = {use.path: use.role for use in graph.spaces.uses}
        self.depthwise = sorted(path for path in convolutions if roles.get(path) == "carrier")
        self.convolutions = convolutions - set(self.depthwise)
        names = network.named_parameters(remove_duplicate=False)
        self.owners = Counter(id(parameter) for _, parameter in names)

    def reasons(self, space: ChannelSpace) -> dict[str, str] | None:
        """For the convolutions that write a space, why its channels are not dropped; None where they are."""
        writers = [path for path in space.producers if path in self.convolutions]
        reading = [path for path in writers if self._reads_the_image(self.layers[path])]
        why = self._reason(space)
        if why is None and reading and not self.first:
            told = f"shares its channels with {reading[0]}, which reads the image"
            return {path: "reads the image" if path in reading else told for path in writers}
        if why is None and len(writers) > 1 and not self.coupled:
            other = {path: next(name for name in writers if name != path) for path in writers}
            return {path: f"shares its channels with {name}" for path, name in other.items()}
        return None if why is None else dict.fromkeys(writers, why)

    def _reason(self, space: ChannelSpace) -> str | None:
        """A reason that no option removes."""
        others = [path for path in space.producers if path not in self.convolutions]
        if space.frozen is not None:
            return f"is not dropped: its output {space.frozen}"
        if others or not space.producers:
            return f"shares its channels with {others[0]}, which is no convolution" if others else "has no layer"
        if not space.consumers:
            return "is read by no layer"
        if space.width < 2:
            return "has one channel that can be dropped by itself"
        grouped = [path for path in (*space.producers, *space.consumers) if self._is_grouped(path)]
        if grouped:
            return f"has its channels united by the groups of {grouped[0]}"
        return next(filter(None, map(self._unusable, self._all_modules(space))), None)

    def members(self, space: ChannelSpace) -> DroppableSpace:
        sides = (("writes", space.producers), ("reads", space.carriers), ("reads", space.consumers))
        parts = (tuple((self._own(p), self._places(space, p, side)) for p in paths) for side, paths in sides)
        return DroppableSpace(space.name, space.width, *parts)

    def _own(self, path: str) -> str:
        """The path in the network itself of a module of the traced copy."""
        inner = f".{NORM}"  # a normalisation of another class, with what it has inside
        modules = dict(self.network.named_modules())
        return path.removesuffix(inner) if path not in modules and path.endswith(inner) else path

    def _places(self, space: ChannelSpace, path: str, side: str) -> Members:
        use = self.graph.spaces.use(path)
        assert use is not None
        place = {root: i for i, root in enumerate(space.roots.tolist())}
        found: list[list[int]] = [[] for _ in range(space.width)]
        for i, root in enumerate(self.graph.spaces.roots_of(getattr(use, side)).tolist()):
            if root in place:
                found[place[root]].append(i)
        return tuple(map(tuple, found))

    def _reads_the_image(self, layer: Layer) -> bool:
        read = self.graph.spaces.read_by(layer.name)
        return layer.index == 0 or any(space.frozen is not None and "image" in space.frozen for space in read)

    def _is_grouped(self, path: str) -> bool:
        use = self.graph.spaces.use(path)
        return use is None or use.grouped

    def _all_modules(self, space: ChannelSpace) -> list[str]:
        return list(dict.fromkeys((*space.producers, *space.carriers, *space.consumers)))

    def _unusable(self, path: str) -> str | None:
        """Why a module of the traced copy cannot be changed through the network itself."""
        try:
            module = self.network.get_submodule(self._own(path))
        except AttributeError:
            return f"has its channels go through {path}, a function that the network calls"
        traced = self.graph.module.get_submodule(path)
        for name in ("weight", "bias", "running_mean", "running_var"):
            ours, theirs = getattr(module, name, None), getattr(traced, name, None)
            if theirs is None:
                continue
            held = name in module._parameters or name in module._buffers
            if not held or ours is None or ours.shape != theirs.shape:
                return f"has its channels go through {path}, whose {name} is computed"
            if self.owners[id(ours)] > 1:
                return f"has its channels go through {path}, whose {name} is another module's too"
        return None
