import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import make, output_metric
from sklearn.linear_model import Lasso

from decomp.errors import DecompError, NumericalError
from decomp.problem.moments import Moments
from decomp.solvers import lasso, linalg


def dense_design(rows, metric=None):
    """The (N·n, c) regression that the Gram matrix stands for, columns and target centred as the intercept asks."""
    root = torch.eye(rows.Y.shape[1]).double() if metric is None else linalg.metric_roots(metric)[0]
    contributions = torch.einsum("icyx,ncyx->icn", rows.X - rows.X.mean(0), rows.problem.weight) @ root
    target = (rows.Y - rows.Y.mean(0)) @ root
    return contributions.transpose(1, 2).reshape(-1, rows.X.shape[1]).numpy(), target.reshape(-1).numpy()


@pytest.mark.parametrize("metric", [None, output_metric(6)])
@pytest.mark.parametrize("tile", [1, 3, 64])
def test_the_gram_matrix_is_that_of_the_dense_design(metric, tile, monkeypatch):
    monkeypatch.setattr(lasso, "TILE_CHANNELS", tile)
    rows = make(c=5, kernel=(2, 3))
    design, target = dense_design(rows, metric)
    G, g = lasso.channel_gram(dataclasses.replace(rows.problem, metric=metric))
    np.testing.assert_allclose(G, design.T @ design, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(g, design.T @ target, rtol=1e-8, atol=1e-8)


def solution(rows, keep):
    """Penalty and coefficients at the point of the path where the selection was made."""
    G, g = (tensor.numpy() for tensor in lasso.channel_gram(rows.problem))
    path = lasso.gram_path(G, g, len(rows.Y), stop_at=keep)
    knot = int(np.argmax((path.betas != 0).sum(axis=1) >= keep))
    return G, g, path.alphas[knot], path.betas[knot]


@settings(max_examples=20, deadline=None)
@given(c=st.integers(2, 12), seed=st.integers(0, 200), data=st.data())
def test_the_path_fulfils_the_optimality_conditions_and_closes_the_dual_gap(c, seed, data):
    rows = make(c=c, n=5, kernel=(2, 2), seed=seed)
    keep = data.draw(st.integers(1, c - 1))
    N = len(rows.Y)
    G, g, alpha, beta = solution(rows, keep)
    correlation = (g - G @ beta) / N
    active = beta != 0
    scale = np.abs(g).max() / N
    assert np.abs(correlation[active] - alpha * np.sign(beta[active])).max() < 1e-9 * scale
    assert np.abs(correlation).max() <= alpha + 1e-9 * scale
    design, target = dense_design(rows)
    residual = target - design @ beta
    primal = residual @ residual / (2 * N) + alpha * np.abs(beta).sum()
    # A point of the dual: the residual, brought within |Zᵀr|/N ≤ α.
    dual_point = residual * min(1.0, alpha * N / np.abs(design.T @ residual).max())
    dual = (target @ target - (target - dual_point) @ (target - dual_point)) / (2 * N)
    assert 0 <= primal - dual + 1e-12 < 1e-8 * (target @ target) / N


@pytest.mark.parametrize("keep", [1, 4, 9])
def test_sklearns_lasso_on_the_dense_rows_agrees(keep):
    rows = make(c=10, n=5, kernel=(2, 2), seed=3)
    _, _, alpha, beta = solution(rows, keep)
    design, target = dense_design(rows)
    # Its objective divides by the number of dense rows, N·n, not by N.
    model = Lasso(alpha=alpha / rows.Y.shape[1], fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(design, target)
    np.testing.assert_allclose(model.coef_, beta, atol=1e-6 * np.abs(beta).max())
    selection = lasso.select(rows.problem, keep)
    assert selection.channels.tolist() == np.flatnonzero(beta).tolist()
    assert selection.report["alpha"] == pytest.approx(alpha)


def awkward(X, Y, weight):
    """Copies (twice), a near copy, a dead channel, a constant one, one without weights, one with twice the size."""
    X[:, 3], weight[:, 3] = X[:, 7], weight[:, 7]
    X[:, 8], weight[:, 8] = X[:, 7], weight[:, 7]
    X[:, 4] = X[:, 0] * (1 + 1e-9)
    weight[:, 4] = weight[:, 0]
    X[:, 5] = 0
    X[:, 6] = 1.7
    weight[:, 2] = 0
    X[:, 9], weight[:, 9] = 2 * X[:, 10], weight[:, 10] / 2


@pytest.mark.parametrize("change", [None, awkward])
@pytest.mark.parametrize("n_rows", [3, 60, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_count_is_exact(change, n_rows, dtype):
    rows = make(n_rows=n_rows, n=5, c=12, kernel=(2, 2), change=change, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for keep in range(1, 13):
            chosen = lasso.select(rows.problem, keep)
            assert len(chosen) == keep
            assert torch.equal(chosen.channels, lasso.select(rows.problem, keep).channels)


def test_copies_and_dead_channels_come_last():
    rows = make(n=5, c=12, kernel=(2, 2), change=awkward)
    useless = {2, 5, 6}
    chosen = lasso.select(rows.problem, 9)
    assert not useless & set(chosen.channels.tolist())
    # One of three copies says all there is; of two copies of different size the path takes one.
    seven = set(lasso.select(rows.problem, 5).channels.tolist())
    assert len(seven & {3, 7, 8}) <= 1 and len(seven & {0, 4}) <= 1 and len(seven & {9, 10}) <= 1


def test_a_path_that_ends_early_is_completed_by_strength():
    def doubled(X, Y, weight):
        X[:, 4:], weight[:, 4:] = X[:, :4], weight[:, :4]

    rows = make(n=5, c=8, kernel=(2, 2), change=doubled)
    chosen = lasso.select(rows.problem, 7)
    assert chosen.report["completed"] >= 1
    G, _ = lasso.channel_gram(rows.problem)
    missing = (set(range(8)) - set(chosen.channels.tolist())).pop()
    assert G[missing, missing] <= min(float(G[i, i]) for i in range(8)) * (1 + 1e-9)


def test_several_that_enter_at_once_are_cut_to_the_count(monkeypatch):
    rows = make(n=5, c=4, kernel=(2, 2))
    betas = np.array([[0.0, 0, 0, 0], [0.5, 0.1, -0.4, 0.2]])
    monkeypatch.setattr(lasso, "gram_path", lambda *_, **__: lasso.LassoPath(np.array([1.0, 0.5]), betas, True))
    G, _ = lasso.channel_gram(rows.problem)
    strength = np.abs(betas[1]) * np.sqrt(np.diag(G.numpy()))
    chosen = lasso.select(rows.problem, 2)
    assert chosen.report["cut"] == 2
    assert set(chosen.channels.tolist()) == set(np.argsort(-strength)[:2].tolist())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), scale=st.sampled_from([1e-5, 1e5]), response_scale=st.sampled_from([1e-6, 1e4]))
def test_scales_do_not_change_the_choice_and_orders_pass_through(seed, scale, response_scale):
    rows = make(c=9, n=5, kernel=(2, 2), seed=seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    scaled = dataclasses.replace(
        rows.problem,
        weight=rows.problem.weight * response_scale / scale,
        moments=Moments.of_rows(rows.flat * scale, rows.Y * response_scale),
    )
    permuted = rows.problem.narrowed(order)
    for keep in (1, 3, 6, 8):
        chosen = lasso.select(rows.problem, keep).channels
        assert torch.equal(lasso.select(scaled, keep).channels, chosen)
        assert torch.equal(order[lasso.select(permuted, keep).channels].sort().values, chosen)


def test_stopping_early_gives_the_head_of_the_whole_path():
    rows = make(c=12, n=5, kernel=(2, 2))
    G, g = (tensor.numpy() for tensor in lasso.channel_gram(rows.problem))
    whole, head = lasso.gram_path(G, g, 300), lasso.gram_path(G, g, 300, stop_at=2)
    shared = min(len(head.alphas), len(whole.alphas))
    np.testing.assert_allclose(head.alphas[:shared], whole.alphas[:shared], rtol=1e-12)
    assert (np.diff(whole.alphas) <= 0).all() and whole.ended
    ols = np.linalg.solve(G, g)
    np.testing.assert_allclose(whole.betas[-1], ols, rtol=1e-4, atol=1e-5)


def test_the_order_of_entry_starts_with_the_choices():
    rows = make(c=12, n=5, kernel=(2, 2), change=awkward)
    order = lasso.entry_order(rows.problem)
    assert sorted(order) == list(range(12))
    for keep in (1, 2, 3):
        assert set(order[:keep]) == set(lasso.select(rows.problem, keep).channels.tolist())


def test_what_never_enters_follows_by_strength(monkeypatch):
    rows = make(c=5, kernel=(2, 2))
    betas = np.array([[0.0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0]])
    monkeypatch.setattr(lasso, "gram_path", lambda *_, **__: lasso.LassoPath(np.array([1.0, 0.5]), betas, True))
    strength = lasso.channel_gram(rows.problem)[0].diagonal()
    others = sorted({0, 1, 2, 4}, key=lambda i: -float(strength[i]))
    assert others != [0, 1, 2, 4], "the order must not be the trivial one"
    assert lasso.entry_order(rows.problem) == [3, *others]


def test_the_metric_moves_the_choice():
    rows = make(c=8, n=4, kernel=(2, 2), seed=5)
    first_only = torch.diag(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)) + 1e-9 * torch.eye(4).double()
    weighted = dataclasses.replace(rows.problem, metric=first_only)
    alone = dataclasses.replace(
        rows.problem,
        weight=rows.problem.weight[:1],
        bias=rows.problem.bias[:1],
        moments=Moments.of_rows(rows.flat, rows.Y[:, :1]),
    )
    problems = (weighted, alone, rows.problem)
    choices = [[lasso.select(p, keep).channels.tolist() for keep in range(1, 8)] for p in problems]
    assert choices[0] == choices[1] != choices[2]


def test_counts_out_of_range_and_broken_rows_are_refused():
    problem = make().problem
    for keep in (0, 5):
        with pytest.raises(DecompError, match=rf"conv: the number of channels kept must be in 1..4 \(c\), got {keep}"):
            lasso.select(problem, keep)
    problem.moments.C[0, 0] = float("inf")
    with pytest.raises(NumericalError, match="entries of C NaN or Inf"):
        lasso.select(problem, 2)
