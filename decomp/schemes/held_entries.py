"""Entries of a network's tensors that keep their values while the rest is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

#: (name of a parameter or buffer as in the state dict, axis): ascending places along the axis.
Places = Mapping[tuple[str, int], torch.Tensor]


class HeldEntries:
    """Slices of parameters and buffers that stay as they are, whatever the optimizer does.

    A gradient of zero alone does not hold a weight: momentum goes on, weight decay pulls, and batch normalisations
    count statistics. Therefore gradients and the optimizers' memory of the entries are cleared, and the values are
    written back after each step.

    Parameters
    ----------
    network : torch.nn.Module
        Its present values are the ones that are held.
    places : mapping of (str, int) to torch.LongTensor
    """

    def __init__(self, network: nn.Module, places: Places) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._places: dict[tuple[str, int], torch.Tensor] = {}
        self._values: dict[tuple[str, int], torch.Tensor] = {}
        for (name, axis), where in places.items():
            tensor = self._tensors[name] = find_tensor(network, name)
            where = self._places[name, axis] = where.to(tensor.device)
            self._values[name, axis] = tensor.detach().index_select(axis, where)

    def __len__(self) -> int:
        return len(self._places)

    def clear_gradients(self) -> None:
        """Set the gradients of the held entries to zero."""
        for (name, axis), where in self._places.items():
            if (gradient := self._tensors[name].grad) is not None:
                gradient.index_fill_(axis, where, 0.0)

    def clear_optimizers(self, optimizers: Iterable[Optimizer]) -> None:
        """Set to zero what optimizers remember of the held entries: momentum, the moments of Adam."""
        optimizers = tuple(optimizers)
        for (name, axis), where in self._places.items():
            for buffer in optimizer_buffers(optimizers, self._tensors[name]):
                buffer.index_fill_(axis, where, 0.0)

    def write_back(self) -> None:
        """Give the held entries their values again."""
        with torch.no_grad():
            for (name, axis), where in self._places.items():
                self._tensors[name].index_copy_(axis, where, self._values[name, axis])

    def state_dict(self) -> list[list[Any]]:
        """Names, axes, places and values."""
        return [[*key, where.cpu(), self._values[key].cpu()] for key, where in self._places.items()]

    @classmethod
    def from_state(cls, network: nn.Module, state: Iterable[Iterable[Any]]) -> HeldEntries:
        """The entries of an earlier process, with the values they had there."""
        entries = [tuple(entry) for entry in state]
        held = cls(network, {(name, axis): where for name, axis, where, _ in entries})
        for name, axis, _, values in entries:
            held._values[name, axis] = values.to(held._values[name, axis])
        return held


def find_tensor(network: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer with this name in the state dict."""
    path, _, attribute = name.rpartition(".")
    tensor = getattr(network.get_submodule(path), attribute)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def optimizer_buffers(optimizers: Iterable[Optimizer], parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """Tensors of a parameter's shape that optimizers remember of it, to change in place."""
    for optimizer in optimizers:
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if key != "step" and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                yield value
