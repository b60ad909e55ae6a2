"""Refit of a depthwise convolution: a least-squares problem of kh·kw weights and a bias for each channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from decomp.problem.channel_moments import ChannelMoments
from decomp.problem.factors import FactoredConv, Geometry, LayerSolution
from decomp.problem.layer_problem import require_finite
from decomp.solvers.linalg import (
    EVIDENCE,
    EXACT,
    RIDGE,
    RIDGE_BOUND,
    RIDGE_DECADES,
    Ridge,
    least_squares,
    ridge_of_least_cost,
)


def refit_channels(
    moments: ChannelMoments, weight: Tensor, bias: Tensor | None, *, ridge: Ridge = EVIDENCE, name: str = "depthwise"
) -> tuple[Tensor, Tensor | None, list[float]]:
    """Fit the kernel of each channel to the original's responses, pulled towards the kernel that it has.

    Parameters
    ----------
    moments : ChannelMoments
        X of the network as compressed so far, Y of the original.
    weight : Tensor of shape (c·m, 1, kh, kw)
    bias : Tensor of shape (c·m,) or None
        Without a bias the fit has none either.
    ridge : float or 'evidence'
        For each channel by itself, see :func:`decomp.solvers.linalg.least_squares`: a channel whose input has not
        changed or does not vary keeps its kernel.
    name : str
        For messages.

    Returns
    -------
    weight : Tensor of shape (c·m, 1, kh, kw)
    bias : Tensor of shape (c·m,) or None
    ridges : list of float
        The ridge of each channel.

    Raises
    ------
    NumericalError
        NaN or Inf, or no rows.
    """
    moments.check(name)
    require_finite(weight, name, "the weights")
    if bias is None:
        moments = moments.uncentred()
    priors = kernels_by_channel(moments, weight)
    of_channels = channel_ridges(moments, priors) if ridge == EVIDENCE else [ridge] * len(moments)
    fits = [least_squares(moments.of(i), ridge=of_channels[i], prior=priors[i]) for i in range(len(moments))]
    fitted = torch.stack([fit.weight for fit in fits]).mT.reshape(weight.shape).to(weight).contiguous()
    ridges = [float(fit.report["ridge"]) for fit in fits]
    return fitted, None if bias is None else torch.cat([fit.bias for fit in fits]).to(bias), ridges


def channel_ridges(moments: ChannelMoments, priors: Tensor) -> list[float]:
    """The ridge of largest evidence of every channel, see :func:`decomp.solvers.linalg.choose_ridge`.

    The costs of all powers of ten and channels come from one eigen-decomposition of each channel's K.

    Parameters
    ----------
    moments : ChannelMoments
    priors : Tensor of shape (c, p, m)
    """
    K, (p, m), n_rows = moments.K, moments.C.shape[1:], moments.n_rows
    total, scale = moments.S.diagonal(dim1=1, dim2=2).sum(1), K.diagonal(dim1=1, dim2=2).mean(1)
    right = moments.C - K @ priors
    left = total - (priors * (moments.C + right)).sum((1, 2))
    values, vectors = torch.linalg.eigh(K)
    squares = (vectors.mT @ right).square().sum(2)
    decades = range(RIDGE_DECADES[0], RIDGE_DECADES[1] + 1)
    penalties = scale[:, None] * torch.tensor([10.0**d for d in decades], dtype=K.dtype, device=K.device)
    shifted = values[:, :, None] + penalties[:, None]
    # As in `evidence_cost`.
    error = torch.maximum(left[:, None] - (squares[:, :, None] / shifted).sum(1), 1e-2 * EXACT * total[:, None])
    costs = m * (shifted.log().sum(1) - p * penalties.log()) + (n_rows - 1) * m * error.log()
    costs = torch.where((shifted > 0).all(1), costs, torch.inf).cpu()
    ridges = []
    for size, whole, rest, of_decades in zip(scale.tolist(), total.tolist(), left.tolist(), costs.tolist()):
        of_channel = dict(zip(decades, of_decades))
        if not size > 0 or not whole > 0:
            ridges.append(RIDGE)
        elif rest <= EXACT * whole:
            ridges.append(RIDGE_BOUND)
        else:
            ridges.append(ridge_of_least_cost(_looked_up(of_channel), n_rows / p))
    return ridges


def _looked_up(costs: dict[int, float]) -> Callable[[int], float]:
    return lambda decade: costs.get(decade, math.inf)


def kernels_by_channel(moments: ChannelMoments, weight: Tensor) -> Tensor:
    """A depthwise kernel (c·m, 1, kh, kw) as coefficients (c, p, m), float64, on the device of the moments."""
    return weight.detach().reshape(len(moments), -1, weight[0].numel()).mT.to(moments.K)


def solve_depthwise(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    moments: ChannelMoments,
    held_out: ChannelMoments,
) -> tuple[LayerSolution, dict[str, Any]]:
    """Refit a depthwise convolution; with the errors before and after, as `solve_layer` reports them.

    Parameters
    ----------
    name : str
    weight, bias, geometry
        Of the layer.
    moments, held_out : ChannelMoments
        Of fitted and of held-out images.

    Returns
    -------
    solution : LayerSolution
        One factor whose kernel (c·m, 1, kh, kw) is the layer's.
    report : dict
        JSON.
    """
    fitted, fitted_bias, ridges = refit_channels(moments, weight, bias, name=name)
    errors = {
        step: {key: part.error(kernels_by_channel(part, kernel)) for key, part in rows.items() if part.n_rows}
        for rows in ({"fitted": moments, "held_out": held_out},)
        for step, kernel in (("before", weight), ("refit", fitted))
    }
    report = {"layer": name, "rows": moments.n_rows, "errors": errors, "least_squares": {"ridge": median(ridges)}}
    return LayerSolution(name, None, FactoredConv.dense(fitted, fitted_bias, geometry)), report
