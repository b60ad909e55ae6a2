"""Reduced-rank regression against singular values, and its two ways to the same directions."""

import numpy as np
import pytest
import torch
from layer_problems import make, output_metric

from decomp.errors import DecompError
from decomp.problem import moments as moments_module
from decomp.problem.moments import Moments
from decomp.solvers import linalg
from decomp.solvers import reduced_rank as module
from decomp.solvers.linalg import least_squares
from decomp.solvers.reduced_rank import reduced_rank, response_basis


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("metric", [None, output_metric(6, seed=4)])
def test_reduced_rank_is_the_svd_of_the_whitened_solution(metric):
    """A second route: with K = LLᵀ the problem is a plain low-rank approximation of LᵀB₁F^½ (Eckart-Young)."""
    rows = make(n=6)
    moments = rows.problem.moments
    full = least_squares(moments)
    L = torch.linalg.cholesky(moments.K)
    root = torch.eye(6).double() if metric is None else linalg.metric_roots(metric)[0]
    U, s, Vt = torch.linalg.svd(L.T @ full.weight @ root, full_matrices=False)
    for rank in range(1, 7):
        got = reduced_rank(moments, rank, metric=metric)
        truncated = torch.linalg.solve_triangular(L.T, U[:, :rank] * s[:rank], upper=True) @ Vt[:rank]
        wanted = torch.linalg.solve(root, truncated.T).T
        assert torch.allclose(got.encoder @ got.decoder, wanted, atol=1e-7)
        assert got.encoder.shape[1] == rank
        assert torch.allclose(got.encoder, full.weight @ got.projection, atol=1e-10)
        assert torch.allclose(got.energies, s.square(), rtol=1e-6, atol=1e-8 * float(s[0] ** 2))


@pytest.mark.parametrize("metric", [None, output_metric(6, seed=4)])
def test_reduced_rank_error_is_the_energy_left_out(metric):
    moments = make(n=6).problem.moments
    S = moments.S if metric is None else moments.S @ metric
    full = least_squares(moments)
    errors = [moments.error(full.weight * 0, metric)]
    for rank in range(1, 7):
        got = reduced_rank(moments, rank, metric=metric)
        errors.append(moments.error(got.encoder @ got.decoder, metric))
    drops = -np.diff(errors) * float(S.trace())
    np.testing.assert_allclose(drops, got.energies, rtol=1e-5, atol=1e-9 * drops[0])
    assert errors[-1] == pytest.approx(moments.error(full.weight, metric), rel=1e-9)


def test_reduced_rank_has_zero_mean_error():
    rows = make(n=6)
    got = reduced_rank(rows.problem.moments, 2)
    residual = rows.Y - rows.flat @ got.encoder @ got.decoder - got.bias
    assert residual.mean(0).abs().max() < 1e-10


@pytest.mark.parametrize("rank", [0, 7])
def test_ranks_out_of_range_are_refused(rank):
    with pytest.raises(DecompError, match=r"rank must be in 1..6 \(n\)"):
        reduced_rank(make(n=6).problem.moments, rank)


def test_a_metric_of_low_rank_still_gives_a_map():
    F = torch.zeros(6, 6, dtype=torch.float64)
    F[0, 0] = 3.0
    rows = make(n=6)
    got = reduced_rank(rows.problem.moments, 1, metric=F)
    full = least_squares(rows.problem.moments)
    # All that counts is the first response, and one rank gives it.
    assert torch.allclose((got.encoder @ got.decoder)[:, 0], full.weight[:, 0], atol=1e-3)


@pytest.mark.parametrize("metric", [None, output_metric(20, seed=4)])
@pytest.mark.parametrize("n_rows", [4, 40])  # fewer rows than inputs, and more
def test_responses_of_few_inputs_or_rows_have_the_same_directions_by_the_smaller_problem(metric, n_rows, monkeypatch):
    X, Y = normal(n_rows, 9), normal(n_rows, 20, seed=1)
    found = []
    for many in (10**9, 1):
        monkeypatch.setattr(moments_module, "MANY_INPUTS", many)
        monkeypatch.setattr(module, "MANY_INPUTS", many)
        moments = Moments.of_rows(X, Y)
        assert (moments.root is None) == (many > 1 or n_rows == 40)
        B = least_squares(moments, ridge=1e-3, prior=normal(9, 20, seed=2)).weight
        found.append((moments, B, response_basis(moments, B, metric, 15), reduced_rank(moments, 3, metric=metric)))
    (_, B, (U, energies), one), (few, _, (U_few, energies_few), other) = found
    assert U.shape == (20, 20) and U_few.shape == (20, 15)
    assert torch.allclose(U_few.T @ U_few, torch.eye(15).double(), atol=1e-10)
    assert torch.allclose(energies_few, energies, rtol=1e-7, atol=1e-9 * float(energies[0]))
    rank = 3 if n_rows == 4 else 9
    assert torch.allclose(U_few[:, :rank], U[:, :rank], atol=1e-6)
    assert torch.allclose(other.encoder @ other.decoder, one.encoder @ one.decoder, atol=1e-7)
    assert response_basis(few, B, metric)[0].shape == (20, rank)
