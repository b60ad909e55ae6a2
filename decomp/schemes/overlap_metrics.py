"""Overlap of the filters of a layer as RePr ranks them, and as its authors' program does."""

from __future__ import annotations

import torch

from decomp.criteria.filters import filter_overlap
from decomp.errors import check_choice

METRICS = ("absolute", "signed")


def overlaps(filters: torch.Tensor, metric: str = "absolute") -> torch.Tensor:
    """Overlap of each filter with the others of its layer; a high score means that the others point alike.

    Parameters
    ----------
    filters : torch.Tensor, shape (J, ...)
    metric : {'absolute', 'signed'}
        'absolute': :func:`decomp.criteria.filters.filter_overlap`. 'signed', for studies: all filters are divided by
        the norm of the whole tensor instead of each by its own, and O_f = |Σ_{g≠f} ⟨f, g⟩| / J, as in the authors'
        published program; opposite signs cancel and large filters dominate.

    Returns
    -------
    torch.Tensor, shape (J,), float64

    Raises
    ------
    UsageError
        The metric is not known.
    """
    if check_choice("metric", metric, METRICS) == "absolute":
        return filter_overlap(filters)
    rows = filters.detach().flatten(1).double()
    products = rows @ rows.T / rows.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return products.fill_diagonal_(0.0).sum(1).abs() / len(rows)


def live_overlaps(filters: torch.Tensor, metric: str = "absolute") -> torch.Tensor:
    """The overlaps of the filters that have any weight, of which alone a mean says something."""
    return overlaps(filters, metric)[~dead_filters(filters)]


def dead_filters(filters: torch.Tensor) -> torch.Tensor:
    """Whether each filter of shape (J, ...) has no weight but zeros: torch.Tensor of bool, shape (J,)."""
    return (filters.detach().flatten(1) == 0).all(1)
