"""Solver of one layer: selection, least squares, spatial split, channel decomposition and refinement in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from decomp.errors import check_choice
from decomp.problem.factors import FactoredConv, LayerSolution, Selection
from decomp.problem.layer_problem import LayerProblem, columns_of, weight_to_matrix
from decomp.problem.moments import Moments
from decomp.solvers import channel, refine, selection, spatial
from decomp.solvers.linalg import least_squares
from decomp.solvers.selectors import SELECTORS
from decomp.time_spent import part

# The selectors that 'best' tries, the first of equals wins.
TRIED = ("backward", "lasso")


class LayerSizes(Protocol):
    """Planned sizes of a layer, as `decomp.allocation.plan.LayerPlan` has them; None leaves a step out."""

    @property
    def keep(self) -> int | None:
        """Number of input channels kept."""

    @property
    def spatial_rank(self) -> int | None:
        """Rank of the spatial split."""

    @property
    def channel_rank(self) -> int | None:
        """Rank of the channel decomposition."""


@dataclass(frozen=True, eq=False)
class FitSettings:
    """Choices in the fit of a layer, beside its sizes.

    Attributes
    ----------
    selector : str
        See `choose`; with ``scores`` their name.
    activation_aware : bool
        Fit the channel decomposition and the refinement after the activation, where it is a known one.
    refined : bool
        Refine the chain of factors jointly; a layer that is only narrowed is fitted again, after its activation.
    seed : int
        For the random selector.
    scores : Tensor of shape (c,), optional
        Numbers of the input channels, in place of a selector: the channels with the highest stay.
    """

    selector: str = "best"
    activation_aware: bool = True
    refined: bool = True
    seed: int = 0
    scores: Tensor | None = None


DEFAULTS = FitSettings()


def choose(problem: LayerProblem, keep: int, selector: str = "best", seed: int = 0) -> Selection:
    """Choose ``keep`` input channels of a layer.

    Parameters
    ----------
    problem : decomp.problem.layer_problem.LayerProblem
    keep : int
    selector : str
        Of `selection.select`, or 'best': the better of backward elimination and the lasso, by the error after
        least squares on the same rows.
    seed : int
        For the random selector.

    Returns
    -------
    decomp.problem.factors.Selection

    Raises
    ------
    UsageError
        Unknown selector.
    DecompError
        Count out of range.
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    check_choice("selector", selector, SELECTORS)
    return _chosen_and_fitted(problem, keep, selector, seed)[0]


def _chosen_and_fitted(
    problem: LayerProblem, keep: int, selector: str, seed: int
) -> tuple[Selection, selection.Reconstruction | None]:
    """The channels that `choose` gives, and the least-squares fit on them where the choice needed it."""
    if selector != "best":
        return selection.select(problem, keep, selector=selector, seed=seed), None
    select = partial(selection.select, problem, keep)
    candidates = problem.holders.each([partial(select, selector=name) for name in TRIED])
    fits = [selection.reconstruct(problem, candidates[0])]
    for before, candidate in zip(candidates, candidates[1:]):
        same = torch.equal(before.channels, candidate.channels)
        fits.append(fits[-1] if same else selection.reconstruct(problem, candidate))
    errors = [fit.report["error"] for fit in fits]
    best = errors.index(min(errors))
    report = {f"error_{name}": error for name, error in zip(TRIED, errors)} | candidates[best].report
    return replace(candidates[best], report={**report, "selector": TRIED[best]}), fits[best]


def solve_layer(
    problem: LayerProblem,
    sizes: LayerSizes,
    settings: FitSettings = DEFAULTS,
    *,
    held_out: Moments | None = None,
    halves: tuple[Moments, Moments] | None = None,
) -> tuple[LayerSolution, dict[str, Any]]:
    """Apply the planned steps to one layer: prune the input, split, decompose, refine, all on the same rows.

    The input channels are selected first, and the weights on them fitted to the rows; the spatial split then factors
    the fitted weights, and the channel decomposition the responses. At the end all factors are refined together.
    A layer without any step is fitted too: least squares corrects for the errors of the layers before it. With an
    output metric in the problem, every step weighs errors by their effect on the network's output.

    Parameters
    ----------
    problem : decomp.problem.layer_problem.LayerProblem
        On all input channels, X from the network as compressed so far.
    sizes : LayerSizes
    settings : FitSettings
    held_out : decomp.problem.moments.Moments, optional
        Rows that are not fitted, for the report.
    halves : pair of decomp.problem.moments.Moments, optional
        The problem's rows in two halves by their images, for the report.

    Returns
    -------
    solution : decomp.problem.factors.LayerSolution
    report : dict
        JSON. ``errors``: relative squared error of the responses after each step, on the ``fitted`` and on the
        ``held_out`` rows, and on the fitted ones in the output metric (``output_error``).

    Raises
    ------
    UsageError
        Unknown selector.
    DecompError
        A size out of range.
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    if settings.scores is None:
        check_choice("selector", settings.selector, SELECTORS)
    errors: dict[str, dict[str, float]] = {"before": _errors(problem.weight, problem, held_out)}
    report: dict[str, Any] = {"layer": problem.name, "activation": problem.activation, "rows": problem.moments.n_rows}
    report["errors"] = errors
    pruned = sizes.keep is not None
    chosen, fitted = Selection(torch.arange(problem.n_channels), problem.n_channels), None
    if sizes.keep is not None:
        with part("choice of channels"):
            if settings.scores is not None:
                chosen = selection.select_by(problem, sizes.keep, settings.scores, settings.selector)
            else:
                chosen, fitted = _chosen_and_fitted(problem, sizes.keep, settings.selector, settings.seed)
        # The rows of all holders are narrowed by it.
        own, chosen = chosen, replace(chosen, channels=problem.holders.agreed(chosen.channels)[0])
        fitted = fitted if torch.equal(own.channels, chosen.channels) else None
        report["selection"] = chosen.report
    if fitted is None:
        with part("least squares"):
            fitted = selection.reconstruct(problem, chosen)
    report["least_squares"] = fitted.report
    problem = problem.narrowed(chosen)
    prior = problem.matrix()
    problem = replace(problem, weight=fitted.weight, bias=fitted.bias)
    if held_out is not None:
        held_out = held_out.take_inputs(columns_of(chosen.channels, problem.kernel))
    if halves is not None:
        columns = columns_of(chosen.channels, problem.kernel)
        report["halves"] = half_errors(prior, halves, columns, fitted.report["ridge"])
    errors["prune" if pruned else "refit"] = _errors(problem.weight, problem, held_out)
    factored = FactoredConv.dense(problem.weight, problem.bias, problem.geometry)
    if sizes.spatial_rank is not None:
        with part("spatial split"):
            factored = spatial.split(problem, sizes.spatial_rank)
        report["spatial"] = factored.report
        errors["spatial"] = _errors(factored.compose()[0], problem, held_out)
    if sizes.channel_rank is not None:
        base = factored if sizes.spatial_rank is not None else None
        with part("channel decomposition"):
            factored = channel.decompose(
                problem, sizes.channel_rank, base=base, activation_aware=settings.activation_aware
            )
        report["channel"] = factored.report
        errors["channel"] = _errors(factored.compose()[0], problem, held_out)
    if settings.refined and (len(factored.factors) > 1 or pruned):
        with part("refinement"):
            factored = _refined(problem, factored, settings.activation_aware)
        report["refine"] = {key: value for key, value in factored.report.items() if key.startswith("refine")}
        errors["refine"] = _errors(factored.compose()[0], problem, held_out)
    return LayerSolution(problem.name, chosen if pruned else None, factored), report


def half_errors(prior: Tensor, halves: tuple[Moments, Moments], columns: Tensor, ridge: float) -> dict[str, float]:
    """Relative errors of least squares on one half of the rows: on that half, ``fitted``, and on the other, ``other``.

    Parameters
    ----------
    prior : Tensor of shape (q, n)
        See `decomp.solvers.linalg.least_squares`.
    halves : pair of decomp.problem.moments.Moments
        Each is fitted once; the errors are means.
    columns : Tensor of int64, shape (q,)
        Inputs of the fit.
    ridge : float
        Of the fit of all rows, relative to the mean diagonal of their K. The ratio of noise to weights that it stands
        for does not depend on the number of rows, so a half gets twice as much of its own mean diagonal.
    """
    one, other = (half.take_inputs(columns) for half in halves)
    fits = [least_squares(half, ridge=2 * ridge, prior=prior).weight for half in (one, other)]
    return {
        "fitted": (one.error(fits[0]) + other.error(fits[1])) / 2,
        "other": (other.error(fits[0]) + one.error(fits[1])) / 2,
    }


def _refined(problem: LayerProblem, factored: FactoredConv, activation_aware: bool) -> FactoredConv:
    if activation_aware and problem.rows is not None and problem.activation in ("relu", "relu6"):
        return refine.refine_responses(problem, factored)
    return refine.refine(problem, factored)


def _errors(weight: Tensor, problem: LayerProblem, held_out: Moments | None) -> dict[str, float]:
    """Relative errors of the responses; with an output metric, also the error in that metric."""
    matrix = weight_to_matrix(weight).to(problem.moments.C.device)
    product = problem.moments.times(matrix)
    errors = {"fitted": problem.moments.error(matrix, product=product)}
    if held_out is not None and held_out.n_rows:
        errors["held_out"] = held_out.error(matrix)
    if problem.metric is not None:
        errors["output_error"] = problem.moments.error(matrix, problem.metric, product)
    return errors
