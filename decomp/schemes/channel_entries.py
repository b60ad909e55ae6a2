"""Weights of a network by channel: filters that write it, normalisations that carry it, slices that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from decomp.schemes.droppable_channels import DroppableSpace, Members
from decomp.schemes.held_entries import HeldEntries, find_tensor

#: Ascending channels of each space.
Channels = Sequence[Sequence[int]]


class ChannelEntries:
    """Reads and writes the entries of a network's tensors that belong to channels.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    spaces : sequence of DroppableSpace
    """

    def __init__(self, network: nn.Module, spaces: Sequence[DroppableSpace]) -> None:
        self.network, self.spaces = network, spaces
        self.writers = tuple(dict.fromkeys(path for space in spaces for path, _ in space.writers))

    def places(self, role: str, channels: Channels) -> dict[str, torch.Tensor]:
        """Ascending places of channels in the modules of one role ('writers', 'carriers', 'readers'), by path."""
        found: dict[str, list[int]] = {}
        for space, chosen in zip(self.spaces, channels):
            parts: Sequence[tuple[str, Members]] = getattr(space, role)
            for path, members in parts:
                found.setdefault(path, []).extend(place for channel in chosen for place in members[channel])
        return {path: torch.tensor(sorted(places)) for path, places in found.items() if places}

    def filters(self, path: str) -> torch.Tensor:
        """The filters of a convolution as they are now, shape (J, d)."""
        return self._weight(path).detach().movedim(self._axis(path, "out"), 0).flatten(1)

    def write_filters(self, path: str, places: Sequence[int], rows: torch.Tensor) -> None:
        """Give some filters of a convolution new weights, shape (m, d)."""
        weight, axis = self._weight(path), self._axis(path, "out")
        shape = weight.movedim(axis, 0).shape[1:]
        new = rows.reshape(len(rows), *shape).movedim(0, axis)
        weight.detach().index_copy_(axis, torch.tensor(places, device=weight.device), new.to(weight))

    def slices(self, channels: Channels) -> dict[str, torch.Tensor]:
        """Copies, on the CPU, of the weights with which channels are read, by the reader's path."""
        columns = self.places("readers", channels)
        return {path: self._weight(path).detach().index_select(*self._columns(path, where)).cpu()
                for path, where in columns.items()}  # fmt: skip

    def write_slice(self, path: str, columns: torch.Tensor, values: torch.Tensor) -> None:
        """Give a reader other weights for some of its input channels or columns."""
        weight = self._weight(path).detach()
        weight.index_copy_(*self._columns(path, columns), values.to(weight))

    def fan_in(self, path: str) -> int:
        """Weights per output as torch's default initialisation counts them."""
        return self._weight(path)[0].numel()

    def clear(self, channels: Channels) -> None:
        """Set to zero what channels are computed with and read with, normalisations and biases included.

        The slices alone make a channel absent for all that follows, also behind an activation with f(0) ≠ 0.
        """
        for path, filters in self.places("writers", channels).items():
            self._fill(f"{path}.weight", self._axis(path, "out"), filters, 0.0)
            self._fill(f"{path}.bias", 0, filters, 0.0)
        self.reset_normalisations(channels, gain=0.0)
        for path, columns in self.places("readers", channels).items():
            self._fill(f"{path}.weight", self._axis(path, "in"), columns, 0.0)

    def reset_normalisations(self, channels: Channels, gain: float) -> None:
        """Give the batch normalisations of channels a gain, no shift, and the statistics that they start with."""
        for path, where in self.places("carriers", channels).items():
            if not isinstance(self.network.get_submodule(path), (nn.PReLU, nn.Conv2d, nn.ConvTranspose2d)):
                values = {"weight": gain, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
                for name, value in values.items():
                    self._fill(f"{path}.{name}", 0, where, value)

    def hold(self, channels: Channels) -> HeldEntries:
        """All entries of channels, with the values that they have now."""
        writers, carriers = self.places("writers", channels), self.places("carriers", channels)
        readers = self.places("readers", channels)
        places = {(f"{path}.weight", self._axis(path, "in")): columns for path, columns in readers.items()}
        for path, where in [*writers.items(), *carriers.items()]:
            for name in ("weight", "bias", "running_mean", "running_var"):
                if isinstance(getattr(self.network.get_submodule(path), name, None), torch.Tensor):
                    axis = self._axis(path, "out") if name == "weight" and path in writers else 0
                    places[f"{path}.{name}", axis] = where
        return HeldEntries(self.network, places)

    def _weight(self, path: str) -> torch.Tensor:
        return find_tensor(self.network, f"{path}.weight")

    def _axis(self, path: str, side: str) -> int:
        """Axis of a layer's weight along which its outputs ('out'), or its inputs ('in'), lie."""
        transposed = isinstance(self.network.get_submodule(path), nn.ConvTranspose2d)
        return int((side == "in") != transposed)

    def _columns(self, path: str, columns: torch.Tensor) -> tuple[int, torch.Tensor]:
        return self._axis(path, "in"), columns.to(self._weight(path).device)

    def _fill(self, name: str, axis: int, places: torch.Tensor, value: float) -> None:
        path, _, attribute = name.rpartition(".")
        tensor = getattr(self.network.get_submodule(path), attribute, None)
        if isinstance(tensor, torch.Tensor):
            tensor.detach().index_fill_(axis, places.to(tensor.device), value)


def mean_by_channel(values: Mapping[str, torch.Tensor], space: DroppableSpace) -> torch.Tensor:
    """Mean of values per filter over all filters that write a channel: torch.Tensor of float64, shape (width,)."""
    means = []
    for channel in range(space.width):
        parts = [values[path][list(members[channel])].double() for path, members in space.writers]
        means.append(torch.cat(parts).mean())
    return torch.stack(means)
