import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import make, output_metric

from decomp.errors import DecompError, NumericalError
from decomp.problem import moments
from decomp.problem.moments import Moments
from decomp.solvers import elimination
from decomp.solvers.elimination import eliminate
from decomp.solvers.linalg import choose_ridge


def penalised_error(rows, channels, ridge, metric=None):
    """Least squares on some channels with the ridge towards their old weights, from the rows: the slow way."""
    F = torch.eye(rows.Y.shape[1]).double() if metric is None else metric
    X = rows.X[:, channels].flatten(1)
    X, Y = X - X.mean(0), rows.Y - rows.Y.mean(0)
    W = rows.problem.weight[:, channels].flatten(1).T
    penalty = ridge * float(rows.problem.moments.K.diagonal().mean())
    B = torch.linalg.solve(X.T @ X + penalty * torch.eye(X.shape[1]).double(), X.T @ Y + penalty * W)
    E = Y - X @ B
    squared = ((E @ F) * E).sum() + penalty * ((B - W) @ F * (B - W)).sum()
    return float(squared / ((Y @ F) * Y).sum())


@pytest.mark.parametrize("metric", [None, output_metric(5)])
@pytest.mark.parametrize("ridge", [1e-8, 1e-2])
@pytest.mark.parametrize("delay", [1, 2, 32])
def test_each_elimination_is_the_cheapest_and_costs_what_a_refit_says(metric, ridge, delay, monkeypatch):
    monkeypatch.setattr(elimination, "DELAY", delay)
    rows = make(c=9, n=5, kernel=(2, 2))
    found = eliminate(dataclasses.replace(rows.problem, metric=metric), ridge=ridge)
    left = list(range(9))
    assert found.errors[0] == pytest.approx(penalised_error(rows, left, ridge, metric), rel=1e-6)
    for gone, error in zip(found.order, found.errors[1:]):
        candidates = {i: penalised_error(rows, [j for j in left if j != i], ridge, metric) for i in left}
        assert candidates[gone] == pytest.approx(min(candidates.values()), rel=1e-9)
        assert error == pytest.approx(candidates[gone], rel=1e-5)
        left.remove(gone)
    assert len(found.order) == 8


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 200), stop=st.integers(1, 7))
def test_stopping_early_is_the_head_of_the_whole_elimination(seed, stop):
    rows = make(c=7, n=4, kernel=(2, 2), seed=seed)
    whole, head = eliminate(rows.problem), eliminate(rows.problem, stop_at=stop)
    assert head.order == whole.order[: 7 - stop]
    assert head.errors == pytest.approx(whole.errors[: 8 - stop])


def test_backward_comes_close_to_the_best_subset():
    rows = make(c=8, n=5, kernel=(2, 2), seed=2)
    chosen = sorted(set(range(8)) - set(eliminate(rows.problem, stop_at=4).order))
    errors = sorted(penalised_error(rows, list(s), 1e-8) for s in itertools.combinations(range(8), 4))
    assert penalised_error(rows, chosen, 1e-8) <= errors[len(errors) // 20]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), scale=st.sampled_from([1e-4, 1e4]))
def test_scales_do_not_change_backwards_choice_and_orders_pass_through(seed, scale):
    rows = make(c=7, n=4, kernel=(2, 2), seed=seed)
    scaled = dataclasses.replace(
        rows.problem, weight=rows.problem.weight / scale, moments=Moments.of_rows(rows.flat * scale, rows.Y)
    )
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    whole = eliminate(rows.problem).order
    assert eliminate(scaled).order == whole
    assert [int(order[i]) for i in eliminate(rows.problem.narrowed(order)).order] == whole


def test_the_ridge_of_the_evidence_is_chosen_once_and_reported():
    rows = make(c=6, n=4, kernel=(2, 2), n_rows=40)
    found = eliminate(rows.problem)
    ridge = found.report["ridge"]
    assert ridge == choose_ridge(rows.problem.moments) != choose_ridge(rows.problem.moments, rows.problem.matrix())
    assert eliminate(rows.problem, ridge=ridge).order == found.order
    left = list(range(6))
    for removed, error in zip(found.order, found.errors[1:]):
        left.remove(removed)
        assert error == pytest.approx(penalised_error(rows, left, ridge), rel=1e-5)


def test_errors_rise_with_every_channel_that_is_removed():
    errors = eliminate(make(c=9, n=5, kernel=(2, 2), noise=0.5).problem, ridge=1e-8).errors
    assert all(after >= before - 1e-12 for before, after in zip(errors, errors[1:]))


@pytest.mark.parametrize("stop", [0, 5])
def test_counts_out_of_range_are_refused(stop):
    with pytest.raises(DecompError, match=rf"conv: the number of channels kept must be in 1..4 \(c\), got {stop}"):
        eliminate(make().problem, stop_at=stop)


def test_problems_that_are_not_finite_are_refused():
    problem = make().problem
    problem.moments.C[2, 1] = float("inf")
    with pytest.raises(NumericalError, match="entries of C NaN or Inf"):
        eliminate(problem)


@pytest.mark.parametrize("candidates", [1, 3, 32])
def test_several_removals_at_a_time_are_those_of_one_at_a_time(candidates, monkeypatch):
    rows = make(c=24, n=5, kernel=(2, 2), noise=0.5, seed=3)
    stage = elimination.EliminationRegression(rows.problem, 1e-3).on(torch.arange(24))
    single = list(stage.one_by_one(23))
    monkeypatch.setattr(elimination, "CANDIDATES", candidates)
    found = eliminate(rows.problem, ridge=1e-3)
    assert found.order == [channel for channel, _ in single]
    rises = np.diff(found.errors) * float(rows.problem.moments.S.trace())
    assert rises == pytest.approx([cost for _, cost in single], rel=1e-6)


def test_of_two_copies_of_a_channel_the_second_is_not_removed_with_the_first():
    def copied(X, Y, weight):
        X[:, 1] = X[:, 0]  # each is free to remove, both are not

    problem = make(c=8, n=5, kernel=(2, 2), change=copied).problem
    order = eliminate(problem, ridge=1e-8).order
    assert order[0] in (0, 1) and order[1] not in (0, 1)


def few(rows, monkeypatch, **changes):
    """The problem of few rows, without and with the treatment of few rows."""
    for many in (10**9, 1):
        monkeypatch.setattr(moments, "MANY_INPUTS", many)
        yield dataclasses.replace(rows.problem, moments=Moments.of_rows(rows.flat, rows.Y), **changes)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, "evidence"])
@pytest.mark.parametrize("delay", [1, 32])
def test_few_rows_give_the_order_and_the_errors_of_the_whole_matrix(ridge, delay, monkeypatch):
    monkeypatch.setattr(elimination, "DELAY", delay)
    rows = make(c=20, n=6, kernel=(3, 3), n_rows=50, noise=0.3)
    whole, short = few(rows, monkeypatch, metric=output_metric(6))
    assert short.moments.root.shape == (49, 180)
    regression = elimination.EliminationRegression(short, ridge)
    assert type(regression.on(torch.arange(20))) is elimination.FewRowsElimination
    assert type(regression.on(torch.arange(9))) is elimination.BlockElimination
    found = eliminate(short, ridge=ridge)
    monkeypatch.setattr(moments, "MANY_INPUTS", 10**9)
    expected = eliminate(whole, ridge=ridge)
    assert found.order == expected.order
    assert found.errors == pytest.approx(expected.errors, rel=1e-5, abs=1e-9)


def test_of_many_channels_one_may_go_that_costs_little_more_than_the_cheapest(monkeypatch):
    rows = make(c=40, n=4, kernel=(1, 1), noise=0.5)
    exact = eliminate(rows.problem, ridge=1e-3)
    monkeypatch.setattr(elimination, "MANY", 8)
    monkeypatch.setattr(elimination, "CANDIDATES", 4)
    near = eliminate(rows.problem, ridge=1e-3)
    assert len(set(near.order)) == 39
    assert max(a / b for a, b in zip(near.errors[1:], exact.errors[1:])) < 1.05
