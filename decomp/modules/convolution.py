"""Convolution modules: geometry of an existing one, and a new one with given weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from decomp.modules.replace import with_parameters
from decomp.problem.factors import Geometry, turned

Convolution: TypeAlias = "nn.Conv2d | nn.ConvTranspose2d"
#: Classes of layers that are convolutions here.
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def pair(sizes: Sequence[int]) -> tuple[int, int]:
    """(vertical, horizontal) of two sizes; torch types them as any number of sizes."""
    vertical, horizontal = sizes
    return vertical, horizontal


def padding(conv: nn.Conv2d) -> tuple[int, int] | str:
    """Padding of a Conv2d: (vertical, horizontal), 'same' or 'valid'."""
    return conv.padding if isinstance(conv.padding, str) else pair(conv.padding)


def geometry(conv: Convolution) -> Geometry:
    """Stride, padding and dilation of a convolution, as the solvers take them."""
    if isinstance(conv, nn.ConvTranspose2d):
        assert not isinstance(conv.padding, str)  # it takes numbers only
        return Geometry(
            pair(conv.stride), pair(conv.padding), pair(conv.dilation), conv.padding_mode, pair(conv.output_padding)
        )
    return Geometry(pair(conv.stride), padding(conv), pair(conv.dilation), conv.padding_mode)


def kernel_of(conv: Convolution) -> torch.Tensor:
    """Kernel (n, c, kh, kw) of a convolution; of a transposed one as in :class:`decomp.problem.factors.Geometry`."""
    return turned(conv.weight) if isinstance(conv, nn.ConvTranspose2d) else conv.weight


def convolution(
    n_in: int, n_out: int, kernel: tuple[int, int], geometry: Geometry, *, bias: bool = True, device: str | None = None
) -> Convolution:
    """A convolution, or a transposed one, of a geometry."""
    options: dict[str, Any] = {"bias": bias, "device": device, **geometry.to_json()}
    return (nn.ConvTranspose2d if geometry.transposed else nn.Conv2d)(n_in, n_out, kernel, **options)


def conv_from_weights(weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry) -> Convolution:
    """A convolution with copies of a kernel (n, c, kh, kw) and a bias (n,) or None."""
    n, c, kh, kw = weight.shape
    conv = convolution(c, n, (kh, kw), geometry, bias=bias is not None, device="meta")
    if isinstance(conv, nn.ConvTranspose2d):
        return with_parameters(conv, turned(weight), bias)
    return with_parameters(conv, weight, bias)
