import dataclasses
import itertools

import numpy as np
import pytest
import torch
from layer_problems import make, output_metric, relative

from decomp.errors import DecompError, NumericalError
from decomp.problem.factors import Selection
from decomp.problem.layer_problem import columns_of
from decomp.solvers import lasso, selection
from decomp.solvers.linalg import least_squares
from decomp.solvers.selection import reconstruct, select
from decomp.solvers.selectors import CHANNEL_SELECTORS


def test_channels_that_carry_nothing_go_first_and_those_that_carry_all_stay():
    def few(X, Y, weight):
        weight[:, [0, 2, 3, 5, 6]] = 0
        Y[:] = X.flatten(1) @ weight.flatten(1).T

    rows = make(c=7, n=4, kernel=(2, 2), noise=0.0, change=few)
    assert set(select(rows.problem, 2, "backward").channels.tolist()) == {1, 4}
    assert set(select(rows.problem, 2, "lasso").channels.tolist()) == {1, 4}


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


def test_given_scores_choose_the_highest_and_of_equal_ones_those_in_front():
    problem = make(c=5, n=4, kernel=(2, 2)).problem
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0])
    chosen = selection.select_by(problem, 3, scores, "fpgm")
    assert chosen.channels.tolist() == [1, 2, 3] and chosen.report == {"selector": "fpgm"}
    with pytest.raises(DecompError, match="the number of channels kept must be in 1..5"):
        selection.select_by(problem, 6, scores, "fpgm")
