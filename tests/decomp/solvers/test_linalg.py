import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import make, output_metric

from decomp.errors import DecompError, NumericalError
from decomp.problem.moments import Moments
from decomp.solvers import linalg
from decomp.solvers.linalg import least_squares, truncated_svd


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(p=st.integers(1, 8), n=st.integers(1, 4), seed=st.integers(0, 100))
def test_least_squares_is_numpys_with_a_column_of_ones(p, n, seed):
    X, Y = normal(40, p, seed=seed) + 2, normal(40, n, seed=seed + 1)
    fit = least_squares(Moments.of_rows(X, Y), ridge=1e-12)
    design = np.concatenate([X.numpy(), np.ones((40, 1))], axis=1)
    wanted = np.linalg.lstsq(design, Y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(fit.weight, wanted[:-1], rtol=0, atol=1e-8)
    np.testing.assert_allclose(fit.bias, wanted[-1], rtol=0, atol=1e-8)
    residual = Y - X @ fit.weight - fit.bias
    assert residual.mean(0).abs().max() < 1e-10


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_the_ridge_is_scaled_and_pulls_towards_the_prior(ridge):
    X, Y, prior = normal(50, 5), normal(50, 3, seed=1), normal(5, 3, seed=2)
    moments = Moments.of_rows(X, Y)
    fit = least_squares(moments, ridge=ridge, prior=prior)
    penalty = ridge * moments.K.diagonal().mean()
    gradient = moments.K @ fit.weight - moments.C + penalty * (fit.weight - prior)
    assert gradient.abs().max() < 1e-10
    assert fit.report == {"ridge": ridge, "ridge_raised": False}


def test_directions_that_the_rows_leave_open_keep_the_prior():
    X = normal(60, 4)
    X = torch.cat([X, torch.zeros(60, 1, dtype=X.dtype), torch.full((60, 1), 2.5, dtype=X.dtype)], dim=1)
    Y, prior = normal(60, 3, seed=1), normal(6, 3, seed=2)
    fit = least_squares(Moments.of_rows(X, Y), prior=prior)
    assert torch.equal(fit.weight[4:], prior[4:])
    assert not torch.allclose(fit.weight[:4], prior[:4])


@pytest.mark.parametrize("n_rows", [3, 8, 200])
def test_an_exact_prior_comes_back(n_rows):
    X, B = normal(n_rows, 12), normal(12, 5, seed=1)
    fit = least_squares(Moments.of_rows(X, X @ B + 1.5), prior=B, ridge="evidence")
    assert torch.allclose(fit.weight, B, rtol=0, atol=1e-10)
    assert torch.allclose(fit.bias, torch.full((5,), 1.5, dtype=B.dtype), atol=1e-9)


def test_fewer_rows_than_inputs_are_interpolated():
    X, Y = normal(10, 30), normal(10, 2, seed=1)
    moments = Moments.of_rows(X, Y)
    fit = least_squares(moments)
    assert moments.error(fit.weight) < 1e-10
    assert torch.isfinite(fit.weight).all()


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_the_evidence_is_the_likelihood_of_the_rows(noise, with_prior):
    """A second route, over rows instead of moments: Y − XB₀ ~ N(0, σ²(I + XXᵀ/λ)) once the means are taken out."""
    X, prior = normal(30, 10), 0.3 * normal(10, 4, seed=1)
    Y = X @ (normal(10, 4, seed=2) + (prior if with_prior else 0)) + noise * normal(30, 4, seed=3)
    moments = Moments.of_rows(X, Y)
    # An orthonormal basis of what is left once the mean is known: N − 1 rows.
    basis = torch.linalg.qr(torch.eye(30).double() - 1 / 30)[0][:, :29]
    A, R = basis.T @ X, basis.T @ (Y - X @ prior if with_prior else Y)

    def minus_log_likelihood(ridge):
        covariance = torch.eye(29).double() + A @ A.T / (ridge * moments.K.diagonal().mean())
        squared = (R * torch.linalg.solve(covariance, R)).sum()
        return float(4 * torch.logdet(covariance) + 29 * 4 * squared.log())

    def cost(ridge):
        chosen = prior if with_prior else prior * 0
        left_over = float(moments.S.trace()) * moments.error(chosen)
        return linalg.evidence_cost(moments, ridge, moments.C - moments.K @ chosen, left_over)

    for a, b in ((1e-6, 1e-3), (1e-3, 0.1), (0.1, 10)):
        difference = minus_log_likelihood(a) - minus_log_likelihood(b)
        assert cost(a) - cost(b) == pytest.approx(difference, rel=1e-6, abs=1e-6)
    grid = np.logspace(-8, 1, 361)
    best = grid[np.argmin([minus_log_likelihood(ridge) for ridge in grid])]
    got = linalg.choose_ridge(moments, prior if with_prior else None)
    assert 0.5 < got / best < 2
    assert minus_log_likelihood(got) < minus_log_likelihood(best * 10)


def test_as_few_rows_as_inputs_do_not_ruin_the_fit_elsewhere():
    other = make(n_rows=2000, n=6, c=4, seed=1)
    held_out, prior = Moments.of_rows(other.flat[1000:], other.Y[1000:]), other.problem.matrix()
    few = Moments.of_rows(other.flat[:37], other.Y[:37])
    plain = held_out.error(least_squares(few, prior=prior).weight)
    chosen = held_out.error(least_squares(few, prior=prior, ridge="evidence").weight)
    assert chosen <= 1.05 * held_out.error(prior) < plain
    many = Moments.of_rows(other.flat[:1000], other.Y[:1000])
    assert held_out.error(least_squares(many, prior=prior, ridge="evidence").weight) < held_out.error(prior)


def test_an_exact_prior_is_trusted_also_in_float32():
    rows = make(noise=0.0, dtype=torch.float32)
    assert linalg.choose_ridge(rows.problem.moments, rows.problem.matrix()) == linalg.RIDGE_BOUND


def test_a_failed_factorisation_raises_the_ridge_and_says_so():
    K = torch.diag(torch.tensor([1.0, 1.0, -2e-5], dtype=torch.float64))
    moments = Moments(K, normal(3, 2), torch.eye(2).double(), torch.zeros(3).double(), torch.zeros(2).double(), 10)
    fit = least_squares(moments, ridge=1e-8)
    assert fit.report["ridge_raised"]
    assert fit.report["ridge"] == pytest.approx(1e-4)
    moments.K[2, 2] = -0.5
    with pytest.raises(NumericalError, match="positive definite with a ridge of at most 0.01"):
        least_squares(moments)


def test_inputs_that_do_not_vary_leave_the_mean():
    Y = normal(20, 3)
    fit = least_squares(Moments.of_rows(torch.ones(20, 4, dtype=torch.float64), Y))
    assert torch.equal(fit.weight, torch.zeros(4, 3, dtype=torch.float64))
    assert torch.allclose(fit.bias, Y.mean(0))


@pytest.mark.parametrize("rank", [0, 7])
def test_ranks_of_a_singular_value_decomposition_out_of_range_are_refused(rank):
    with pytest.raises(DecompError, match=r"rank must be in 1..6"):
        truncated_svd(normal(6, 9), rank)


def test_a_metric_of_low_rank_is_made_invertible_and_one_without_any_is_refused():
    F = torch.zeros(6, 6, dtype=torch.float64)
    F[0, 0] = 3.0
    root, inverse = linalg.metric_roots(F)
    assert torch.allclose(root @ inverse, torch.eye(6).double(), atol=1e-10)
    assert float(root[0, 0]) == pytest.approx(3**0.5)
    with pytest.raises(NumericalError, match="positive semi-definite and not zero"):
        linalg.metric_roots(F * 0)


def test_roots_of_the_metric_used_last_are_kept_and_those_of_another_one_are_its_own():
    one, other = output_metric(6, seed=4), output_metric(6, seed=5)
    first = linalg.metric_roots(one)
    assert linalg.metric_roots(one) is first
    assert torch.allclose(linalg.metric_roots(other)[0] @ linalg.metric_roots(other)[0], other, atol=1e-9)
    assert torch.equal(linalg.metric_roots(one)[0], first[0])


@settings(max_examples=25, deadline=None)
@given(p=st.integers(1, 6), q=st.integers(1, 6), seed=st.integers(0, 50))
def test_signs_do_not_depend_on_how_the_rows_or_columns_lie(p, q, seed):
    A = normal(p, q, seed=seed)
    U, s, Vt = truncated_svd(A, min(p, q))
    assert torch.allclose((U * s) @ Vt, A, atol=1e-10)
    assert (U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()
    turned = truncated_svd(A.flip(0), min(p, q))
    assert torch.allclose(turned[0].flip(0), U, atol=1e-7)
    assert torch.allclose(turned[2], Vt, atol=1e-7)


def test_eigenvectors_are_ordered_signed_and_orthonormal():
    A = normal(7, 3)
    vectors, values = linalg.symmetric_eigen(A @ A.T)
    assert torch.allclose((vectors * values) @ vectors.T, A @ A.T, atol=1e-10)
    assert (values.diff() <= 0).all() and (values >= 0).all()
    assert torch.allclose(vectors.T @ vectors, torch.eye(7).double(), atol=1e-12)
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_ridge_that_is_neither_a_number_nor_evidence_is_refused():
    with pytest.raises(DecompError, match="ridge: must be a number or 'evidence', got 'evidense'"):
        least_squares(make().problem.moments, ridge="evidense")
