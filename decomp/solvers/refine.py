"""Joint refinement of all factors of a convolution by L-BFGS, on the moments."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.factors import ConvFactor, FactoredConv, compose
from decomp.problem.layer_problem import LayerProblem, matrix_to_weight, weight_to_matrix
from decomp.problem.moments import MANY_INPUTS, Moments
from decomp.solvers.half_quadratic import activation_targets, why_linear
from decomp.solvers.linalg import EVIDENCE, Ridge, choose_ridge, factorise, intercept, least_squares, metric_roots
from decomp.solvers.spatial import column_covariance

# The search ends when an iteration lowers the error by less than this share of the error at the start.
TOLERANCE = 1e-5
# Where the relative error of a chain is larger, and it has MANY_INPUTS or more, its changes are multiplied in float32.
SHARP = 1e-4
# The rounds of `refine_responses` end when one lowers the error by less than this share; from the second one on each
# begins ahead of what the last one found, by this share of the way from the one before.
PATIENCE, MOMENTUM = 5e-3, 0.7
# Least ridge for as many rows as inputs, falling with their number: even responses without noise leave the
# covariance of the inputs uncertain.
SHRINKAGE = 1e-2


def refine(
    problem: LayerProblem,
    factored: FactoredConv,
    *,
    metric: Tensor | None = None,
    iterations: int = 60,
    ridge: Ridge = EVIDENCE,
) -> FactoredConv:
    r"""Lower the error of a chain of factors over all of their weights at once, by L-BFGS.

    The chain composes to a dense kernel B of its weights θ, so over all rows, with the best bias, the loss is

    .. math:: \min_\theta \; tr\,F (B(\theta)^T K B(\theta) - 2 B(\theta)^T C + S)
              + \lambda\,tr\,F (B(\theta) - W)^T (B(\theta) - W)

    with a ridge towards the layer's own weights W. That needs K and C but no rows; the gradient in B is
    2 (KB − C + λ(B − W)) F. The search runs in coordinates in which
    the first factor reads uncorrelated inputs, F is the identity and neighbouring factors are of equal size:
    so it reaches the same error in a fraction of the iterations.

    In the plain metric this lowers the reconstruction error, not the error of the network's output; give the
    output metric for that.

    Parameters
    ----------
    problem : LayerProblem
    factored : FactoredConv
        Where to start; its kernel must be the problem's.
    metric : Tensor of shape (n, n), optional
        F. None takes the problem's own, or the identity where it has none.
    iterations : int
        At most so many L-BFGS iterations.
    ridge : float or 'evidence'
        λ relative to the mean diagonal of K, see `linalg.least_squares`. Without it few rows are overfitted: with
        as many rows as inputs the error on other rows rose by a third.

    Returns
    -------
    FactoredConv
        Same names, shapes and geometry, the bias on the last factor; ``factored`` itself where no better chain was
        found. Report: that of the start, and ``refine`` with ``error_before``, ``error``, ``ridge``, ``evaluations``.

    Raises
    ------
    DecompError
        A chain that is not of this layer's shape.
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    problem.checked()
    kernel, _ = factored.compose()
    if kernel.shape != problem.weight.shape:
        raise DecompError(
            problem.name, f"factors must compose to {tuple(problem.weight.shape)}", got=tuple(kernel.shape)
        )
    metric = problem.metric if metric is None else metric
    metric = None if metric is None else metric.to(problem.moments.C)
    start = _start_of(problem.moments, kernel, metric)
    # Weighs the rows against the start; W may have been fitted to them already.
    ridge = _evidence_ridge(problem, kernel) if isinstance(ridge, str) else ridge
    if len(factored.factors) == 1:
        fit = least_squares(problem.moments, ridge=ridge, prior=problem.matrix())
        weights, evaluations = [matrix_to_weight(fit.weight, fit.weight, problem.kernel)], 1
    else:
        weights, evaluations = _Search(problem, factored, metric, ridge, start).run(iterations)
    result = _with_weights(problem, factored, weights)
    after = problem.moments.error(weight_to_matrix(result.compose()[0]), metric=metric)
    if not after < start.error:
        result, after = factored, start.error
    report = {"error_before": start.error, "error": after, "ridge": ridge, "evaluations": evaluations}
    return FactoredConv(result.factors, result.names, {**factored.report, "refine": report})


def refine_responses(
    problem: LayerProblem,
    factored: FactoredConv,
    *,
    metric: Tensor | None = None,
    rounds: int = 4,
    penalty: float = 0.02,
    iterations: int = 10,
    ridge: Ridge = EVIDENCE,
) -> FactoredConv:
    r"""Refine all factors of a chain for the error after the activation, as `channel.decompose` does for two.

    Half-quadratic splitting again: each round computes the targets u nearest to the present outputs of the chain
    (`half_quadratic.nearest_responses`), in one pass over the rows, and refines the chain onto their moments. From the
    second round on it begins ahead of the chain found last, on the line from the one before (`MOMENTUM`; the step of
    Nesterov 1983): four rounds then reach the error of six without. Where that went too far, the next pass starts from
    the chain found last itself. The chain of least response error is returned, so it is never worse there than
    ``factored``.

    Parameters
    ----------
    problem : LayerProblem
        With ``rows``, those of its moments, and an activation of `half_quadratic.ACTIVATIONS`.
    factored : FactoredConv
    metric : Tensor of shape (n, n), optional
        F for the refinement (None: the problem's own); the response error takes its diagonal as weights.
    rounds : int
        At most; they end earlier where one gains less than `PATIENCE`.
    penalty : float
        Keeps u near the outputs of the chain; weak penalties change more in a round.
    iterations : int
        At most so many L-BFGS iterations in each round.
    ridge : float or 'evidence'
        As in `refine`; chosen in the first round.

    Returns
    -------
    FactoredConv
        Report: that of the start, and ``refine_responses`` with ``response_error_before``, ``response_error``
        (relative, after the activation, on the rows) and ``rounds``.

    Raises
    ------
    DecompError
        An activation without an activation-aware form, or no rows.
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    problem.checked()
    why_not = why_linear(problem)
    if why_not:
        raise DecompError(problem.name, "refining responses needs rows and a known activation", got=why_not)
    metric = problem.metric if metric is None else metric
    problem = replace(problem, metric=metric)
    best, current, least, count = factored, factored, float("inf"), 0
    before: float | None = None
    refined: FactoredConv | None = None
    for count in range(rounds + 1):  # noqa: B007
        error, targets = activation_targets(problem, current, penalty)
        before = error if before is None else before
        if not error < least:
            if refined is None or current is refined:
                break
            current = refined  # one step too far: back to what was found without it
            continue
        gain, best, least = least - error, current, error
        if count == rounds or gain < PATIENCE * error:
            break
        onto_targets = replace(problem, moments=targets)
        if isinstance(ridge, str):
            ridge = _evidence_ridge(onto_targets, current.compose()[0])
        earlier, refined = refined, refine(onto_targets, current, iterations=iterations, ridge=ridge)
        current = refined if earlier is None else _ahead(earlier, refined)
    report = {"response_error_before": before, "response_error": least, "rounds": count, "ridge": ridge}
    return FactoredConv(best.factors, best.names, {**factored.report, "refine_responses": report})


def _ahead(earlier: FactoredConv, refined: FactoredConv) -> FactoredConv:
    """The chain that lies beyond ``refined`` on the line from ``earlier``, by `MOMENTUM` of their distance."""

    def beyond(one: Tensor, other: Tensor) -> Tensor:
        return torch.lerp(one, other, 1 + MOMENTUM)

    factors = tuple(
        ConvFactor(
            beyond(a.weight, b.weight), None if a.bias is None or b.bias is None else beyond(a.bias, b.bias), b.geometry
        )
        for a, b in zip(earlier.factors, refined.factors)
    )
    return FactoredConv(factors, refined.names, refined.report)


def _evidence_ridge(problem: LayerProblem, kernel: Tensor) -> float:
    """The ridge of largest evidence with ``kernel`` as the prior, and at least `SHRINKAGE` for few rows."""
    moments = problem.moments
    floor = SHRINKAGE * moments.p / moments.n_rows
    return max(choose_ridge(moments, weight_to_matrix(kernel)), floor)


def _with_weights(problem: LayerProblem, factored: FactoredConv, weights: list[Tensor]) -> FactoredConv:
    """The chain with other weights, and the bias with which it has no mean error."""
    rounded = [weight.to(factor.weight).contiguous() for weight, factor in zip(weights, factored.factors)]
    # The bias is computed for the rounded kernel, so that the mean error stays zero after rounding.
    kernel, _ = compose([weight.to(torch.float64) for weight in rounded], [None] * len(rounded))
    bias = intercept(problem.moments, weight_to_matrix(kernel).to(problem.moments.C.device))
    biases = [None] * (len(rounded) - 1) + [bias.to(rounded[-1])]
    factors = tuple(
        ConvFactor(weight, own, factor.geometry) for weight, own, factor in zip(rounded, biases, factored.factors)
    )
    return FactoredConv(factors, factored.names, factored.report)


class _Start(NamedTuple):
    """Kernel B (p, n) of a chain before a search, K B, and its error."""

    B: Tensor
    product: Tensor
    error: float


def _start_of(moments: Moments, kernel: Tensor, metric: Tensor | None) -> _Start:
    B = weight_to_matrix(kernel).to(moments.C)
    product = moments.times(B)
    return _Start(B, product, moments.error(B, metric, product))


def _matrix_of(weights: list[Tensor]) -> Tensor:
    """Dense kernel of a chain as (p, n)."""
    return compose(weights, [None] * len(weights))[0].flatten(1).T


class _Search:
    """L-BFGS over the factors in well-scaled coordinates."""

    def __init__(
        self, problem: LayerProblem, factored: FactoredConv, metric: Tensor | None, ridge: float, start: _Start
    ) -> None:
        self.moments, self.prior = problem.moments, problem.matrix()
        self.penalty = ridge * self.moments.mean_diagonal()
        self.shapes = [factor.weight.shape for factor in factored.factors]
        self.L = self._whitening(problem, factored.factors[0].kernel)
        self.root: Tensor | None = None
        self.inverse: Tensor | None = None
        if metric is not None:
            self.root, self.inverse = metric_roots(metric)
        weights = [factor.weight.detach().to(self.moments.C) for factor in factored.factors]
        self.parameters = _balanced(self._to_search(weights))
        self.residual = _Residual(self.moments, start)
        self.weighted_prior = self.prior if metric is None else self.prior @ metric
        self.weighted_total = self.moments.S.trace() if metric is None else (self.moments.S * metric).sum()
        self.n_evaluations = 0
        self.scale = 1.0

    @staticmethod
    def _whitening(problem: LayerProblem, kernel: tuple[int, int]) -> Tensor | None:
        """Cholesky factor of the covariance of the first factor's inputs; None where it is of no simple shape."""
        if kernel == problem.kernel:
            covariance = problem.moments.K
        elif kernel == (problem.kernel[0], 1):
            covariance = column_covariance(problem.moments, problem.kernel)
        else:
            return None
        covariance = covariance / (float(covariance.diagonal().mean()) or 1.0)
        return factorise(covariance, name=problem.name)[0]

    def _to_search(self, weights: list[Tensor]) -> list[Tensor]:
        first, last = weights[0], weights[-1]
        if self.L is not None:
            weights = [(first.flatten(1) @ self.L).view(first.shape), *weights[1:]]
        if self.root is not None:
            weights = [*weights[:-1], torch.tensordot(self.root, last, dims=1)]
        return weights

    def _from_search(self, parameters: list[Tensor]) -> list[Tensor]:
        first, last = parameters[0], parameters[-1]
        if self.L is not None:
            solved = torch.linalg.solve_triangular(self.L, first.flatten(1), upper=False, left=False)
            parameters = [solved.view(self.shapes[0]), *parameters[1:]]
        if self.inverse is not None:
            parameters = [*parameters[:-1], torch.tensordot(self.inverse, last, dims=1)]
        return parameters

    def _kernels(self) -> tuple[Tensor, Tensor]:
        """B, and B F with a gradient: of the chain whose last factor is multiplied by F, which is F^½ in the search."""
        weights = self._from_search(self.parameters)
        if self.root is None:
            return (_matrix_of(weights),) * 2
        with torch.no_grad():
            B = _matrix_of(weights)
        return B, _matrix_of([*weights[:-1], torch.tensordot(self.root, self.parameters[-1], dims=1)])

    def _evaluate(self) -> Tensor:
        """The loss relative to its start, leaving the gradients on the parameters."""
        self.n_evaluations += 1
        B, weighted = self._kernels()
        with torch.no_grad():
            # With G = KB − C + λ(B − W) the loss tr F(BᵀKB − 2BᵀC + S) + λ tr F(B − W)ᵀ(B − W) is
            # tr (BF)ᵀ(G − C) − λ tr Wᵀ F(B − W) + tr FS, and its change 2 tr Gᵀ d(BF): no product of p·n² terms with F.
            distance = B - self.prior
            gradient = self.residual(B) + self.penalty * distance
            loss = (weighted * (gradient - self.moments.C)).sum()
            loss += self.weighted_total - self.penalty * (self.weighted_prior * distance).sum()
        for parameter in self.parameters:
            parameter.grad = None
        weighted.backward(gradient * (2 * self.scale))
        return loss * self.scale

    def run(self, iterations: int) -> tuple[list[Tensor], int]:
        """The refined factors, and the number of evaluations of the loss."""
        self.parameters = [p.detach().contiguous().requires_grad_() for p in self.parameters]
        start = float(self._evaluate())
        if start > 0 and math.isfinite(start) and iterations > 0:
            self.scale = 1 / start
            optimizer = torch.optim.LBFGS(
                self.parameters,
                max_iter=iterations,
                max_eval=2 * iterations,
                history_size=10,
                tolerance_grad=0.0,
                tolerance_change=TOLERANCE,
                line_search_fn="strong_wolfe",
            )
            optimizer.step(self._evaluate)
        with torch.no_grad():
            return self._from_search([p.detach() for p in self.parameters]), self.n_evaluations


class _Residual:
    r"""K B − C for kernels B (p, n) near a given one, B₁: K B₁ − C in float64, and the distance from it in float32.

    Of a search with many steps nearly all work is in these products, which take half of the time in float32. What that
    loses is relative to K(B − B₁), not to K B, and so far below the error of the fit; where the error is within
    `SHARP` of the responses' variance, and for few inputs, all is in float64.

    Parameters
    ----------
    moments : decomp.problem.moments.Moments
    start : _Start
        Its kernel is B₁.
    """

    def __init__(self, moments: Moments, start: _Start) -> None:
        self.moments, self.start = moments, start
        self.left = moments.K if moments.root is None else moments.root
        exact = torch.get_float32_matmul_precision() == "highest"
        self.single = exact and moments.p >= MANY_INPUTS and start.error > SHARP
        if self.single:
            self.left, self.at_start = self.left.to(torch.float32), start.product - moments.C

    def __call__(self, B: Tensor) -> Tensor:
        if not self.single:
            return self.moments.times(B) - self.moments.C
        distance = (B - self.start.B).to(torch.float32)
        product = self.left @ distance
        return self.at_start + (product if self.moments.root is None else self.left.T @ product)


def _balanced(weights: list[Tensor]) -> list[Tensor]:
    """The same chain with each inner channel of equal size in the factor that writes it and the one that reads it."""
    weights = list(weights)
    for i in range(len(weights) - 1):
        written = weights[i].flatten(1).norm(dim=1)
        read = weights[i + 1].transpose(0, 1).flatten(1).norm(dim=1)
        both = (written > 0) & (read > 0)
        scale = torch.where(both, (read / torch.where(both, written, 1.0)).sqrt(), 1.0)
        weights[i] = weights[i] * scale[:, None, None, None]
        weights[i + 1] = weights[i + 1] / scale[None, :, None, None]
    return weights
