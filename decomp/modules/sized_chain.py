"""Chain of convolutions in place of a transposed one that its network gives an output size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class SizedChain(nn.Sequential):
    """An ``nn.Sequential`` that takes, and has no use for, the output size that ``nn.ConvTranspose2d`` takes.

    Its first convolution has the output padding that gives this size.
    """

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The output of the chain."""
        return super().forward(input)
