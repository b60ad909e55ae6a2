import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import make, output_metric, relative

from decomp.errors import DecompError, NumericalError
from decomp.problem.factors import Selection
from decomp.problem.layer_problem import columns_of
from decomp.problem.moments import Moments
from decomp.solvers import elimination, lasso, selection
from decomp.solvers.elimination import eliminate
from decomp.solvers.linalg import least_squares
from decomp.solvers.selection import reconstruct, select
from decomp.solvers.selectors import CHANNEL_SELECTORS


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


def test_channels_that_carry_nothing_go_first_and_those_that_carry_all_stay():
    def few(X, Y, weight):
        weight[:, [0, 2, 3, 5, 6]] = 0
        Y[:] = X.flatten(1) @ weight.flatten(1).T

    rows = make(c=7, n=4, kernel=(2, 2), noise=0.0, change=few)
    assert set(select(rows.problem, 2, "backward").channels.tolist()) == {1, 4}
    assert set(select(rows.problem, 2, "lasso").channels.tolist()) == {1, 4}


def test_backward_comes_close_to_the_best_subset():
    rows = make(c=8, n=5, kernel=(2, 2), seed=2)
    chosen = select(rows.problem, 4, "backward").channels.tolist()
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


def awkward(X, Y, weight):
    X[:, 3], weight[:, 3] = X[:, 5], weight[:, 5]
    X[:, 1] = 0
    X[:, 2] = 1.7
    weight[:, 4] = 0


@pytest.mark.parametrize("selector", CHANNEL_SELECTORS)
@pytest.mark.parametrize("change", [None, awkward])
@pytest.mark.parametrize("n_rows", [2, 30, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_selector_gives_every_count_and_a_finite_layer(selector, change, n_rows, dtype):
    rows = make(n_rows=n_rows, c=7, n=4, kernel=(2, 2), change=change, dtype=dtype)
    for keep in range(1, 8):
        chosen = select(rows.problem, keep, selector)
        assert len(chosen) == keep and chosen.n_total == 7
        assert torch.equal(chosen.channels, select(rows.problem, keep, selector).channels)
        weight, bias = reconstruct(rows.problem, chosen)
        assert weight.shape == (4, keep, 2, 2) and weight.dtype == dtype
        assert torch.isfinite(weight).all() and torch.isfinite(bias).all()


@pytest.mark.parametrize("selector", ["backward", "l1", "max-response", "first-k", "random"])
def test_the_order_of_retention_is_that_of_the_choices(selector):
    rows = make(c=7, n=4, kernel=(2, 2))
    order = selection.retention_order(rows.problem, selector, seed=3)
    assert sorted(order) == list(range(7))
    for keep in range(1, 8):
        assert sorted(order[:keep]) == select(rows.problem, keep, selector, seed=3).channels.tolist()


def test_the_baselines_do_what_their_names_say():
    rows = make(c=7, n=4, kernel=(2, 2))
    sums = rows.problem.weight.abs().sum(dim=(0, 2, 3))
    assert select(rows.problem, 3, "l1").channels.tolist() == sums.topk(3).indices.sort().values.tolist()
    contributions = torch.einsum("icyx,ncyx->icn", rows.X - rows.X.mean(0), rows.problem.weight)
    strongest = contributions.square().sum(dim=(0, 2)).topk(3).indices.sort().values
    assert select(rows.problem, 3, "max-response").channels.tolist() == strongest.tolist()
    assert select(rows.problem, 3, "first-k").channels.tolist() == [0, 1, 2]
    draws = {tuple(select(rows.problem, 3, "random", seed=seed).channels.tolist()) for seed in range(20)}
    assert len(draws) > 5


@pytest.mark.parametrize("n_rows", [300, 20])
def test_reconstruction_is_least_squares_with_an_intercept(n_rows):
    rows = make(n_rows=n_rows, c=5, n=4, kernel=(2, 2))
    chosen = Selection(torch.tensor([0, 2, 3]), 5)
    found = reconstruct(rows.problem, chosen, ridge=1e-10)
    X = rows.X[:, chosen.channels].flatten(1)
    design = np.concatenate([X.numpy(), np.ones((n_rows, 1))], axis=1)
    wanted = np.linalg.lstsq(design, rows.Y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.weight.flatten(1).T, wanted[:-1], atol=1e-6)
    np.testing.assert_allclose(found.bias, wanted[-1], atol=1e-6)
    assert found.report["error"] == pytest.approx(relative(rows.Y, X @ found.weight.flatten(1).T), rel=1e-6)


@pytest.mark.parametrize("n_rows", [300, 8])
def test_the_mean_error_of_the_reconstructed_layer_is_zero(n_rows):
    rows = make(n_rows=n_rows, c=5, n=4)
    chosen = select(rows.problem, 2, "backward")
    weight, bias = reconstruct(rows.problem, chosen)
    residual = rows.Y - rows.X[:, chosen.channels].flatten(1) @ weight.flatten(1).T - bias
    assert residual.mean(0).abs().max() < 1e-10


@pytest.mark.parametrize("n_rows", [300, 8])
def test_all_channels_of_an_unchanged_network_give_the_layer_back(n_rows):
    rows = make(n_rows=n_rows, noise=0.0)
    weight, bias = reconstruct(rows.problem, Selection(torch.arange(4), 4))
    assert torch.allclose(weight, rows.problem.weight, atol=1e-10)
    assert torch.allclose(bias, rows.problem.bias, atol=1e-9)


def test_a_dead_channel_keeps_its_weights():
    def dead(X, Y, weight):
        X[:, 1] = 0

    rows = make(change=dead)
    weight, _ = reconstruct(rows.problem, Selection(torch.tensor([0, 1, 2]), 4))
    assert torch.allclose(weight[:, 1], rows.problem.weight[:, 1], atol=1e-12)
    assert not torch.allclose(weight[:, 0], rows.problem.weight[:, 0], atol=1e-3)


def test_refitting_lowers_the_error_and_more_channels_lower_it_further():
    rows = make(c=7, n=4)
    before = 1.0
    for keep in range(1, 8):
        chosen = select(rows.problem, keep, "backward")
        report = reconstruct(rows.problem, chosen, ridge=1e-8).report
        kept_only = rows.X[:, chosen.channels].flatten(1) @ rows.problem.weight[:, chosen.channels].flatten(1).T
        assert report["error_before"] == pytest.approx(relative(rows.Y, kept_only))
        assert report["error"] <= report["error_before"]
        assert report["error"] <= before + 1e-9
        before = report["error"]
        assert reconstruct(rows.problem, chosen).report["error"] <= report["error_before"]


def test_the_metric_counts_in_the_report_but_not_in_the_weights():
    rows = make(c=5, n=4)
    F = output_metric(4)
    chosen = Selection(torch.tensor([1, 3]), 5)
    weighted = reconstruct(dataclasses.replace(rows.problem, metric=F), chosen)
    plain = reconstruct(rows.problem, chosen)
    assert torch.equal(weighted.weight, plain.weight)
    fitted = rows.X[:, chosen.channels].flatten(1) @ plain.weight.flatten(1).T
    assert weighted.report["error"] == pytest.approx(relative(rows.Y, fitted, F))


def test_float32_is_within_1e_4_of_float64():
    single, double = make(c=6, dtype=torch.float32), make(c=6)
    for selector in ("lasso", "backward"):
        chosen = select(double.problem, 3, selector)
        assert torch.equal(select(single.problem, 3, selector).channels, chosen.channels)
    weight, wanted = reconstruct(single.problem, chosen).weight.double(), reconstruct(double.problem, chosen).weight
    assert (weight - wanted).norm() <= 1e-4 * wanted.norm()


def test_what_cannot_be_selected_is_refused():
    problem = make().problem
    with pytest.raises(DecompError, match="selector: must be one of lasso, backward, .* got 'magic'"):
        select(problem, 2, "magic")
    for selector in CHANNEL_SELECTORS:
        with pytest.raises(DecompError, match=r"conv: the number of channels kept must be in 1..4 \(c\), got 5"):
            select(problem, 5, selector)
    with pytest.raises(DecompError, match="must be in 1..4"):
        eliminate(problem, stop_at=0)
    with pytest.raises(DecompError, match="conv: the selection must be of 4 channels, got 5"):
        reconstruct(problem, Selection(torch.tensor([0]), 5))
    problem.moments.K[0, 0] = float("nan")
    for selector in CHANNEL_SELECTORS:
        with pytest.raises(NumericalError, match="entries of K NaN or Inf"):
            select(problem, 2, selector)


def test_backward_beats_the_lasso_and_the_lasso_the_baselines_on_the_whole():
    """Not at every size of every problem, but on the whole: what the solvers are there for."""
    totals = dict.fromkeys(CHANNEL_SELECTORS, 0.0)
    for seed in range(6):
        rows = make(n_rows=600, c=12, n=6, kernel=(2, 2), seed=seed)
        for selector, keep in itertools.product(CHANNEL_SELECTORS, (3, 6, 9)):
            totals[selector] += reconstruct(rows.problem, select(rows.problem, keep, selector)).report["error"]
    assert totals["backward"] < totals["lasso"] < min(totals[s] for s in ("l1", "first-k", "random"))


def test_the_narrowed_fit_and_the_moments_agree():
    rows = make(c=5)
    chosen = lasso.select(rows.problem, 3)
    taken = rows.problem.moments.take_inputs(columns_of(chosen.channels, (3, 3)))
    prior = rows.problem.narrowed(chosen).matrix()
    weight, _ = reconstruct(rows.problem, chosen, ridge=1e-3)
    assert torch.allclose(weight.flatten(1).T, least_squares(taken, ridge=1e-3, prior=prior).weight)
