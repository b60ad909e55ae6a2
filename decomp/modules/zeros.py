"""Module of zeros in the place of a layer: what is left of a residual branch that was removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from decomp.modules.convolution import padding, pair
from decomp.modules.select import Select

#: Classes of layers in whose place zeros can be put.
REPLACED = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, Select)


class Zeros(nn.Module):
    """Zeros of the shape that a convolution, a linear layer or a normalisation gives, without any arithmetic.

    Parameters
    ----------
    out_channels : int
    kernel_size, stride, dilation : (int, int)
        Those of the convolution; 1 gives maps of the input's size.
    padding : (int, int) or {'same', 'valid'}
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: Sequence[int] = (1, 1),
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] | str = (0, 0),
        dilation: Sequence[int] = (1, 1),
    ):
        super().__init__()
        self.out_channels = out_channels
        self.kernel_size, self.stride, self.dilation = tuple(kernel_size), tuple(stride), tuple(dilation)
        self.padding = padding if isinstance(padding, str) else tuple(padding)

    @classmethod
    def of(cls, module: nn.Module) -> Zeros:
        """Zeros of the shape that a module of :data:`REPLACED` gives."""
        if isinstance(module, nn.Conv2d):
            zeros = cls(
                module.out_channels, pair(module.kernel_size), pair(module.stride), padding(module),
                pair(module.dilation),
            )  # fmt: skip
        elif isinstance(module, nn.Linear):
            zeros = cls(module.out_features)
        else:
            assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, Select))
            zeros = cls(module.out_channels if isinstance(module, Select) else module.num_features)
        zeros.training = module.training
        return zeros

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = [self._size(x.shape[axis + 2], axis) for axis in range(2)] if x.dim() == 4 else []
        return x.new_zeros((x.shape[0], self.out_channels, *sizes))

    def _size(self, n: int, axis: int) -> int:
        if self.padding == "same":
            return n
        beside = 0 if isinstance(self.padding, str) else 2 * self.padding[axis]
        return (n + beside - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1) // self.stride[axis] + 1

    def extra_repr(self) -> str:
        return f"{self.out_channels}"
