"""Refit of a depthwise convolution: a least-squares problem of kh·kw weights and a bias for each channel."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor

from decomp.problem.channel_moments import ChannelMoments
from decomp.problem.factors import FactoredConv, Geometry, LayerSolution
from decomp.problem.layer_problem import require_finite
from decomp.solvers.linalg import EVIDENCE, Ridge, least_squares


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
    fits = [least_squares(moments.of(i), ridge=ridge, prior=priors[i]) for i in range(len(moments))]
    fitted = torch.stack([fit.weight for fit in fits]).mT.reshape(weight.shape).to(weight).contiguous()
    ridges = [float(fit.report["ridge"]) for fit in fits]
    return fitted, None if bias is None else torch.cat([fit.bias for fit in fits]).to(bias), ridges


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
