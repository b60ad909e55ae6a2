"""Chain formula: the convolutions that a layer becomes at given widths and ranks.

Multiply-accumulates, parameters, latencies and networks of random weights all derive from :func:`chain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from decomp.allocation.interfaces import Amount, Layer, Size
from decomp.modules import convolution
from decomp.problem.factors import Geometry


@dataclass(frozen=True)
class ChainLink:
    """One convolution of a chain, without weights.

    Attributes
    ----------
    name : str
        One of :data:`decomp.problem.factors.FACTOR_NAMES`.
    in_channels, out_channels : int or numpy.ndarray
        Arrays where the chain stands for many sizes at once.
    kernel : tuple of int
        (kh, kw).
    geometry : decomp.problem.factors.Geometry
    in_hw, out_hw : tuple of int
        Height and width of its input and output, at the layer's first call.
    places : int
        Positions at all calls that each multiply the whole kernel: those of the output, or those of the input of a
        transposed convolution.
    """

    name: str
    in_channels: Size
    out_channels: Size
    kernel: tuple[int, int]
    geometry: Geometry
    in_hw: tuple[int, int]
    out_hw: tuple[int, int]
    places: int

    @property
    def weights(self) -> Size:
        """Parameters without a bias: c·n·kh·kw."""
        return self.in_channels * self.out_channels * (self.kernel[0] * self.kernel[1])

    @property
    def macs(self) -> Size:
        """Multiply-accumulates for one image, all calls."""
        return self.weights * self.places


def chain(
    layer: Layer,
    width_in: Size,
    width_out: Size,
    spatial_rank: Size | None = None,
    channel_rank: Size | None = None,
    *,
    geometry: Geometry = Geometry(),  # noqa: B008 (it is frozen)
) -> list[ChainLink]:
    """The convolutions that a layer becomes, first applied first.

    Parameters
    ----------
    layer : decomp.graph.layer.Layer
    width_in, width_out : int or numpy.ndarray
        Channels it still reads and writes. For a linear layer behind a flatten: columns it still reads.
    spatial_rank, channel_rank : int, numpy.ndarray or None
        None: that step is not applied. A spatial rank splits the kernel into a vertical and a horizontal half; a
        channel rank puts a 1×1 convolution behind fewer filters.
    geometry : Geometry
        Of the layer, see :func:`geometry_of`; not needed for counting.

    Returns
    -------
    list of ChainLink
        The vertical filters give an output that is already as high as the layer's but still as wide as its input.
    """
    (kh, kw), in_hw, out_hw = layer.kernel, layer.in_hw, layer.out_hw
    outputs = sum(out[0] * out[1] for _, out in layer.calls)
    inputs = sum(in_[0] * in_[1] for in_, _ in layer.calls)
    places = inputs if layer.transposed else outputs
    filters = width_out if channel_rank is None else channel_rank
    if spatial_rank is None:
        name = "dense" if channel_rank is None else "filters"
        links = [ChainLink(name, width_in, filters, (kh, kw), geometry, in_hw, out_hw, places)]
    else:
        vertical, horizontal = _halves(geometry)
        between, halfway = (out_hw[0], in_hw[1]), sum(out[0] * in_[1] for in_, out in layer.calls)
        places_v, places_h = (inputs, halfway) if layer.transposed else (halfway, outputs)
        links = [
            ChainLink("vertical", width_in, spatial_rank, (kh, 1), vertical, in_hw, between, places_v),
            ChainLink("horizontal", spatial_rank, filters, (1, kw), horizontal, between, out_hw, places_h),
        ]
    if channel_rank is not None:
        links.append(ChainLink("pointwise", channel_rank, width_out, (1, 1), _POINT, out_hw, out_hw, outputs))
    return links


_POINT = Geometry()


@lru_cache(maxsize=256)
def _halves(geometry: Geometry) -> tuple[Geometry, Geometry]:
    """For the search, which makes a chain for each of many sizes."""
    return geometry.vertical(), geometry.horizontal()


def chain_macs(links: Sequence[ChainLink]) -> Amount:
    """Multiply-accumulates of a chain for one image."""
    return sum(link.macs for link in links)


def chain_params(links: Sequence[ChainLink]) -> Amount:
    """Parameters of a chain, which has one bias, behind its last convolution."""
    return sum(link.weights for link in links) + links[-1].out_channels


def geometry_of(module: nn.Module) -> Geometry:
    """Geometry of a fitted layer's module."""
    return convolution.geometry(module) if isinstance(module, convolution.CONVOLUTIONS) else Geometry()
