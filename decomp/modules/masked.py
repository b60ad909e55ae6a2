"""Layers with masks on their input and output channels: the same outputs as a smaller layer, in the old shapes.

The masks set parts of the weight and of the bias to zero. Masked outputs are zero, and stay so in training, as no
gradient reaches what is masked. A masked input does not count, whatever its value: an activation may have made
something other than zero of a masked output (a sigmoid makes 0.5), and a mask on the outputs alone would then give
another network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """A linear layer with masks.

    Parameters
    ----------
    in_features, out_features, bias, **options
        As for ``torch.nn.Linear``.

    Attributes
    ----------
    reads, writes : torch.BoolTensor, shape (in_features,) and (out_features,)
        Buffers: the input and output channels that count, at first all of them.
    """

    reads: Tensor
    writes: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        super().__init__(in_features, out_features, bias, **options)
        _add_masks(self, in_features, out_features)

    @classmethod
    def of(cls, layer: nn.Linear) -> MaskedLinear:
        """A masked layer that shares the parameters of a layer."""
        return _sharing(cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta"), layer)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *masked_parameters(self))


class MaskedConv2d(nn.Conv2d):
    """A convolution of one group with masks.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, **options
        As for ``torch.nn.Conv2d``.

    Attributes
    ----------
    reads, writes : torch.BoolTensor, shape (in_channels,) and (out_channels,)
        Buffers: the input and output channels that count, at first all of them.

    Raises
    ------
    ValueError
        For several groups, whose inputs and outputs only go together.
    """

    reads: Tensor
    writes: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, **options: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        if self.groups != 1:
            raise ValueError(f"a masked convolution has one group, got {self.groups}")
        _add_masks(self, in_channels, out_channels)

    @classmethod
    def of(cls, layer: nn.Conv2d) -> MaskedConv2d:
        """A masked convolution that shares the parameters of a convolution."""
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        options = {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None, "device": "meta"}
        return _sharing(cls(layer.in_channels, layer.out_channels, layer.kernel_size, **options), layer)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *masked_parameters(self))


def set_masks(
    layer: MaskedLinear | MaskedConv2d, reads: Iterable[int] | None = None, writes: Iterable[int] | None = None
) -> None:
    """Let only these input and output channels count; None leaves a mask as it is."""
    for mask, channels in ((layer.reads, reads), (layer.writes, writes)):
        if channels is not None:
            mask.fill_(False)
            mask[torch.tensor(list(channels), dtype=torch.int64, device=mask.device)] = True


def masked_parameters(layer: MaskedLinear | MaskedConv2d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with zeros where they are masked; gradients reach the rest."""
    more = [1] * (layer.weight.dim() - 2)
    counts = layer.writes.view(-1, 1, *more) & layer.reads.view(1, -1, *more)
    bias = None if layer.bias is None else layer.bias.masked_fill(~layer.writes, 0.0)
    return layer.weight.masked_fill(~counts, 0.0), bias


def _add_masks(layer: nn.Module, n_in: int, n_out: int) -> None:
    layer.register_buffer("reads", torch.ones(n_in, dtype=torch.bool))
    layer.register_buffer("writes", torch.ones(n_out, dtype=torch.bool))


def _sharing(masked: Any, layer: nn.Linear | nn.Conv2d) -> Any:
    """The masked layer with the parameters, the mode and the device of a layer."""
    masked.weight, masked.bias = layer.weight, layer.bias
    masked.reads, masked.writes = (mask.to(layer.weight.device) for mask in (masked.reads, masked.writes))
    return masked.train(layer.training)
