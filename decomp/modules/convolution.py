"""Convolution modules: their geometry, and modules made from weights."""

from torch import nn

from decomp.modules.replace import with_parameters
from decomp.problem.factors import Geometry


def geometry(conv):
    """Stride, padding and dilation of a Conv2d as the solvers know them."""
    return Geometry(conv.stride, conv.padding, conv.dilation, conv.padding_mode)


def conv_from_weights(weight, bias, geometry):
    n, c, kh, kw = weight.shape
    conv = nn.Conv2d(c, n, (kh, kw), bias=bias is not None, device="meta", **vars(geometry))
    return with_parameters(conv, weight, bias)
