import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import make, output_metric

from decomp.errors import DecompError
from decomp.problem.moments import Moments
from decomp.solvers import half_quadratic
from decomp.solvers.channel import decompose
from decomp.solvers.half_quadratic import (
    ACTIVATIONS,
    HalfQuadratic,
    LowRankMap,
    activation_targets,
    nearest_responses,
    response_weights,
    why_linear,
)  # fmt: skip
from decomp.solvers.linalg import METRIC_FLOOR, least_squares
from decomp.solvers.reduced_rank import reduced_rank


def response_error(rows, factored, metric=None):
    """Relative error after the activation, judged on the rows."""
    r = ACTIVATIONS[rows.problem.activation]
    wanted, got = r(rows.Y), r(rows.fitted(factored))
    weights = torch.ones(rows.Y.shape[1]).double() if metric is None else metric.diagonal()
    total = ((wanted - wanted.mean(0)).square() * weights).sum()
    return float(((wanted - got).square() * weights).sum() / total)


@settings(max_examples=200, deadline=None)
@given(
    fitted=st.floats(-15, 15),
    response=st.floats(-15, 15),
    penalty=st.floats(1e-3, 5),
    activation=st.sampled_from(["identity", "relu", "relu6"]),
)
def test_no_other_response_is_nearer(fitted, response, penalty, activation):
    r = ACTIVATIONS[activation]
    fitted, wanted = torch.tensor([fitted]).double(), r(torch.tensor([response]).double())

    def cost(u):
        return (r(u) - wanted).square() + penalty * (u - fitted).square()

    grid = torch.linspace(-16, 16, 32001, dtype=torch.float64)
    assert cost(nearest_responses(fitted, wanted, penalty, activation)) <= cost(grid).min() + 1e-12


def test_tiles_leave_no_seam(monkeypatch):
    whole = decompose(make().problem, 3)
    monkeypatch.setattr(half_quadratic, "TILE_ROWS", 11)
    tiled = decompose(make().problem, 3)
    assert torch.allclose(whole.compose()[0], tiled.compose()[0], atol=1e-9)


def test_targets_near_a_chain_are_the_moments_of_the_nearest_responses():
    rows = make(n=5)
    found = decompose(rows.problem, 2)
    error, moments = activation_targets(rows.problem, found, 0.3)
    r = ACTIVATIONS["relu"]
    u = nearest_responses(rows.fitted(found), r(rows.Y), 0.3, "relu")
    wanted = Moments.of_rows(rows.flat, u)
    for name in ("K", "C", "S", "x_mean", "y_mean"):
        assert torch.allclose(getattr(moments, name), getattr(wanted, name), atol=1e-9), name
    assert error == pytest.approx(response_error(rows, found))


def splitting(rows, rank, metric=None):
    """The iteration of a problem without a base, and the map of the linear form to start from."""
    problem = dataclasses.replace(rows.problem, metric=metric)
    full = least_squares(problem.moments, ridge=1e-10)
    linear = reduced_rank(problem.moments, rank, metric=metric, solution=full)
    start = LowRankMap(linear.projection, linear.decoder, problem.moments.y_mean)
    return HalfQuadratic(problem, problem.moments, full, full.weight), start


def objective(iteration, low_rank, u, penalty):
    """Weighted sum of (r(u) − r(y))² + penalty·(u − z)² over all rows."""
    r, weights = iteration.rows.activation, iteration.weights
    z = low_rank(iteration.rows.fitted)
    return float((((r(u) - iteration.rows.wanted).square() + penalty * (u - z).square()) * weights).sum())


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("metric", [None, output_metric(6)])
def test_each_half_of_an_iteration_minimises_the_split_objective(activation, metric):
    rows = make(activation=activation, seed=2)
    iteration, current = splitting(rows, 2, metric)
    penalty, values = 0.3, []
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        z = current(iteration.rows.fitted)
        u = nearest_responses(z, iteration.rows.wanted, penalty, activation)
        values.append(objective(iteration, current, u, penalty))
        error, cross, mean = iteration.sweep(current, penalty)
        wanted = ((iteration.rows.wanted - iteration.rows.activation(z)).square() * iteration.weights).sum()
        assert error == pytest.approx(float(wanted), rel=1e-9)
        assert torch.allclose(cross, iteration.rows.fitted.T @ (u - current.mean), atol=1e-8)
        assert torch.allclose(mean, u.mean(0), atol=1e-10)
        current = iteration.regress(cross, mean, 2)
        values.append(objective(iteration, current, u, penalty))
        # No map of this rank nearby is better: the regression is optimal for these u.
        for _ in range(5):
            step = 1e-3 * torch.randn(current.encoder.shape, generator=generator, dtype=torch.float64)
            other = LowRankMap(current.encoder + step, current.decoder, current.mean)
            assert objective(iteration, other, u, penalty) >= values[-1] * (1 - 1e-9)
            other = LowRankMap(current.encoder, current.decoder + step.T, current.mean + step[:, 0])
            assert objective(iteration, other, u, penalty) >= values[-1] * (1 - 1e-9)
    assert all(after <= before * (1 + 1e-7) for before, after in zip(values, values[1:]))
    assert values[-1] < values[0]


def test_the_best_map_of_all_iterations_is_returned():
    rows = make(n=8, seed=3)
    iteration, start = splitting(rows, 2)
    best, report = iteration.run(2, start)
    total = iteration.rows.variation(iteration.weights)
    assert iteration.sweep(best, 1.0)[0] / total == pytest.approx(report["response_error"], rel=1e-12)
    assert iteration.sweep(start, 1.0)[0] / total == pytest.approx(report["response_error_linear"], rel=1e-12)
    assert report["response_error"] < report["response_error_linear"]
    assert len(report["iterations"]) == 2 and max(report["iterations"]) <= half_quadratic.ITERATIONS


def test_iterations_that_only_worsen_leave_the_start_and_each_penalty_begins_at_the_best():
    iteration, start = splitting(make(n=8, seed=3), 2)
    worse = LowRankMap(start.encoder, start.decoder * 3, start.mean)
    swept, sweep = [], iteration.sweep
    iteration.sweep = lambda low_rank, penalty: (swept.append((low_rank, penalty)), sweep(low_rank, penalty))[1]
    iteration.regress = lambda cross, mean, rank: worse
    best, report = iteration.run(2, start)
    assert best.decoder is start.decoder and report["response_error"] == report["response_error_linear"]
    weak, strong = half_quadratic.PENALTIES
    decoders = [(low_rank.decoder is start.decoder, penalty) for low_rank, penalty in swept]
    assert decoders == [(True, weak), (False, weak), (True, strong), (False, strong)]


def test_at_full_rank_an_unchanged_network_has_no_error_left():
    iteration, start = splitting(make(noise=0.0), 6)
    _, report = iteration.run(6, start)
    assert report["response_error"] < 1e-12


def test_identity_takes_the_weighted_mean_and_relu6_saturates():
    z, wanted = torch.tensor([4.0, 9.0, -5.0]).double(), torch.tensor([2.0, 6.0, 0.0]).double()
    assert nearest_responses(z, wanted, 1.0, "identity").tolist() == [3.0, 7.5, -2.5]
    # Where the activation is flat already at the right value, nothing moves.
    assert nearest_responses(z, wanted, 1.0, "relu6").tolist() == [3.0, 9.0, -5.0]


def test_responses_are_weighted_by_the_diagonal_of_the_metric_with_a_floor():
    problem = make().problem
    assert response_weights(problem).tolist() == [1.0] * 6
    F = output_metric(6).clone()
    F[2] = F[:, 2] = 0
    weights = response_weights(dataclasses.replace(problem, metric=F))
    assert weights[2] == pytest.approx(METRIC_FLOOR * float(F.diagonal().mean()))
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(weights[others], F.diagonal()[others])


def test_problems_without_an_activation_aware_form_say_why():
    assert why_linear(make().problem) is None
    assert why_linear(make(activation="identity", with_rows=False).problem) is None
    assert "'gelu' has no activation-aware form" in why_linear(make(activation="gelu").problem)
    assert "needs the rows" in why_linear(make(with_rows=False).problem)


def test_targets_need_all_rows_of_the_moments():
    rows = make()
    found = decompose(rows.problem, 2, activation_aware=False)
    with pytest.raises(DecompError, match="conv: an activation-aware fit needs the rows, got moments only"):
        activation_targets(dataclasses.replace(rows.problem, rows=None), found)
    part = dataclasses.replace(rows.problem, rows=lambda: iter([(rows.X[:50], rows.Y[:50])]))
    with pytest.raises(DecompError, match="conv: the rows must be the 300 of the moments, got 50"):
        activation_targets(part, found)


@pytest.mark.parametrize("rank", [1, 3, 4, 6])
def test_from_few_inputs_the_regression_is_that_of_all_directions_of_the_responses(rank):
    rows = make(c=1, n=12, kernel=(2, 2), seed=4)
    iteration, start = splitting(rows, min(rank, 4))
    assert iteration.whitening.shape == (12, 4)
    _, cross, mean = iteration.sweep(start, 0.3)
    found = iteration.regress(cross, mean, rank)
    K = iteration.rows.fitted.T.double() @ iteration.rows.fitted.double()
    root = iteration.weights.sqrt()
    # Reduced-rank regression on all 12 responses, by the pseudo-inverse: the leading part of the fitted targets.
    fitted = torch.linalg.pinv(K, rtol=1e-10, hermitian=True) @ cross
    values, vectors = torch.linalg.eigh((fitted * root).T @ K @ (fitted * root))
    U = vectors.flip(1)[:, :rank]
    wanted = iteration.rows.fitted @ fitted @ torch.diag(root) @ U @ U.T @ torch.diag(1 / root)
    got = iteration.rows.fitted @ found.encoder @ found.decoder
    assert found.encoder.shape == (12, rank) and found.decoder.shape == (rank, 12)
    assert torch.allclose(got, wanted, atol=1e-6 * float(wanted.abs().max()))
    lengths = (found.decoder * root).norm(dim=1)
    assert torch.allclose(lengths[: min(rank, 4)], torch.ones(min(rank, 4)).double())


@pytest.mark.parametrize("metric", [None, output_metric(24)])
def test_the_iteration_in_few_whitened_directions_finds_the_map_of_that_in_all_responses(metric, monkeypatch):
    rows = make(c=2, n=24, kernel=(1, 3), n_rows=300, noise=0.3, seed=3)
    found = []
    for many in (10**9, 1):
        monkeypatch.setattr(half_quadratic, "MANY_INPUTS", many)
        iteration, start = splitting(rows, 3, metric)
        assert (iteration.back is None, iteration.rows.fitted.shape[1]) == ((True, 24) if many > 1 else (False, 6))
        found.append(iteration.run(3, start))
    (whole, report), (few, report_few) = found
    assert few.encoder.shape == (24, 3)
    product, wanted = few.encoder @ few.decoder, whole.encoder @ whole.decoder
    fitted = rows.flat @ least_squares(rows.problem.moments, ridge=1e-10).weight
    assert torch.allclose(fitted @ product, fitted @ wanted, atol=1e-5 * float((fitted @ wanted).abs().max()))
    assert torch.allclose(few.mean, whole.mean, atol=1e-6)
    assert report_few["iterations"] == report["iterations"]
    for key in ("response_error", "response_error_linear"):
        assert report_few[key] == pytest.approx(report[key], rel=1e-5) and report[key] > 1e-3
