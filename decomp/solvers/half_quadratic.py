r"""Half-quadratic splitting: linear targets for responses that pass through an activation (1505.06798, section 3).

The error after an activation r, Σ‖r(y) − r(z)‖² over maps z of low rank, is not quadratic in z. With an auxiliary
u for every response it becomes Σ(r(u) − r(y))² + penalty·(u − z)², which is minimised in turns: over u element by
element (`nearest_responses`), over z by reduced-rank regression (`HalfQuadratic`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.exact_sum import ExactSum
from decomp.problem.factors import FactoredConv
from decomp.problem.layer_problem import LayerProblem, weight_to_matrix
from decomp.problem.moments import MANY_INPUTS, Moments
from decomp.solvers.linalg import METRIC_FLOOR, RIDGE, LeastSquares, column_signs, symmetric_eigen
from decomp.solvers.reduced_rank import MANY_RESPONSES, response_basis

# Half-quadratic penalties, weak first, and the most iterations for each (1505.06798, section 3.2).
PENALTIES = (0.01, 1.0)
ITERATIONS = 25
# The iterations of a penalty end when one lowers the best objective by less than this share.
PATIENCE = 3e-4
# Energies below this share of the largest are rounding.
EMPTY = 1e-14
# Responses in memory and worked on at once.
TILE_ROWS = 4096

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda y: y,
    "relu": lambda y: y.clamp_min(0),
    "relu6": lambda y: y.clamp(0, 6),
}


def nearest_responses(fitted: Tensor, wanted: Tensor, penalty: float, activation: str) -> Tensor:
    r"""Element-wise argmin over u of ``(r(u) − wanted)² + penalty·(u − fitted)²`` (1505.06798, eq. 9 and 10).

    On each piece of r the function is a parabola. Where r rises its minimum is
    m = (penalty·fitted + wanted)/(1 + penalty), at the cost penalty/(1 + penalty)·(fitted − wanted)²; where r is
    flat it is u = fitted, if that lies there. With κ = √(1 + 1/penalty) − 1 the comparison of the two comes to:

    * relu: m where fitted + κ·wanted > 0, else fitted (wanted ≥ 0, so fitted ≤ 0 then)
    * relu6: the same at 0, and its mirror image at 6: m also needs (6 − fitted) + κ·(6 − wanted) > 0

    and m lies on the rising piece wherever it is chosen, as penalty·κ < 1/2.

    Parameters
    ----------
    fitted : Tensor
        Responses of the map before the activation.
    wanted : Tensor
        r(y), same shape.
    penalty : float
        Above 0.
    activation : {'identity', 'relu', 'relu6'}
    """
    middle = torch.lerp(wanted, fitted, penalty / (1 + penalty))
    if activation == "identity":
        return middle
    kappa = math.sqrt(1 + 1 / penalty) - 1
    bound = fitted.add(wanted, alpha=kappa)
    rises = bound > 0
    if activation == "relu6":
        rises &= bound < 6 * (1 + kappa)
    return torch.where(rises, middle, fitted)


def why_linear(problem: LayerProblem) -> str | None:
    """Reason why this problem has no activation-aware form; None if it has one."""
    if problem.activation not in ACTIVATIONS:
        return f"activation {problem.activation!r} has no activation-aware form: fitted linearly"
    if problem.activation != "identity" and problem.rows is None:
        return "the activation-aware form needs the rows, and none were given: fitted linearly"
    return None


def response_weights(problem: LayerProblem) -> Tensor:
    """Weight of each activated response, (n,) float64: the diagonal of the output metric, or ones."""
    metric = problem.float64_metric()
    if metric is None:
        return torch.ones(problem.n_filters, dtype=torch.float64, device=problem.moments.C.device)
    diagonal = metric.diagonal()
    return diagonal.clamp_min(METRIC_FLOOR * float(diagonal.mean()))


def activation_targets(problem: LayerProblem, factored: FactoredConv, penalty: float = 1.0) -> tuple[float, Moments]:
    """Linear targets that stand for the activated responses near a given chain, from one pass over the rows.

    Parameters
    ----------
    problem : LayerProblem
        With ``rows``, those of its moments.
    factored : FactoredConv
    penalty : float

    Returns
    -------
    response_error : float
        Relative error of the chain after the activation, responses weighted by `response_weights`.
    moments : Moments
        Of X and the u of `nearest_responses`, in the place of Y.

    Raises
    ------
    DecompError
        No rows, or others than those of the moments.
    """
    moments, activation = problem.moments, ACTIVATIONS[problem.activation]
    weight, bias = factored.compose()
    B = weight_to_matrix(weight).to(moments.C.device)
    bias = moments.y_mean * 0 if bias is None else bias.to(moments.C)
    # About the means of X and Y, so that nothing large cancels.
    B, offset = problem.holders.agreed(B, bias + moments.x_mean @ B)
    device, n = moments.C.device, problem.n_filters
    C, S, counted = (ExactSum(shape, device) for shape in (moments.C.shape, moments.S.shape, ()))
    sums, squares, first, second = (ExactSum((n,), device) for _ in range(4))
    center = activation(moments.y_mean)
    for inputs, responses in problem.row_batches():
        inputs, responses = (rows.detach().to(moments.C.device).flatten(1) for rows in (inputs, responses))
        for X, Y in zip(inputs.split(TILE_ROWS), responses.split(TILE_ROWS)):
            X = X - moments.x_mean.to(X.dtype)
            z = torch.addmm(offset.to(X.dtype), X, B.to(X.dtype))
            wanted = activation(Y.to(X.dtype))
            squares.add(_squares(wanted - activation(z)))
            distance = wanted - center.to(X.dtype)
            first.add(distance.sum(dim=0, dtype=torch.float64))
            second.add(_squares(distance))
            u = nearest_responses(z, wanted, penalty, problem.activation) - moments.y_mean.to(X.dtype)
            C.add(X.T @ u)
            S.add(u.T @ u)
            sums.add(u.sum(dim=0))
            counted.add(weight.new_tensor(float(len(X))))
    found = problem.holders.summed(C, S, sums, squares, first, second, counted)
    n_rows = round(float(found[-1]))
    _require_all_rows(problem, n_rows)
    return _error_and_moments(problem, n_rows, *found[:-1])


def _error_and_moments(
    problem: LayerProblem, n_rows: int, C: Tensor, S: Tensor, sums: Tensor, squares: Tensor, first: Tensor,
    second: Tensor,
) -> tuple[float, Moments]:  # fmt: skip
    """Result of `activation_targets` from its sums over all rows."""
    weights, moments = response_weights(problem), problem.moments
    total = float(weights @ (second - first.square() / n_rows))
    error = float(weights @ squares) / total if total > 0 else 0.0
    S = (S + S.T) / 2 - torch.outer(sums, sums) / n_rows
    return error, moments.with_responses(C, S, moments.y_mean + sums / n_rows)


def _require_all_rows(problem: LayerProblem, n_rows: int) -> None:
    if n_rows != problem.moments.n_rows:
        raise DecompError(problem.name, f"the rows must be the {problem.moments.n_rows} of the moments", got=n_rows)


class ResponseRows:
    """Least-squares responses ŷ (centred) and activated original responses r(y) of all rows, or of a holder's share.

    Parameters
    ----------
    problem : LayerProblem
    coefficients : Tensor of shape (c·kh·kw, n) or (c·kh·kw, q)
        Of ŷ, or of its coordinates in q directions.
    center : Tensor of shape (n,) or (q,)
        Mean of ``X @ coefficients``.

    Attributes
    ----------
    n_rows : int
        Of all holders.
    """

    def __init__(self, problem: LayerProblem, coefficients: Tensor, center: Tensor) -> None:
        self.activation = ACTIVATIONS[problem.activation]
        self.holders = problem.holders
        device, n = problem.moments.C.device, problem.n_filters
        fitted, wanted = [torch.zeros(0, len(center), device=device)], [torch.zeros(0, n, device=device)]
        coefficients, center = self.holders.agreed(coefficients, center)
        for inputs, responses in problem.row_batches():
            inputs, responses = inputs.detach().to(device).flatten(1), responses.detach().to(device)
            product = inputs @ coefficients.to(inputs.dtype)
            fitted.append(product - center.to(product.dtype))
            wanted.append(self.activation(responses).to(product.dtype))
        self.fitted, self.wanted = (torch.cat(parts[1:] or parts) for parts in (fitted, wanted))
        counted = ExactSum((), device)
        counted.add(center.new_tensor(float(len(self.fitted))))
        self.n_rows = round(float(self.holders.summed(counted)[0]))
        _require_all_rows(problem, self.n_rows)

    def tiles(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.fitted.split(TILE_ROWS), self.wanted.split(TILE_ROWS))

    def variation(self, weights: Tensor) -> float:
        """Σ weighted squared distance of r(y) from its mean."""
        sums, varied = ExactSum(self.wanted.shape[1:], weights.device), ExactSum((), weights.device)
        for _, wanted in self.tiles():
            sums.add(wanted.sum(dim=0, dtype=torch.float64))
        mean = (self.holders.summed(sums)[0] / self.n_rows).to(self.wanted.dtype)
        for _, wanted in self.tiles():
            varied.add((weights * _squares(wanted - mean)).sum())
        return float(self.holders.summed(varied)[0])


def _leading_rows(matrix: Tensor, rank: int) -> Tensor:
    """The leading ``rank`` right singular vectors (n, rank) of a matrix (p, n), by the smaller of its Gram matrices."""
    p, n = matrix.shape
    if p >= n:
        return symmetric_eigen(matrix.T @ matrix)[0][:, :rank]
    left, values = symmetric_eigen(matrix @ matrix.T)
    vectors = matrix.T @ left
    if rank > p:
        vectors = torch.cat([vectors, vectors.new_zeros(n, rank - p)], dim=1)
        values = torch.cat([values, values.new_zeros(rank - p)])
    vectors, values = vectors[:, :rank], values[:rank]
    # Directions without energy come out as zeros: their length is rounding.
    present = values > EMPTY * float(values[:1].sum())
    lengths = torch.where(present, vectors.norm(dim=0), 1.0)
    vectors = torch.where(present, vectors / lengths, 0.0)
    return vectors * column_signs(vectors)


def _squares(values: Tensor) -> Tensor:
    """Column sums of squares: over a tile in its own type, between tiles in float64."""
    return values.square().sum(dim=0).to(torch.float64)


@dataclass(frozen=True, eq=False)
class LowRankMap:
    """Map of low rank on centred least-squares responses: z = ŷ_c @ encoder @ decoder + mean.

    Parameters
    ----------
    encoder : Tensor of shape (n, rank)
    decoder : Tensor of shape (rank, n)
    mean : Tensor of shape (n,)
    """

    encoder: Tensor
    decoder: Tensor
    mean: Tensor

    def __call__(self, fitted: Tensor) -> Tensor:
        dtype = fitted.dtype
        return torch.addmm(self.mean.to(dtype), fitted @ self.encoder.to(dtype), self.decoder.to(dtype))


class HalfQuadratic:
    """Half-quadratic splitting for a map of low rank on the least-squares responses (see `channel.decompose`).

    Parameters
    ----------
    problem : LayerProblem
        With ``rows``; two arrays (N, n) of their type are kept in memory.
    full : LeastSquares
        Coefficients B₁ of the least-squares responses, on the features of ``moments``.
    moments : Moments
    coefficients : Tensor of shape (c·kh·kw, n)
        The same coefficients, on the patches.
    """

    def __init__(self, problem: LayerProblem, moments: Moments, full: LeastSquares, coefficients: Tensor) -> None:
        self.problem, self.moments = problem, moments
        self.weights = response_weights(problem)
        # By eigenvectors: responses that do not vary leave nothing but rounding, which has no Cholesky factor.
        vectors, values = response_basis(moments, full.weight)
        floor = RIDGE * (float(values.mean()) or 1.0)
        sizes = (values[: vectors.shape[1]] + floor).sqrt()
        # From p inputs the responses vary in at most p directions; beyond them there is only rounding.
        self.whitening = (vectors / sizes)[:, : moments.p].contiguous()
        center = moments.x_mean @ full.weight
        #: (q, n): ŷ_c from its rows in q whitened directions, where these are far fewer than the responses.
        self.back: Tensor | None = None
        if MANY_RESPONSES * self.whitening.shape[1] <= len(vectors) and len(vectors) >= MANY_INPUTS:
            back = (vectors * sizes).T[: self.whitening.shape[1]].contiguous()
            self.whitening, self.back = problem.holders.agreed(self.whitening, back)
            coefficients, center = coefficients @ self.whitening, center @ self.whitening
        self.rows = ResponseRows(problem, coefficients, center)

    def sweep(self, low_rank: LowRankMap, penalty: float) -> tuple[float, Tensor, Tensor]:
        """Objective of a map; and of the u nearest to it, ŷ_cᵀu (of the rows as they are held) and the mean."""
        n, q = self.problem.n_filters, self.rows.fitted.shape[1]
        sums_of = [ExactSum(shape, self.weights.device) for shape in ((n,), (q, n), (n,))]
        for fitted, wanted in self.rows.tiles():
            z = low_rank(fitted)
            u = nearest_responses(z, wanted, penalty, self.problem.activation) - low_rank.mean.to(z.dtype)
            of_tile = _squares(wanted - self.rows.activation(z)), fitted.T @ u, u.sum(dim=0)
            for total, term in zip(sums_of, of_tile):
                total.add(term)
        errors, cross, sums = self.rows.holders.summed(*sums_of)
        return float(self.weights @ errors), cross, low_rank.mean + sums / self.rows.n_rows

    def regress(self, cross: Tensor, mean: Tensor, rank: int) -> LowRankMap:
        """Reduced-rank regression of u on ŷ, each response weighted."""
        root = self.weights.sqrt()
        half = cross * root if self.back is not None else self.whitening.T @ (cross * root)
        U = _leading_rows(half, rank)
        encoder = half @ U if self.back is not None else self.whitening @ (half @ U)
        return LowRankMap(*self.rows.holders.agreed(encoder, (U / root[:, None]).T, mean))

    def run(self, rank: int, start: LowRankMap, iterations: int = ITERATIONS) -> tuple[LowRankMap, dict[str, Any]]:
        """The map of least objective from ``start`` on, and the report.

        Report: ``form``, ``response_error`` and ``response_error_linear`` (of ``start``), relative, after the
        activation on the fitted rows, and ``iterations`` for each penalty.
        """
        encoder = start.encoder if self.back is None else self.back @ start.encoder
        start = LowRankMap(*self.rows.holders.agreed(encoder, start.decoder, start.mean))
        best, best_error, current, counts = start, float("inf"), start, []
        start_error: float | None = None
        for penalty in PENALTIES:
            count, before = 0, float("inf")
            for count in range(1, iterations + 1):  # noqa: B007
                error, cross, mean = self.sweep(current, penalty)
                start_error = error if start_error is None else start_error
                if error < best_error:
                    best, best_error = current, error
                if not error < before * (1 - PATIENCE):
                    break
                before = error
                current = self.regress(cross, mean, rank)
            counts.append(count)
            current = best
        total = self.rows.variation(self.weights)
        report = {
            "form": "activation-aware",
            "response_error": best_error / total if total > 0 else 0.0,
            "response_error_linear": start_error / total if total > 0 and start_error is not None else 0.0,
            "iterations": counts,
        }
        return best if self.back is None else replace(best, encoder=self.whitening @ best.encoder), report
