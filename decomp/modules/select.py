"""Channel selection module: reads a subset of its input channels."""

import torch
from torch import nn


class Select(nn.Module):
    """Some of the channels of a feature map, in a fixed order: what a layer reads where the others must stay.

    Parameters
    ----------
    in_channels, out_channels : int
        How many there are and how many are taken. Which ones is the buffer ``index``, the first ones at the start.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.register_buffer("index", torch.arange(out_channels))

    @classmethod
    def of(cls, keep, in_channels):
        """The selection of the channels ``keep`` (torch.LongTensor)."""
        module = cls(in_channels, len(keep))
        module.index.copy_(keep)
        return module

    def forward(self, x):
        return torch.index_select(x, 1, self.index)

    def extra_repr(self):
        return f"{self.out_channels} of {self.in_channels}"
