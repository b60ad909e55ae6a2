import numpy as np
import pytest
import torch
from layer_problems import make

from decomp.allocation.plan import LayerPlan
from decomp.execution import outputs
from decomp.solvers import output_curves as sensitivity
from decomp.solvers import selection
from decomp.solvers import solve_layer as layers


def full(problem):
    n, c = problem.weight.shape[:2]
    kh, kw = problem.kernel
    return LayerPlan(problem.name, c, min(c * kh, n * kw), n)


@pytest.fixture
def problem():
    return made(noise=0.0)


def made(seed=0, noise=0.2):
    return make(seed=seed, noise=noise, activation="identity").problem


def responses(solution, problem):
    X, Y = (torch.cat(part) for part in zip(*problem.rows()))
    if solution.selection is not None:
        X = X[:, solution.selection.channels]
    weight, bias = solution.factored.compose()
    return X.flatten(1) @ weight.flatten(1).T + bias, Y


def test_full_sizes_reproduce_an_unchanged_layer(problem):
    solution, report = layers.solve_layer(problem, full(problem), activation_aware=False)
    got, wanted = responses(solution, problem)
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert solution.factored.names == ("vertical", "horizontal", "pointwise")
    assert report["errors"]["channel"]["fitted"] < 1e-9


@pytest.mark.parametrize(
    "item",
    [LayerPlan("l", 3), LayerPlan("l", 3, 4), LayerPlan("l", None, 4, 3), LayerPlan("l", 2, None, 2), LayerPlan("l")],
    ids=lambda i: i.words(),
)
def test_the_mean_error_of_a_fitted_layer_is_zero_on_its_rows(problem, item):
    solution, _ = layers.solve_layer(problem, item, activation_aware=False)
    got, wanted = responses(solution, problem)
    assert (got - wanted).mean(dim=0).abs().max() < 1e-5 * wanted.std()


def test_reported_errors_are_those_of_the_rows(problem):
    solution, report = layers.solve_layer(problem, LayerPlan("l", 3, 4, 3), held_out=problem.moments)
    got, wanted = responses(solution, problem)
    centred = wanted - wanted.mean(dim=0)
    error = (got - wanted - (got - wanted).mean(dim=0)).square().sum() / centred.square().sum()
    assert report["errors"]["refine"]["fitted"] == pytest.approx(error.item(), rel=1e-4)
    assert report["errors"]["refine"]["held_out"] == pytest.approx(error.item(), rel=1e-4)
    assert list(report["errors"]) == ["before", "prune", "spatial", "channel", "refine"]
    steps = [entry["fitted"] for entry in report["errors"].values()]
    assert steps[1] <= steps[2] + 1e-12 and steps[4] <= steps[3] + 1e-12


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_best_selector_is_never_worse_than_the_two_it_tries(seed, keep):
    problem = made(seed)
    errors = {}
    for name in ("best", "lasso", "backward"):
        chosen = layers.choose(problem, keep, name)
        assert len(chosen) == keep
        errors[name] = selection.reconstruct(problem, chosen).report["error"]
    assert errors["best"] == min(errors["lasso"], errors["backward"])


def test_output_curves_pass_through_what_was_measured_and_never_rise():
    curve = np.array([1.0, 0.5, 0.25, 0.1, 0.05, 0.01, 0.0])
    asked = []

    def approximate(size):
        asked.append(size)
        return size, None

    result = sensitivity.output_curve(curve, approximate, lambda size, _: 3 * curve[size] ** 2)
    assert len(asked) == 3
    for size in asked:
        assert result[size] == pytest.approx(3 * curve[size] ** 2, rel=1e-6)
    assert (np.diff(result) <= 0).all() and result[-1] < 1e-8 and result[1] > result[2]


def test_divergence_of_outputs():
    scores = torch.randn(5, 4)
    assert outputs.output_divergence(scores, scores + 3).abs().max() < 1e-12  # softmax forgets a shift
    p, q = scores.double().softmax(1), (scores * 2).double().softmax(1)
    wanted = (p * (p / q).log()).sum(1)
    assert torch.allclose(outputs.output_divergence(scores, scores * 2), wanted)
    maps = torch.randn(500, 3, 4, 4)  # of maps: the squared difference over their spread
    assert outputs.output_divergence(maps, torch.zeros_like(maps)).mean() == pytest.approx(1, abs=0.05)
    assert outputs.output_divergence(maps, maps).max() == 0


def test_approximations_are_dense_kernels_that_get_better_with_size():
    problem = made(1, noise=0.0)
    order = selection.retention_order(problem, "backward")
    for step, approximate in sensitivity.approximations(problem, order).items():
        limit = {"spatial": full(problem).spatial_rank, "channel": full(problem).channel_rank, "prune": len(order)}[
            step
        ]
        errors = [problem.error(approximate(size)[0]) for size in (1, max(2, limit // 2), limit)]
        assert errors[0] > errors[1] > errors[2] - 1e-12, step
        assert errors[2] < 1e-9 and approximate(1)[0].shape == problem.weight.shape
