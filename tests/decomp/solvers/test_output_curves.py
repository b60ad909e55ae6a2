import dataclasses

import numpy as np
import pytest
import torch
from layer_problems import make, output_metric

from decomp.problem.factors import Selection
from decomp.solvers import channel, linalg, selection, spatial
from decomp.solvers.linalg import least_squares
from decomp.solvers.output_curves import (
    approximations,
    in_proportion,
    measured_sizes,
    output_curve,
)

LEVELS = (0.02, 0.08, 0.3)
CURVE = np.array([1.0, 0.5, 0.25, 0.1, 0.05, 0.01, 0.0])


def measured(curve, change):
    """The output curve where the change of the output is a function of the size, and the sizes measured."""
    sizes = measured_sizes(curve, LEVELS)
    return output_curve(curve, {size: change(size) for size in sizes}), sizes


def test_the_curve_passes_through_the_measured_points_and_is_linear_between_and_beyond():
    result, sizes = measured(CURVE, lambda size: 3 * CURVE[size] ** 2)
    assert sorted(sizes) == [2, 4, 5]  # the first sizes with errors of at most 0.3, 0.08 and 0.02
    for size in sizes:
        assert result[size] == pytest.approx(3 * CURVE[size] ** 2, rel=1e-6)
    low, high = 3 * 0.05**2, 3 * 0.25**2
    assert result[3] == pytest.approx(low + (high - low) * (0.1 - 0.05) / (0.25 - 0.05), rel=1e-6)
    assert result[1] == pytest.approx(high * 0.5 / 0.25, rel=1e-6)
    assert (np.diff(result) <= 0).all() and result[-1] == 0


def test_a_smaller_change_at_a_larger_error_does_not_make_the_curve_rise():
    result, _ = measured(CURVE, lambda size: {2: 0.1, 4: 0.4, 5: 0.2}[size])
    assert (np.diff(result) <= 0).all()
    assert result[2] == pytest.approx(0.4, rel=1e-6) and result[4] == pytest.approx(0.4, rel=1e-6)


def test_a_change_too_small_to_measure_leaves_the_order_of_the_sizes():
    result, _ = measured(CURVE, lambda size: -1e-9)
    assert (np.diff(result) < 0).all() and result[0] < 1e-8


def test_a_layer_without_error_is_not_measured():
    curve = np.array([1.0, 0.0, 0.0])
    result, sizes = measured(curve, lambda size: pytest.fail("there is nothing to measure"))
    assert result.tolist() == curve.tolist()
    assert sizes == []


def test_where_no_size_reaches_a_level_the_full_size_is_measured():
    curve = np.array([1.0, 0.9, 0.6, 0.5])
    result, sizes = measured(curve, lambda size: 2 * curve[size])
    assert set(sizes) == {3}
    assert np.allclose(result[1:], 2 * curve[1:], rtol=1e-6)


def test_a_layer_measured_once_has_an_output_curve_in_proportion_to_its_own_error():
    sizes = measured_sizes(CURVE)
    assert sizes == [4]  # the first size with an error of at most 0.08
    assert np.allclose(output_curve(CURVE, {4: 0.2})[1:], CURVE[1:] * 0.2 / 0.05, rtol=1e-6)


def test_a_step_that_was_not_measured_takes_the_change_at_an_equal_error_of_the_layer():
    other = np.array([1.0, 0.3, 0.05, 0.04, 0.0])
    assert in_proportion(other, CURVE, {4: 0.2}) == {2: pytest.approx(0.2)}
    other[2] = 0.025  # half of the error
    found = in_proportion(other, CURVE, {4: 0.2})
    assert found == {2: pytest.approx(0.1)}
    assert np.allclose(output_curve(other, found)[1:], other[1:] * 4, rtol=1e-6)
    assert in_proportion(np.array([1.0, 0.0]), CURVE, {4: 0.2}) == {} == in_proportion(other, CURVE, {})


def test_approximations_are_dense_kernels_of_the_steps_alone():
    problem = make(seed=1, noise=0.0, activation="identity").problem
    n, c = problem.weight.shape[:2]
    order = selection.retention_order(problem, "backward")
    limits = {"spatial": min(c * 3, n * 3), "channel": n, "prune": c}
    steps = approximations(problem, order)
    assert set(steps) == set(limits)
    for step, approximate in steps.items():
        errors = [problem.error(approximate(size)[0]) for size in (1, max(2, limits[step] // 2), limits[step])]
        assert errors[0] > errors[1] > errors[2] - 1e-12 and errors[2] < 1e-9, step
    kernel, bias = steps["prune"](2)
    kept = sorted(order[:2])
    assert kernel.shape == problem.weight.shape and bias.shape == (n,)
    assert kernel.abs().sum(dim=(0, 2, 3)).nonzero().flatten().tolist() == kept
    # A kernel of rank r: (c·kh, n·kw) for the split, (n, c·kh·kw) for the decomposition.
    split = steps["spatial"](2)[0].permute(1, 2, 0, 3).reshape(c * 3, n * 3)
    assert torch.linalg.matrix_rank(split) == 2
    assert torch.linalg.matrix_rank(steps["channel"](2)[0].flatten(1)) == 2


def test_without_an_order_of_the_channels_there_is_no_pruning():
    assert set(approximations(make().problem)) == {"spatial", "channel"}


@pytest.mark.parametrize("metric", [None, output_metric(6)])
def test_approximations_from_parts_that_are_known_are_those_of_the_steps(metric):
    problem = dataclasses.replace(make(seed=1, n=6).problem, metric=metric)
    known = {
        "factors": spatial.closed_form(problem, spatial.max_rank(problem)),
        "solution": least_squares(problem.moments, ridge="evidence", prior=problem.matrix()),
    }
    for given in ({}, known):
        steps = approximations(problem, **given)
        for size in (1, 3, 6):
            split = spatial.split(problem, size).compose()
            whole = channel.decompose(problem, size, activation_aware=False).compose()
            for wanted, got in zip((*split, *whole), (*steps["spatial"](size), *steps["channel"](size))):
                assert torch.allclose(got, wanted, rtol=1e-8, atol=1e-10)


def test_levels_of_the_channel_step_share_one_fit(monkeypatch):
    problem, count = make(n=6).problem, []
    monkeypatch.setattr(linalg, "choose_ridge", lambda *_: count.append(1) or 1e-3)
    step = approximations(problem)["channel"]
    for size in (1, 2, 3):
        step(size)
    assert len(count) == 1


def test_a_known_ridge_is_that_of_the_pruned_and_of_the_split_layer():
    problem = make(n_rows=60, seed=1, noise=0.5, activation="identity").problem
    order = selection.retention_order(problem, "backward")
    known, found = approximations(problem, order, ridge=0.3), approximations(problem, order)
    chosen = Selection(torch.tensor(sorted(order[:2])), problem.n_channels)
    kept = known["prune"](2)[0][:, chosen.channels]
    assert torch.equal(kept, selection.reconstruct(problem, chosen, ridge=0.3).weight)
    assert torch.equal(known["spatial"](3)[0], spatial.split(problem, 3, ridge=0.3).compose()[0])
    assert not any(torch.allclose(known[step](2)[0], found[step](2)[0], rtol=1e-3) for step in ("prune", "spatial"))
