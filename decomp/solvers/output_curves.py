r"""Output curves: change of the network's output at every size of a layer.

A relative error of a layer's responses does not determine the change of the network's output: the same 5 % can
vanish in the next pooling or change a prediction. So the error curves of a layer are rescaled by measurement: at a
size of moderate error the layer alone is replaced by its approximation, and the change of the output takes the place
of the layer's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from decomp.problem.factors import Selection
from decomp.problem.layer_problem import LayerProblem, matrix_to_weight
from decomp.solvers import selection, spatial
from decomp.solvers.linalg import EVIDENCE, LeastSquares, Ridge, intercept, least_squares
from decomp.solvers.reduced_rank import ReducedRank, reduced_rank

# Relative errors of the layer's responses at which the change of the output is measured.
LEVELS = (0.08,)
# Smaller ones are rounding.
LEAST_ERROR = 1e-9

# A dense kernel (n, c, kh, kw) and bias (n,), or None, in place of a layer's.
Approximation = tuple[Tensor, Tensor | None]


def output_curve(curve: np.ndarray, changes: Mapping[int, float]) -> np.ndarray:
    """Replace a layer's own relative error by the change of the network's output.

    Parameters
    ----------
    curve : numpy.ndarray
        Relative error of the layer for every size; index 0 unused.
    changes : mapping of int to float
        Mean change of the output with the layer replaced by its approximation, at all or some of the
        :func:`measured_sizes`.

    Returns
    -------
    numpy.ndarray
        Of the same shape, not increasing with size.

    Notes
    -----
    Between the measured sizes the change of the output is interpolated linearly in the layer's error; above the
    largest measured error it is proportional to it.
    """
    points = {0.0: 0.0}
    for size in sorted(changes, reverse=True):
        points[float(curve[size])] = max(float(changes[size]), 0.0)
    errors = np.array(sorted(points))
    levels = np.maximum.accumulate(np.array([points[e] for e in errors]))
    if len(errors) == 1:
        return curve.copy()
    result = np.interp(curve, errors, levels)
    beyond = curve > errors[-1]
    # Never flat: a step whose effect is too small to measure still costs in proportion to the layer's error.
    result[beyond] = levels[-1] * curve[beyond] / errors[-1]
    return result + 1e-9 * curve


def in_proportion(curve: np.ndarray, measured: np.ndarray, changes: Mapping[int, float]) -> dict[int, float]:
    """Changes of the output by a step that was not measured: as those by another step at the same error of the layer.

    Parameters
    ----------
    curve, measured : numpy.ndarray
        Relative error of the layer for every size of the step, and of the one that was measured.
    changes : mapping of int to float
        By that one.

    Returns
    -------
    dict of int to float
        At the size of `curve` nearest to the error of each, in proportion to its own error.
    """
    found: dict[int, float] = {}
    for size in sorted(changes):
        own = _size_at(curve, float(measured[size]))
        if curve[own] > LEAST_ERROR:
            found[own] = changes[size] * float(curve[own] / measured[size])
    return found


def measured_sizes(curve: np.ndarray, levels: Sequence[float] = LEVELS) -> list[int]:
    """The sizes at which the change of the output is measured, those near the levels; descending."""
    sizes = sorted({_size_at(curve, level) for level in levels}, reverse=True)
    return [size for size in sizes if curve[size] > LEAST_ERROR]


def _size_at(curve: np.ndarray, level: float) -> int:
    """The smallest size whose error is at most ``level``; the full size if there is none."""
    return int(np.argmax(curve[1:] <= level)) + 1 if curve[-1] <= level else len(curve) - 1


def approximations(
    problem: LayerProblem,
    order: Sequence[int] | None = None,
    *,
    factors: tuple[Tensor, Tensor] | None = None,
    solution: LeastSquares | None = None,
    ridge: Ridge = EVIDENCE,
) -> dict[str, Callable[[int], Approximation]]:
    """For each step, the function that gives the layer's dense kernel at a size.

    Parameters
    ----------
    problem : decomp.problem.layer_problem.LayerProblem
    order : sequence of int, optional
        The input channels, the one to keep longest first; without it there is no step ``prune``.
    factors : tuple of Tensor, optional
        V and H of `spatial.closed_form` at full rank, if they are known already.
    solution : decomp.solvers.linalg.LeastSquares, optional
        The fit with the layer's weights as the prior, if it is known already.
    ridge : float or 'evidence'
        Of the fits of ``prune`` and ``spatial``, see `linalg.least_squares`; that of their curves is good enough, and
        the evidence takes several factorisations for each size.

    Returns
    -------
    dict of str to callable
        ``size -> (weight, bias)``.
    """

    def split(size: int) -> Approximation:
        return spatial.split(problem, size, factors=factors, ridge=ridge).compose()

    known: list[ReducedRank] = []

    @cache
    def fit() -> LeastSquares:
        return solution or least_squares(problem.moments, ridge=EVIDENCE, prior=problem.matrix())

    def up_to(rank: int) -> ReducedRank:
        if not known or known[-1].encoder.shape[1] < rank:
            known[:] = [reduced_rank(problem.moments, rank, metric=problem.metric, solution=fit())]
        return known[-1]

    def decompose(size: int) -> Approximation:
        # The maps of all ranks are nested: each takes the leading columns of a larger one, such as the first asked for.
        B = up_to(size).encoder[:, :size] @ up_to(size).decoder[:size]
        weight = matrix_to_weight(B, problem.weight, problem.kernel)
        return weight, intercept(problem.moments, B).to(weight)

    steps: dict[str, Callable[[int], Approximation]] = {"spatial": split, "channel": decompose}
    if order is None:
        return steps

    def prune(size: int) -> Approximation:
        channels = torch.tensor(sorted(order[:size]))
        weight, bias = selection.reconstruct(problem, Selection(channels, problem.n_channels), ridge=ridge)
        full = torch.zeros_like(problem.weight)
        full[:, channels.to(full.device)] = weight
        return full, bias

    return {**steps, "prune": prune}
