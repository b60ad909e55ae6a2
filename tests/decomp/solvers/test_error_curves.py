import dataclasses

import numpy as np
import pytest
import torch
from layer_problems import make, output_metric

from decomp.errors import DecompError, NumericalError
from decomp.problem import moments
from decomp.problem.layer_problem import columns_of
from decomp.problem.moments import Moments
from decomp.solvers import error_curves as curves
from decomp.solvers import linalg, selection, spatial
from decomp.solvers.channel import decompose
from decomp.solvers.selectors import CHANNEL_SELECTORS

RIDGE = 1e-3


def fitted_and_held_out(metric=None, **options):
    rows = make(n_rows=500, **options)
    problem = dataclasses.replace(rows.problem, moments=Moments.of_rows(rows.flat[:350], rows.Y[:350]), rows=None)
    if metric is not None:
        problem = dataclasses.replace(problem, metric=metric)
    return problem, Moments.of_rows(rows.flat[350:], rows.Y[350:])


def errors_of(weights, problem, held_out, columns=None):
    """Errors of one kernel after another on the rows judged, and the least so far, as the curves promise."""
    judged = problem.moments if held_out is None else held_out
    found = [1.0]
    for i, weight in enumerate(weights):
        taken = judged if columns is None else judged.take_inputs(columns[i])
        found.append(taken.error(weight.flatten(1).T, problem.metric))
    return np.minimum.accumulate(found)


@pytest.mark.parametrize("metric", [None, output_metric(6)])
@pytest.mark.parametrize("on_held_out", [False, True])
@pytest.mark.parametrize("kernel, n", [((3, 3), 6), ((2, 3), 6), ((4, 2), 6)])
def test_the_spatial_curve_is_the_error_of_every_split(metric, on_held_out, kernel, n):
    problem, held_out = fitted_and_held_out(metric, n=n, c=4, kernel=kernel)
    held_out = held_out if on_held_out else None
    curve = curves.spatial_curve(problem, held_out, ridge=RIDGE)
    assert len(curve) == spatial.max_rank(problem) + 1
    kernels = [spatial.split(problem, rank, ridge=RIDGE).compose()[0] for rank in range(1, len(curve))]
    # The ridge is relative to the mean diagonal of the features, which differs a little from rank to rank.
    np.testing.assert_allclose(curve, errors_of(kernels, problem, held_out), atol=1e-4)


@pytest.mark.parametrize("metric", [None, output_metric(6)])
@pytest.mark.parametrize("on_held_out", [False, True])
def test_the_channel_curve_is_the_error_of_every_decomposition(metric, on_held_out):
    problem, held_out = fitted_and_held_out(metric)
    held_out = held_out if on_held_out else None
    curve = curves.channel_curve(problem, held_out, ridge=RIDGE)
    kernels = [decompose(problem, rank, activation_aware=False, ridge=RIDGE).compose()[0] for rank in range(1, 7)]
    np.testing.assert_allclose(curve, errors_of(kernels, problem, held_out), rtol=1e-9)


@pytest.mark.parametrize("metric", [None, output_metric(6)])
@pytest.mark.parametrize("on_held_out", [False, True])
@pytest.mark.parametrize("selector", CHANNEL_SELECTORS)
def test_the_selection_curve_is_the_error_of_every_width(metric, on_held_out, selector):
    problem, held_out = fitted_and_held_out(metric, c=6)
    held_out = held_out if on_held_out else None
    curve = curves.selection_curve(problem, held_out, selector=selector, ridge=RIDGE)
    order = selection.retention_order(problem, selector)
    keeps = [torch.tensor(sorted(order[:keep])) for keep in range(1, 7)]
    kernels = [selection.reconstruct(problem, selection.Selection(keep, 6), ridge=RIDGE).weight for keep in keeps]
    columns = [columns_of(keep, (3, 3)) for keep in keeps]
    np.testing.assert_allclose(curve, errors_of(kernels, problem, held_out, columns), atol=1e-4)
    again = curves.selection_curve(problem, held_out, order=order, ridge=RIDGE)
    np.testing.assert_array_equal(curve, again)


def test_nested_errors_are_those_of_separate_fits():
    problem, held_out = fitted_and_held_out()
    moments, prior = problem.moments, problem.matrix()
    penalty = RIDGE * moments.K.diagonal().mean()
    for judged in (None, held_out):
        curve = curves.nested_errors(moments, 4, judged, prior=prior, ridge=RIDGE)
        found = [1.0]
        for stop in range(4, 37, 4):
            K = moments.K[:stop, :stop] + penalty * torch.eye(stop).double()
            B = torch.linalg.solve(K, moments.C[:stop] + penalty * prior[:stop])
            found.append((judged or moments).take_inputs(torch.arange(stop)).error(B))
        np.testing.assert_allclose(curve, np.minimum.accumulate(found), rtol=1e-9)


def test_the_ridge_of_a_curve_is_chosen_once_without_the_prior():
    problem, held_out = fitted_and_held_out(c=6)
    ridge = linalg.choose_ridge(problem.moments)
    got = curves.selection_curve(problem, held_out, selector="first-k")
    wanted = curves.selection_curve(problem, held_out, selector="first-k", ridge=ridge)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("n_rows", [2, 36, 40, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curves_start_at_one_never_rise_and_are_finite(n_rows, dtype):
    def awkward(X, Y, weight):
        X[:, 1] = 0
        X[:, 2] = 1.7
        Y[:, 0] = 0.5

    rows = make(n_rows=n_rows, change=awkward, dtype=dtype)
    other = make(n_rows=200, change=awkward, dtype=dtype, seed=1)
    held_out = Moments.of_rows(other.flat, other.Y)
    for judged in (None, held_out):
        for found in (
            curves.spatial_curve(rows.problem, judged),
            curves.channel_curve(rows.problem, judged),
            *(curves.selection_curve(rows.problem, judged, selector=s) for s in CHANNEL_SELECTORS),
        ):
            assert found[0] == 1.0 and np.isfinite(found).all()
            assert (np.diff(found) <= 0).all() and (found >= 0).all()


def test_an_unchanged_layer_ends_at_no_error():
    rows = make(noise=0.0)
    for found in (
        curves.spatial_curve(rows.problem),
        curves.channel_curve(rows.problem),
        curves.selection_curve(rows.problem),
    ):
        assert found[-1] < 1e-10


def test_responses_that_do_not_vary_have_no_error():
    def silent(X, Y, weight):
        Y[:] = 0.7

    problem = make(change=silent).problem
    assert not curves.spatial_curve(problem).any()
    assert not curves.channel_curve(problem).any()
    assert not curves.selection_curve(problem).any()


def test_what_has_no_curve_is_refused():
    problem = make().problem
    with pytest.raises(DecompError, match="order must name each of its 4 channels once"):
        curves.selection_curve(problem, order=[0, 1, 2, 2])
    with pytest.raises(DecompError, match="blocks of 5 must divide the inputs, got 36"):
        curves.nested_errors(problem.moments, 5)
    with pytest.raises(DecompError, match="conv: a spatial split needs a kernel of more than one row and column"):
        curves.spatial_curve(make(kernel=(1, 3)).problem)
    problem.moments.K[0, 0] = float("nan")
    for curve in (curves.spatial_curve, curves.channel_curve, curves.selection_curve):
        with pytest.raises(NumericalError, match="entries of K NaN or Inf"):
            curve(problem)


@pytest.mark.parametrize("n_held_out", [None, 25, 400])
def test_curves_of_few_rows_are_those_of_the_whole_matrix(n_held_out, monkeypatch):
    rows = make(c=10, n=6, kernel=(3, 3), n_rows=445, noise=0.02)
    flat, Y = rows.flat[45:], rows.Y[45:]
    found = []
    for many in (10**9, 1):
        monkeypatch.setattr(moments, "MANY_INPUTS", many)
        held_out = None if n_held_out is None else Moments.of_rows(flat[:n_held_out], Y[:n_held_out])
        own = Moments.of_rows(rows.flat[:45], rows.Y[:45])
        problem = dataclasses.replace(rows.problem, moments=own, metric=output_metric(6))
        pruned = curves.selection_curve(problem, held_out, order=list(range(10)))
        spatial_curves = [curves.spatial_curve(problem, held_out, ridge=ridge) for ridge in ("evidence", 1e-4)]
        found.append((pruned, *spatial_curves, curves.channel_curve(problem, held_out)))
    for whole, few in zip(*found):
        assert few == pytest.approx(whole, rel=1e-6, abs=1e-9) and len(set(whole.round(6))) > 3
