"""Channel decomposition: fewer filters and a 1×1 convolution, fitted to the responses after the activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry
from decomp.problem.layer_problem import LayerProblem, matrix_to_weight, weight_to_matrix
from decomp.solvers.half_quadratic import ITERATIONS, HalfQuadratic, LowRankMap, why_linear
from decomp.solvers.linalg import EVIDENCE, Ridge, least_squares
from decomp.solvers.reduced_rank import reduced_rank
from decomp.solvers.spatial import through_vertical


def decompose(
    problem: LayerProblem,
    rank: int,
    *,
    base: FactoredConv | None = None,
    activation_aware: bool = True,
    ridge: Ridge = EVIDENCE,
    iterations: int = ITERATIONS,
) -> FactoredConv:
    r"""``rank`` filters of the layer's shape, and a 1×1 convolution that mixes them into its n responses.

    Linear: reduced-rank regression of the original responses y on the inputs x now,

    .. math:: \min_{rank B \le r,\,b} \sum_i \|y_i - B^T x_i - b\|_F^2.

    Activation-aware (1505.06798, eq. 7 to 10), from the linear solution on, with r(·) the activation and
    ŷ = B₁ᵀx the least-squares responses:

    .. math:: \min_{rank M \le r,\,b} \sum_i \|r(y_i) - r(M \hat y_i + b)\|^2

    by half-quadratic splitting: an auxiliary u for each response, `nearest_responses`, then reduced-rank
    regression of u on ŷ, for a weak and then a strong penalty (see `half_quadratic`). The best solution of all
    iterations by this objective on the fitted rows is returned, so it is never worse there than the linear one.
    With an output metric F the linear form uses F, and the activation-aware form its diagonal (only then can u be
    found response by response).

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
    report: dict[str, Any] = {"step": "channel", "rank": rank, "form": "linear", **full.report}
    note = why_linear(problem) if activation_aware else "the linear form was chosen"
    if note:
        report["note"] = note
    elif problem.activation != "identity":
        start = LowRankMap(linear.projection, linear.decoder, features.moments.y_mean)
        splitting = HalfQuadratic(problem, features.moments, full, features.dense(full.weight))
        low_rank, splitting_report = splitting.run(rank, start, iterations)
        encoder, decoder = full.weight @ low_rank.encoder, low_rank.decoder
        bias = low_rank.mean - features.moments.x_mean @ (encoder @ decoder)
        report |= splitting_report
    report["error"] = features.moments.error(encoder @ decoder, metric=problem.metric)
    return features.assemble(encoder, decoder, bias, report)


class _Features:
    """Inputs of the decomposed convolution: the patches, or the outputs of the vertical factor."""

    def __init__(self, problem: LayerProblem, base: FactoredConv | None) -> None:
        self.problem, self.base = problem, base
        if base is None:
            self.moments, self.prior = problem.moments, problem.matrix()
            return
        if base.names != ("vertical", "horizontal"):
            raise DecompError(problem.name, "the base must be vertical and horizontal factors", got=base.names)
        if (base.factors[1].weight.shape[0], base.factors[0].weight.shape[1]) != problem.weight.shape[:2]:
            raise DecompError(problem.name, "the base must be factors of this layer", got=base.factors[0].weight.shape)
        vertical, horizontal = (factor.weight.to(problem.moments.C.device) for factor in base.factors)
        self.V = vertical.detach().to(torch.float64).flatten(1).T
        self.moments = through_vertical(problem.moments, self.V, problem.kernel)
        self.prior = weight_to_matrix(horizontal)

    def dense(self, B: Tensor) -> Tensor:
        """Coefficients of the features as coefficients of the patches, (c·kh·kw, q)."""
        if self.base is None:
            return B
        by_offset = B.view(self.V.shape[1], self.problem.kernel[1], -1)
        return torch.einsum("pr,rxq->pxq", self.V, by_offset).reshape(-1, B.shape[1])

    def assemble(self, encoder: Tensor, decoder: Tensor, bias: Tensor, report: dict[str, Any]) -> FactoredConv:
        """The chain of factors with filters ``encoder`` and 1×1 weights ``decoder``."""
        weight, geometry = self.problem.weight, self.problem.geometry
        kernel = self.problem.kernel
        before: tuple[ConvFactor, ...] = ()
        names: tuple[str, ...] = ("filters", "pointwise")
        if self.base is not None:
            before, names = self.base.factors[:1], ("vertical", "horizontal", "pointwise")
            kernel, geometry = (1, kernel[1]), self.base.factors[1].geometry
        filters = ConvFactor(matrix_to_weight(encoder, weight, kernel), None, geometry)
        pointwise = ConvFactor(matrix_to_weight(decoder, weight, (1, 1)), bias.to(weight), Geometry())
        return FactoredConv((*before, filters, pointwise), names, report)
