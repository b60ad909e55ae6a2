"""Criteria of a layer's weights: norms, overlap and distances of its filters.

A filter is the part of a layer's weight that writes one output channel, flattened to a row. Each function takes all
filters of a layer, a matrix of shape (n, d), and gives n numbers in float64. Large layers are taken in parts, so that
no copy of all their weights in float64 is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def filter_rows(module: nn.Module, columns: Tensor | None = None) -> Tensor:
    """The filters of a layer.

    Parameters
    ----------
    module : nn.Conv2d, nn.ConvTranspose2d or nn.Linear
        The bias is no part of a filter.
    columns : torch.BoolTensor, optional
        Which input channels count; all if None. Of a grouped convolution all count.

    Returns
    -------
    torch.Tensor, shape (output channels, weights of each)
        On the CPU, in the weight's own type.
    """
    assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    weight = module.weight.detach().cpu()
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    if isinstance(module, nn.ConvTranspose2d):
        # (c, n / groups, kh, kw): the input channels of a group lie behind each other.
        parts = weight.unflatten(0, (groups, -1)).transpose(1, 2)
        weight = parts.flatten(0, 1)
    if columns is not None and groups == 1:
        weight = weight[:, columns]
    return weight.flatten(1)


def l1(rows: Tensor) -> Tensor:
    """Sum of absolute weights (Li et al., Pruning Filters for Efficient ConvNets, 2017)."""
    return _by_parts(rows, lambda part: part.abs().sum(dim=1))


def l2(rows: Tensor) -> Tensor:
    """Square root of the sum of squared weights."""
    return _by_parts(rows, lambda part: part.square().sum(dim=1).sqrt())


def largest(rows: Tensor) -> Tensor:
    """The negative of :func:`l1`: the largest filters go first, for comparison, as in Li et al. 2017."""
    return -l1(rows)


def filter_overlap(weight: Tensor) -> Tensor:
    """How much each filter of a layer overlaps with the others (Prakash et al., RePr, 2019, equations 1 and 2).

    Rows are divided by their norms; P = |rows·rowsᵀ| without its diagonal; the overlap of a filter is the sum of its
    row of P over the number n of filters.

    Parameters
    ----------
    weight : torch.Tensor, shape (n, …)
        Flattened to rows; the first axis has the output channels.

    Returns
    -------
    torch.Tensor of float64, shape (n,)
        In 0..(n − 1)/n; a high value says that the filter adds little. A filter of zeros has no direction and gets 1,
        more than any other filter can have.
    """
    rows = weight.detach().to(torch.float64).flatten(1)
    norms = rows.norm(dim=1, keepdim=True)
    dead = norms[:, 0] == 0
    rows = rows / norms.masked_fill(norms == 0, 1.0)
    products = (rows @ rows.T).abs().fill_diagonal_(0.0)
    return (products.sum(dim=1) / len(rows)).masked_fill(dead, 1.0)


def overlap(rows: Tensor) -> Tensor:
    """The negative of :func:`filter_overlap`: the filters that overlap most go first."""
    return -filter_overlap(rows)


def fpgm(rows: Tensor) -> Tensor:
    """Sum of a filter's distances to all filters of the layer (He et al., FPGM, 2019).

    The filter with the lowest sum is the one nearest to the geometric median, which the others can replace best.
    """
    whole = rows.to(torch.float64)
    # Products of matrices are faster for large layers; differences keep the distance of equal filters exactly zero.
    large = len(rows) * rows.numel() > _LARGE
    mode = "use_mm_for_euclid_dist" if large else "donot_use_mm_for_euclid_dist"
    return torch.cdist(whole, whole, compute_mode=mode).fill_diagonal_(0.0).sum(dim=1)


def _by_parts(rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of each row, in float64, on some rows at a time."""
    size = max(1, _PART // max(1, rows.shape[1]))
    return torch.cat([function(part.to(torch.float64)) for part in rows.split(size)])


_PART = 1 << 22  # weights at a time
_LARGE = 1 << 30  # differences between weights of pairs of filters


#: By the names in :data:`decomp.criteria.names.FILTER_CRITERIA`.
FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "largest": largest,
    "overlap": overlap,
    "fpgm": fpgm,
}
