"""New filters orthogonal to given ones: random directions of a null space, orthonormal among themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from decomp.criteria.filters import filter_overlap
from decomp.errors import check_choice
from decomp.schemes.repr_settings import METHODS, SCALES


@dataclass(frozen=True)
class NewFilters:
    """Filters for the dropped places of one layer.

    Attributes
    ----------
    rows : torch.Tensor, shape (m, d), float64
    constraints : torch.Tensor, shape (c, d), float64
        The rows that they were made orthogonal to; fewer than all where these leave no room.
    n_default : int
        How many of the rows, at the end, are of the default initialisation: there was no direction left for them.
    """

    rows: torch.Tensor
    constraints: torch.Tensor
    n_default: int


def reinitialise(
    filters: torch.Tensor,
    dropped: Sequence[int],
    generator: torch.Generator,
    *,
    method: str = "orthogonal",
    scale: str = "norm",
) -> NewFilters:
    """Filters for the dropped places of a layer, orthogonal to its others and to those that were there before.

    Parameters
    ----------
    filters : torch.Tensor, shape (J, d)
        Current values of the kept filters; in the dropped places the values before the drop.
    dropped : sequence of int
        m places, ascending.
    generator : torch.Generator
    method : {'orthogonal', 'qr', 'random'}
        'orthogonal': random combinations of the null space of all J rows (Prakash et al. 2019, section 5 and algorithm
        1), orthonormal among themselves. For studies, 'qr': the columns of a thin QR of all filters, as in the
        authors' published program, which are orthogonal neither to later filters nor to their own old values;
        'random': directions without any constraint.
    scale : {'norm', 'clip'}
        'norm': each filter is multiplied by one number, so that its norm is the median of the kept ones'. 'clip', for
        studies: every weight is cut at ±1/√d, as re-implementations do, which destroys the orthogonality.

    Returns
    -------
    NewFilters

    Notes
    -----
    Where the J rows leave fewer than m directions, constraints are given up: the old values of the dropped filters
    stay first, then the kept filters by their overlap, the most overlapping first, as many as leave room. Where d < m,
    even without constraints, the rest is drawn as ``torch.nn.Conv2d`` does, uniform within ±1/√d.
    """
    check_choice("method", method, METHODS)
    check_choice("scale", scale, SCALES)
    rows = filters.detach().to("cpu", torch.float64)
    m, d = len(dropped), rows.shape[1]
    n_directed = min(m, d)
    constraints = rows[:0]
    if method == "orthogonal":
        constraints = _constraints(rows, dropped, n_directed)
        found = random_null_directions(constraints, n_directed, generator)
    elif method == "qr":
        found = _qr_columns(rows, dropped)
    else:
        found = torch.randn(n_directed, d, generator=generator, dtype=torch.float64)
        found = found / found.norm(dim=1, keepdim=True)
    bound = 1 / math.sqrt(d)
    found = found.clamp(-bound, bound) if scale == "clip" else found * _median_norm(rows, dropped)
    default = torch.empty(m - len(found), d, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
    return NewFilters(torch.cat([found, default]), constraints, len(default))


def row_space(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal basis of the span of rows (n, d): torch.Tensor, shape (rank, d), float64.

    The rank counts singular values above max(n, d)·ε times the largest one, after every row was divided by its norm:
    a short row is as good a constraint as a long one.
    """
    rows = rows.double()
    norms = rows.norm(dim=1, keepdim=True)
    rows = (rows / norms.clamp_min(torch.finfo(torch.float64).tiny))[norms[:, 0] > 0]
    if not len(rows):
        return rows
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    tolerance = max(rows.shape) * torch.finfo(torch.float64).eps * values[0]
    return basis[values > tolerance]


def random_null_directions(constraints: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Random orthonormal rows orthogonal to all constraints.

    Parameters
    ----------
    constraints : torch.Tensor, shape (c, d)
        Of rank at most d − count.
    count : int
    generator : torch.Generator

    Returns
    -------
    torch.Tensor, shape (count, d), float64

    Notes
    -----
    A Gaussian vector without its part in the row space is a Gaussian combination of any orthonormal basis of the null
    space, which itself (d × d numbers) is therefore not needed. The part is removed twice, against rounding errors.
    """
    basis = row_space(constraints)
    drawn = torch.randn(count, constraints.shape[1], generator=generator, dtype=torch.float64)
    for _ in range(2):
        drawn = _orthonormal(drawn - (drawn @ basis.T) @ basis)
    return drawn


def largest_cosine(rows: torch.Tensor, others: torch.Tensor) -> float:
    """Largest |cos| between a row of (m, d) and a row of (n, d); 0 where one of them has none but zero rows."""
    norms = [part.double().norm(dim=1, keepdim=True).clamp_min(1e-300) for part in (rows, others)]
    cosines = (rows.double() / norms[0]) @ (others.double() / norms[1]).T
    return float(cosines.abs().max()) if cosines.numel() else 0.0


def _constraints(rows: torch.Tensor, dropped: Sequence[int], m: int) -> torch.Tensor:
    """The rows that new filters must be orthogonal to: as many of the list, from its start, as leave m directions."""
    scores, places = filter_overlap(rows).tolist(), set(dropped)
    order = sorted(range(len(rows)), key=lambda f: (f not in places, -round(scores[f], 12), f))
    rows = rows[order]
    room = rows.shape[1] - m
    if len(rows) <= room:
        return rows
    fits, too_many = 0, len(rows) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if len(row_space(rows[:middle])) <= room else (fits, middle)
    return rows[:fits]


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    """Rows of shape (n, d) made orthonormal one after the other (thin QR); at most d of them.

    Each has a positive product with the row it comes from: without that, the routine decides signs by the first entry.
    """
    q, r = torch.linalg.qr(rows.T)
    return (q * torch.where(r.diagonal() < 0, -1.0, 1.0).double()).T


def _qr_columns(rows: torch.Tensor, dropped: Sequence[int]) -> torch.Tensor:
    """The rows of the orthonormalised filters that stand at the dropped places."""
    orthonormal = _orthonormal(rows)
    return orthonormal[[f for f in dropped if f < len(orthonormal)]]


def _median_norm(rows: torch.Tensor, dropped: Sequence[int]) -> float:
    """Median norm of the kept filters that have one; that of the default initialisation where none has."""
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[list(dropped)] = False
    norms = rows[kept].norm(dim=1)
    norms = norms[norms > 0]
    return float(norms.quantile(0.5)) if len(norms) else math.sqrt(1 / 3)
