"""Channel selection module: reads a subset of its input channels."""

from __future__ import annotations

import torch
from torch import nn


def apart(kept: int, width: int) -> torch.Tensor:
    """Places of ``kept`` channels among ``width`` at equal distances, as far as whole numbers are; int64, ascending."""
    return (torch.arange(1, kept + 1) * width).div(kept, rounding_mode="floor") - 1


class Select(nn.Module):
    """Some of the channels of a feature map, in a fixed order, for a layer whose input channels must stay for others.

    Parameters
    ----------
    in_channels, out_channels : int
        Number of channels of the input and of the selection. The buffer ``index`` has the selected ones, initially
        the first ``out_channels``.
    """

    index: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.register_buffer("index", torch.arange(out_channels))

    @classmethod
    def of(cls, keep: torch.Tensor, in_channels: int) -> Select:
        """The selection of the channels ``keep`` (torch.LongTensor)."""
        module = cls(in_channels, len(keep))
        module.index.copy_(keep)
        return module

    @property
    def keeps_all(self) -> bool:
        """Whether every channel is passed on, in its own place."""
        return torch.equal(self.index.cpu(), torch.arange(self.in_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.index_select(x, 1, self.index)

    def extra_repr(self) -> str:
        return f"{self.out_channels} of {self.in_channels}"
