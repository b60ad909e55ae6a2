"""Few rows: the same solutions, ridges and evidence as from the whole matrix of the inputs."""

import pytest
import torch
from layer_problems import make

from decomp.problem import moments
from decomp.problem.moments import Moments
from decomp.solvers import few_rows
from decomp.solvers.few_rows import FewRows, nested_gains
from decomp.solvers.linalg import choose_ridge, least_squares


def test_solutions_and_determinants_are_those_of_the_whole_matrix_for_every_ridge():
    root = torch.randn(6, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    K = root.T @ root
    by_rows, prior = torch.randn(26, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).split([6, 20])
    right, zeros = root.T @ by_rows - K @ prior, torch.zeros(20, dtype=torch.float64)
    own = Moments(K, root.T @ by_rows, by_rows.T @ by_rows, zeros, zeros[:3], 7, root, by_rows)
    few = FewRows(own, prior)
    assert few.rise == pytest.approx(own.error(prior) * float(own.S.trace()) - float(own.S.trace()), rel=1e-9)
    for penalty in (1e-3, 1.0, 50.0):
        shifted = K + penalty * torch.eye(20, dtype=torch.float64)
        solution = torch.linalg.solve(shifted, right)
        assert torch.allclose(few.solve(penalty), solution, rtol=1e-8, atol=1e-10)
        assert few.explained(penalty) == pytest.approx(float((right * solution).sum()), rel=1e-9)
        expected = float(torch.logdet(shifted)) - 20 * float(torch.tensor(penalty, dtype=torch.float64).log())
        assert few.determinant(penalty) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("with_prior", [False, True])
def test_few_rows_give_the_solution_the_evidence_and_the_ridge_of_the_whole_matrix(with_prior, monkeypatch):
    rows = make(c=12, n=5, kernel=(3, 3), n_rows=40, noise=0.4)
    prior = rows.problem.matrix() if with_prior else None
    results = []
    for many in (10**9, 1):
        monkeypatch.setattr(moments, "MANY_INPUTS", many)
        own = Moments.of_rows(rows.flat, rows.Y)
        assert (own.root is None) == (many > 1)
        fits = [least_squares(own, ridge=ridge, prior=prior) for ridge in (1e-6, 1e-1, "evidence")]
        results.append((choose_ridge(own, prior), fits))
    (ridge, whole), (few_ridge, few) = results
    assert few_ridge == pytest.approx(ridge, rel=1e-6)
    for one, other in zip(whole, few):
        assert torch.allclose(other.weight, one.weight, rtol=1e-6, atol=1e-8)
        assert torch.allclose(other.bias, one.bias, rtol=1e-6, atol=1e-8)
        assert other.report["ridge"] == pytest.approx(one.report["ridge"], rel=1e-6)


def test_few_rows_without_a_ridge_are_refused_or_helped_as_any_other(monkeypatch):
    monkeypatch.setattr(moments, "MANY_INPUTS", 1)
    rows = make(c=4, n=3, kernel=(3, 3), n_rows=10)
    fit = least_squares(Moments.of_rows(rows.flat, rows.Y), ridge=0.0)
    assert fit.report["ridge_raised"] and fit.report["ridge"] > 0


def test_gains_of_nested_inputs_are_those_of_a_separate_fit_on_the_first_ones(monkeypatch):
    monkeypatch.setattr(few_rows, "TOGETHER", 5)
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root, wanted, far, far_wanted, prior = normal(5, 12), normal(5, 3), normal(4, 12), normal(4, 3), normal(12, 3)
    for penalty in (1e-4, 0.7):
        gains = nested_gains((root, wanted), prior, penalty, (far, far_wanted))
        squared = float(far_wanted.square().sum()) - gains.cumsum(0)
        assert len(gains) == 12
        for inputs, error in enumerate(squared, start=1):
            R, b = root[:, :inputs], prior[:inputs]
            shifted = R.T @ R + penalty * torch.eye(inputs, dtype=torch.float64)
            B = torch.linalg.solve(shifted, R.T @ wanted + penalty * b)
            assert float(error) == pytest.approx(float((far_wanted - far[:, :inputs] @ B).square().sum()), rel=1e-8)
