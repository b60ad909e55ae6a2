"""Convolution modules: geometry of an existing one, and a new one with given weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from decomp.modules.replace import with_parameters
from decomp.problem.factors import Geometry


def pair(sizes: Sequence[int]) -> tuple[int, int]:
    """(vertical, horizontal) of two sizes; torch types them as any number of sizes."""
    vertical, horizontal = sizes
    return vertical, horizontal


def padding(conv: nn.Conv2d) -> tuple[int, int] | str:
    """Padding of a Conv2d: (vertical, horizontal), 'same' or 'valid'."""
    return conv.padding if isinstance(conv.padding, str) else pair(conv.padding)


def geometry(conv: nn.Conv2d) -> Geometry:
    """Stride, padding and dilation of a Conv2d, as the solvers take them."""
    return Geometry(pair(conv.stride), padding(conv), pair(conv.dilation), conv.padding_mode)


def conv_from_weights(weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry) -> nn.Conv2d:
    """A convolution with copies of a weight (n, c, kh, kw) and a bias (n,) or None."""
    n, c, kh, kw = weight.shape
    conv = nn.Conv2d(c, n, (kh, kw), bias=bias is not None, device="meta", **vars(geometry))
    return with_parameters(conv, weight, bias)
