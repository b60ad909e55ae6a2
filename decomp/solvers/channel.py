"""Fewer filters and a 1×1 convolution in place of a convolution, aware of the activation that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry
from decomp.problem.layer_problem import LayerProblem, matrix_to_weight, weight_to_matrix
from decomp.problem.moments import Moments
from decomp.solvers.linalg import (
    EVIDENCE,
    METRIC_FLOOR,
    RIDGE,
    LeastSquares,
    least_squares,
    reduced_rank,
    symmetric_eigen,
)
from decomp.solvers.spatial import through_vertical

# Half-quadratic penalties, weak first, and the most iterations for each (1505.06798, section 3.2).
PENALTIES = (0.01, 1.0)
ITERATIONS = 25
# A penalty's iterations end when one lowers the best objective by less than this share.
PATIENCE = 3e-4
# Responses held and worked on at once.
TILE_ROWS = 4096

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda y: y,
    "relu": lambda y: y.clamp_min(0),
    "relu6": lambda y: y.clamp(0, 6),
}


def decompose(
    problem: LayerProblem,
    rank: int,
    *,
    base: FactoredConv | None = None,
    activation_aware: bool = True,
    ridge: float | str = EVIDENCE,
    iterations: int = ITERATIONS,
) -> FactoredConv:
    r"""``rank`` filters of the layer's shape, and a 1×1 convolution that mixes them into its n responses.

    Linear: reduced-rank regression of the original responses y on the inputs x now,

    .. math:: \min_{rank B \le r,\,b} \sum_i \|y_i - B^T x_i - b\|_F^2.

    Activation-aware (1505.06798, eq. 7 to 10), from the linear solution on, with r(·) the activation and
    ŷ = B₁ᵀx the least-squares responses:

    .. math:: \min_{rank M \le r,\,b} \sum_i \|r(y_i) - r(M \hat y_i + b)\|^2

    by half-quadratic splitting: an auxiliary u for each response, `nearest_responses`, then reduced-rank
    regression of u on ŷ, for a weak and then a strong penalty. The best solution met is returned, judged by
    this objective on the fitted rows, so it is never worse there than the linear one. With an output metric F
    the linear form uses F, and the activation-aware form its diagonal (only then does u come apart into single
    responses).

    Parameters
    ----------
    problem : LayerProblem
        ``rows`` are needed for the activation-aware form; it holds two arrays (N, n) of float32.
    rank : int
        In 1..n.
    base : FactoredConv, optional
        ``vertical`` and ``horizontal`` factors of this layer: the horizontal one is decomposed, the vertical one
        stays as it is.
    activation_aware : bool
        Activations other than identity, relu and relu6 are fitted linearly; the report says so.
    ridge : float or 'evidence'
        See `linalg.least_squares`.
    iterations : int
        At most so many for each penalty.

    Returns
    -------
    FactoredConv
        ``filters, pointwise``; or ``vertical, horizontal, pointwise`` with a base. Only the last one has a bias.
        Report: ``error`` (relative, linear, on the moments), ``form``, and for the activation-aware form
        ``response_error`` and ``response_error_linear`` after the activation on the fitted rows,
        ``iterations``.

    Raises
    ------
    DecompError
        Rank out of range, or a base of other factors.
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    problem.checked()
    if not 1 <= rank <= problem.n_filters:
        raise DecompError(problem.name, f"rank must be in 1..{problem.n_filters} (n)", got=rank)
    features = _Features(problem, base)
    full = least_squares(features.moments, ridge=ridge, prior=features.prior)
    linear = reduced_rank(features.moments, rank, metric=problem.metric, solution=full)
    encoder, decoder, bias = linear.encoder, linear.decoder, linear.bias
    report = {"step": "channel", "rank": rank, "form": "linear", **full.report}
    note = why_linear(problem) if activation_aware else "the linear form was asked for"
    if note:
        report["note"] = note
    elif problem.activation != "identity":
        start = _LowRankMap(linear.projection, linear.decoder, features.moments.y_mean)
        solver = _HalfQuadratic(problem, features.moments, full, features.dense(full.weight))
        low_rank, found = solver.run(rank, start, iterations)
        encoder, decoder = full.weight @ low_rank.encoder, low_rank.decoder
        bias = low_rank.mean - features.moments.x_mean @ (encoder @ decoder)
        report |= found
    report["error"] = features.moments.error(encoder @ decoder, metric=problem.metric)
    return features.assemble(encoder, decoder, bias, report)


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


class _Features:
    """What the decomposed convolution reads: the patches, or what the vertical factor makes of them."""

    def __init__(self, problem: LayerProblem, base: FactoredConv | None):
        self.problem, self.base = problem, base
        if base is None:
            self.moments, self.prior = problem.moments, problem.matrix()
            return
        if base.names != ("vertical", "horizontal"):
            raise DecompError(problem.name, "the base must be vertical and horizontal factors", got=base.names)
        if (base.factors[1].weight.shape[0], base.factors[0].weight.shape[1]) != problem.weight.shape[:2]:
            raise DecompError(problem.name, "the base must be factors of this layer", got=base.factors[0].weight.shape)
        vertical, horizontal = (factor.weight.to(problem.moments.K.device) for factor in base.factors)
        self.V = vertical.detach().to(torch.float64).flatten(1).T
        self.moments = through_vertical(problem.moments, self.V, problem.kernel)
        self.prior = weight_to_matrix(horizontal)

    def dense(self, B: Tensor) -> Tensor:
        """Coefficients of the features as coefficients of the patches, (c·kh·kw, q)."""
        if self.base is None:
            return B
        by_offset = B.view(self.V.shape[1], self.problem.kernel[1], -1)
        return torch.einsum("pr,rxq->pxq", self.V, by_offset).reshape(-1, B.shape[1])

    def assemble(self, encoder: Tensor, decoder: Tensor, bias: Tensor, report: dict) -> FactoredConv:
        weight, geometry = self.problem.weight, self.problem.geometry
        kernel = self.problem.kernel
        before, names = (), ("filters", "pointwise")
        if self.base is not None:
            before, names = self.base.factors[:1], ("vertical", "horizontal", "pointwise")
            kernel, geometry = (1, kernel[1]), self.base.factors[1].geometry
        filters = ConvFactor(matrix_to_weight(encoder, weight, kernel), None, geometry)
        pointwise = ConvFactor(matrix_to_weight(decoder, weight, (1, 1)), bias.to(weight), Geometry())
        return FactoredConv((*before, filters, pointwise), names, report)


def why_linear(problem: LayerProblem) -> str | None:
    """The reason why this problem has no activation-aware form, or None if it has one."""
    if problem.activation not in ACTIVATIONS:
        return f"activation {problem.activation!r} has no activation-aware form: fitted linearly"
    if problem.activation != "identity" and problem.rows is None:
        return "the activation-aware form needs the rows, and none were given: fitted linearly"
    return None


def response_weights(problem: LayerProblem) -> Tensor:
    """What each activated response counts, (n,) float64: the diagonal of the output metric, or ones."""
    if problem.metric is None:
        return torch.ones(problem.n_filters, dtype=torch.float64, device=problem.moments.K.device)
    diagonal = problem.float64_metric().diagonal()
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
    """
    moments, activation = problem.moments, ACTIVATIONS[problem.activation]
    weight, bias = factored.compose()
    B = weight_to_matrix(weight).to(moments.K.device)
    bias = moments.y_mean * 0 if bias is None else bias.to(moments.K)
    # About the means of X and Y, so that nothing large cancels.
    offset = bias + moments.x_mean @ B
    C, S = torch.zeros_like(moments.C), torch.zeros_like(moments.S)
    sums, squares, first, second = (torch.zeros_like(moments.y_mean) for _ in range(4))
    center = activation(moments.y_mean)
    n_rows = 0
    for inputs, responses in problem.rows():
        inputs, responses = (rows.detach().to(moments.K.device).flatten(1) for rows in (inputs, responses))
        for X, Y in zip(inputs.split(TILE_ROWS), responses.split(TILE_ROWS)):
            X = X - moments.x_mean.to(X.dtype)
            z = torch.addmm(offset.to(X.dtype), X, B.to(X.dtype))
            wanted = activation(Y.to(X.dtype))
            squares += _squares(wanted - activation(z))
            distance = wanted - center.to(X.dtype)
            first += distance.sum(dim=0, dtype=torch.float64)
            second += _squares(distance)
            u = nearest_responses(z, wanted, penalty, problem.activation) - moments.y_mean.to(X.dtype)
            C += X.T @ u
            S += u.T @ u
            sums += u.sum(dim=0)
            n_rows += len(X)
    _require_all_rows(problem, n_rows)
    weights = response_weights(problem)
    total = float(weights @ (second - first.square() / n_rows))
    error = float(weights @ squares) / total if total > 0 else 0.0
    S = (S + S.T) / 2 - torch.outer(sums, sums) / n_rows
    return error, Moments(moments.K, C, S, moments.x_mean, moments.y_mean + sums / n_rows, n_rows)


def _require_all_rows(problem: LayerProblem, n_rows: int) -> None:
    if n_rows != problem.moments.n_rows:
        raise DecompError(problem.name, f"the rows must be the {problem.moments.n_rows} of the moments", got=n_rows)


class _ResponseRows:
    """Least-squares responses ŷ (centred) and activated original responses r(y) of all rows."""

    def __init__(self, problem: LayerProblem, coefficients: Tensor, center: Tensor):
        self.activation = ACTIVATIONS[problem.activation]
        device, fitted, wanted = problem.moments.K.device, [], []
        for inputs, responses in problem.rows():
            inputs, responses = inputs.detach().to(device).flatten(1), responses.detach().to(device)
            product = inputs @ coefficients.to(inputs.dtype)
            fitted.append(product - center.to(product.dtype))
            wanted.append(self.activation(responses).to(product.dtype))
        self.fitted, self.wanted = torch.cat(fitted), torch.cat(wanted)
        _require_all_rows(problem, len(self.fitted))

    def tiles(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.fitted.split(TILE_ROWS), self.wanted.split(TILE_ROWS))

    def variation(self, weights: Tensor) -> float:
        """Σ weighted squared distance of r(y) from its mean."""
        mean = self.wanted.mean(dim=0, dtype=torch.float64).to(self.wanted.dtype)
        return sum(float((weights * _squares(wanted - mean)).sum()) for _, wanted in self.tiles())


def _squares(values: Tensor) -> Tensor:
    """Column sums of squares: over a tile in its own type, between tiles in float64."""
    return values.square().sum(dim=0).to(torch.float64)


class _LowRankMap:
    """z = ŷ_c @ encoder @ decoder + mean, on centred least-squares responses."""

    def __init__(self, encoder: Tensor, decoder: Tensor, mean: Tensor):
        self.encoder, self.decoder, self.mean = encoder, decoder, mean

    def __call__(self, fitted: Tensor) -> Tensor:
        dtype = fitted.dtype
        return torch.addmm(self.mean.to(dtype), fitted @ self.encoder.to(dtype), self.decoder.to(dtype))


class _HalfQuadratic:
    """Half-quadratic splitting for a map of low rank on the responses (see `decompose`)."""

    def __init__(self, problem: LayerProblem, moments: Moments, full: LeastSquares, coefficients: Tensor):
        self.problem, self.moments = problem, moments
        self.rows = _ResponseRows(problem, coefficients, moments.x_mean @ full.weight)
        self.weights = response_weights(problem)
        # By eigenvectors: responses that do not vary leave nothing but rounding, which has no Cholesky factor.
        vectors, values = symmetric_eigen(full.weight.T @ (moments.K @ full.weight))
        self.whitening = vectors / (values + RIDGE * (float(values.mean()) or 1.0)).sqrt()

    def sweep(self, low_rank: _LowRankMap, penalty: float) -> tuple[float, Tensor, Tensor]:
        """The objective of a map; and of the u nearest to it, ŷ_cᵀu and the mean."""
        n = self.problem.n_filters
        errors, sums = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        cross = torch.zeros(n, n, dtype=torch.float64, device=self.weights.device)
        for fitted, wanted in self.rows.tiles():
            z = low_rank(fitted)
            errors += _squares(wanted - self.rows.activation(z))
            u = nearest_responses(z, wanted, penalty, self.problem.activation) - low_rank.mean.to(z.dtype)
            sums += u.sum(dim=0)
            cross += fitted.T @ u
        return float(self.weights @ errors), cross, low_rank.mean + sums / len(self.rows.fitted)

    def regress(self, cross: Tensor, mean: Tensor, rank: int) -> _LowRankMap:
        """Reduced-rank regression of u on ŷ, each response weighted."""
        root = self.weights.sqrt()
        half = self.whitening.T @ (cross * root)
        U, _ = symmetric_eigen(half.T @ half)
        U = U[:, :rank]
        encoder = self.whitening @ (half @ U)
        return _LowRankMap(encoder, (U / root[:, None]).T, mean)

    def run(self, rank: int, start: _LowRankMap, iterations: int) -> tuple[_LowRankMap, dict]:
        """The best map met from ``start`` on, and the report."""
        best, best_error, current, counts, first = start, float("inf"), start, [], None
        for penalty in PENALTIES:
            count, before = 0, float("inf")
            for count in range(1, iterations + 1):  # noqa: B007
                error, cross, mean = self.sweep(current, penalty)
                first = error if first is None else first
                if error < best_error:
                    best, best_error = current, error
                if not error < before * (1 - PATIENCE):
                    break
                before = error
                current = self.regress(cross, mean, rank)
            counts.append(count)
            current = best
        total = self.rows.variation(self.weights)
        relative = [value / total if total > 0 else 0.0 for value in (best_error, first)]
        report = {"response_error": relative[0], "response_error_linear": relative[1], "iterations": counts}
        return best, {"form": "activation-aware", **report}
