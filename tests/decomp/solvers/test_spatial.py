import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import make, output_metric, relative, sizes

from decomp.errors import DecompError, NumericalError
from decomp.problem.factors import Geometry
from decomp.problem.moments import Moments
from decomp.solvers import linalg, spatial
from decomp.solvers.spatial import split

FIXED = {"ridge": 1e-10}


def problem_error(rows, factored):
    return relative(rows.Y, rows.fitted(factored), rows.problem.metric)


@settings(max_examples=25, deadline=None)
@given(size=sizes)
def test_full_rank_gives_the_weights_back(size):
    rows = make(noise=0.0, **size)
    for options in ({}, {"covariance_aware": False}, {"data": False}, {"alternate": 1}):
        factored = split(rows.problem, spatial.max_rank(rows.problem), **options)
        weight, bias = factored.compose()
        scale = rows.problem.weight.abs().max()
        assert (weight - rows.problem.weight).abs().max() <= 1e-10 * scale
        assert torch.allclose(bias, rows.problem.bias, rtol=0, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(size=sizes, aware=st.booleans())
def test_the_error_does_not_rise_with_the_rank_and_refits_do_not_raise_it(size, aware):
    rows = make(**size)
    before = 1.0
    for rank in range(1, spatial.max_rank(rows.problem) + 1):
        fitted = split(rows.problem, rank, covariance_aware=aware, **FIXED)
        report = fitted.report
        assert report["error"] == pytest.approx(problem_error(rows, fitted), abs=1e-10)
        assert report["error"] <= before + 1e-9
        assert report["error"] <= report["error_before_refit"] + 1e-12
        alternated = split(rows.problem, rank, covariance_aware=aware, alternate=2, **FIXED)
        assert alternated.report["error"] <= report["error"] + 1e-12
        if not aware:
            data_free = split(rows.problem, rank, data=False)
            assert report["error"] <= problem_error(rows, data_free) + 1e-9
        before = report["error"]


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("n_rows", [300, 40])
def test_the_chosen_ridge_does_not_undo_the_fit(rank, n_rows):
    rows = make(n_rows=n_rows)
    report = split(rows.problem, rank).report
    assert report["error"] <= report["error_before_refit"]
    assert split(rows.problem, rank, alternate=2).report["error"] <= report["error"]


def test_alternating_gains_where_there_is_something_to_gain():
    rows = make(n=8, c=6)
    plain, alternated = (split(rows.problem, 5, alternate=k, **FIXED).report for k in (0, 3))
    assert alternated["alternations"] == 3
    assert alternated["error"] < 0.97 * plain["error"]


@pytest.mark.parametrize("metric", [None, output_metric(8)])
def test_v_is_refitted_to_its_optimum_given_h(metric):
    rows = make(n=8, c=6)
    problem = dataclasses.replace(rows.problem, metric=metric)
    V, H = spatial.closed_form(problem, 5)

    def gradient(V):
        V = V.clone().requires_grad_()
        residual = rows.Y - rows.flat @ torch.einsum("pr,rnx->pxn", V, H).reshape(-1, 8)
        residual = residual - residual.mean(0)
        loss = ((residual if metric is None else residual @ metric) * residual).sum()
        return float(torch.autograd.grad(loss, V)[0].norm())

    assert gradient(spatial._refit_vertical(problem, V, H)) < 1e-4 * gradient(V)


def test_h_is_the_least_squares_fit_on_what_v_gives():
    rows = make(n=5, c=3, kernel=(3, 2))
    factored = split(rows.problem, 4, **FIXED)
    V = factored.factors[0].weight[..., 0]
    features = torch.einsum("ncyx,rcy->nrx", rows.X, V).flatten(1)
    design = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    wanted = torch.linalg.lstsq(design, rows.Y).solution
    horizontal = factored.factors[1]
    assert torch.allclose(horizontal.weight[:, :, 0].flatten(1).T, wanted[:-1], atol=1e-6)
    assert torch.allclose(horizontal.bias, wanted[-1], atol=1e-6)


@pytest.mark.parametrize("metric", [None, output_metric(6)])
def test_moments_through_v_are_those_of_the_features(metric):
    rows = make(kernel=(2, 3))
    V = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = torch.einsum("ncyx,cyr->nrx", rows.X, V.view(4, 2, 5)).flatten(1)
    got, wanted = spatial.through_vertical(rows.problem.moments, V, (2, 3)), Moments.of_rows(features, rows.Y)
    for name in ("K", "C", "S", "x_mean", "y_mean"):
        assert torch.allclose(getattr(got, name), getattr(wanted, name), atol=1e-9), name


@pytest.mark.parametrize("n", [2, 9])
@pytest.mark.parametrize("with_metric", [False, True])
def test_v_is_the_best_there_is_where_patch_columns_are_uncorrelated(n, with_metric):
    """Then the closed form is the optimum over V and H together: no alternation or other V does better."""
    rows = make(n_rows=50, n=n, c=3, kernel=(2, 3))
    moments, p = rows.problem.moments, 18
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    K = torch.einsum("ab,xz->axbz", A @ A.T, torch.eye(3).double()).reshape(p, p)
    C = K @ rows.problem.matrix()
    S = rows.problem.matrix().T @ C
    exact = Moments(K, C, S, moments.x_mean, moments.y_mean, 50)
    metric = output_metric(n) if with_metric else None
    problem = dataclasses.replace(rows.problem, moments=exact, metric=metric, rows=None)
    for rank in range(1, spatial.max_rank(problem)):
        found = split(problem, rank, **FIXED).report
        assert found["error"] == pytest.approx(found["error_before_refit"], abs=1e-7)
        assert split(problem, rank, alternate=3, **FIXED).report["error"] >= found["error"] - 1e-7
        plain = split(problem, rank, covariance_aware=False, **FIXED).report
        assert found["error"] <= plain["error"] + 1e-9


def test_the_metric_buys_error_where_it_counts():
    rows = make(n=8)
    F = torch.diag(torch.tensor([100.0, 100.0, 1, 1, 1, 1, 1, 1], dtype=torch.float64))
    weighted = dataclasses.replace(rows.problem, metric=F)
    plain, aware = split(rows.problem, 3, **FIXED), split(weighted, 3, **FIXED)
    assert relative(rows.Y, rows.fitted(aware), F) < 0.9 * relative(rows.Y, rows.fitted(plain), F)
    assert relative(rows.Y, rows.fitted(aware)) >= relative(rows.Y, rows.fitted(plain))


@pytest.mark.parametrize("options", [{}, {"alternate": 2}, {"covariance_aware": False}])
@pytest.mark.parametrize("n_rows", [300, 20])
def test_the_mean_error_is_zero_on_the_rows(options, n_rows):
    rows = make(n_rows=n_rows)
    residual = rows.Y - rows.fitted(split(rows.problem, 3, **options))
    assert residual.mean(0).abs().max() < 1e-10


def test_without_data_the_bias_stays_as_it_was():
    rows = make()
    assert torch.equal(split(rows.problem, 3, data=False).compose()[1], rows.problem.bias)
    without = dataclasses.replace(rows.problem, bias=None)
    assert split(without, 3, data=False).compose()[1] is None
    assert split(without, 3).compose()[1] is not None


@settings(max_examples=20, deadline=None)
@given(
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.one_of(st.just("same"), st.just("valid"), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel=st.tuples(st.integers(2, 4), st.integers(2, 4)),
)
def test_the_split_runs_as_the_convolution_does(stride, padding, dilation, kernel):
    geometry = Geometry((1, 1) if padding == "same" else stride, padding, dilation)
    rows = make(n=3, c=2, kernel=kernel, noise=0.0, geometry=geometry)
    factored = split(rows.problem, spatial.max_rank(rows.problem))
    x = torch.randn(2, 2, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.nn.functional.conv2d(
        x, rows.problem.weight, rows.problem.bias, geometry.stride, geometry.padding, geometry.dilation
    )
    assert torch.allclose(factored.forward(x), wanted, atol=1e-8)
    assert factored.factors[0].bias is None


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), scale=st.sampled_from([1e-4, 1.0, 1e5]), response_scale=st.sampled_from([1e-3, 1e4]))
def test_scales_and_orders_pass_through(seed, scale, response_scale):
    """X·s, W/s gives V, H of the same kernel over s; permuted channels and filters give the permuted kernel."""
    rows = make(seed=seed)
    wanted = split(rows.problem, 4).compose()[0]
    scaled = dataclasses.replace(
        rows.problem,
        weight=rows.problem.weight * response_scale / scale,
        moments=Moments.of_rows(rows.flat * scale, rows.Y * response_scale),
    )
    got = split(scaled, 4).compose()[0] * scale / response_scale
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    channels = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    filters = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    permuted = dataclasses.replace(
        rows.problem.narrowed(channels),
        weight=rows.problem.weight[filters][:, channels],
        moments=Moments.of_rows(rows.X[:, channels], rows.Y[:, filters]),
    )
    got = split(permuted, 4).compose()[0]
    assert torch.allclose(got, wanted[filters][:, channels], atol=1e-6 * float(wanted.abs().max()))


def test_equal_input_gives_equal_bytes_and_fixed_signs():
    first, second = (split(make().problem, 4, alternate=1) for _ in range(2))
    for a, b in zip(first.factors, second.factors):
        assert torch.equal(a.weight, b.weight)
    V = first.factors[0].weight.flatten(1)
    assert (V.gather(1, V.abs().argmax(1, keepdim=True)) > 0).all()
    assert torch.allclose(V.norm(dim=1), torch.ones(4, dtype=V.dtype))


@pytest.mark.parametrize("options", [{}, {"alternate": 2}, {"data": False}])
def test_float32_is_within_1e_4_of_float64(options):
    single, double = make(dtype=torch.float32), make()
    a, b = split(single.problem, 4, **options), split(double.problem, 4, **options)
    assert all(factor.weight.dtype == torch.float32 for factor in a.factors)
    weight, wanted = a.compose()[0].double(), b.compose()[0]
    assert (weight - wanted).norm() <= 1e-4 * wanted.norm()


def dead(X, Y, weight):
    X[:, 1] = 0


def constant(X, Y, weight):
    X[:, 1] = 2.5
    X[:, 2] = X[:, 0]


def silent(X, Y, weight):
    Y[:] = 0.7


def no_weights(X, Y, weight):
    weight[:] = 0


@pytest.mark.parametrize("change", [dead, constant, silent, no_weights, None])
@pytest.mark.parametrize("n_rows", [1, 5, 36, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_singular_has_a_defined_answer(change, n_rows, dtype):
    rows = make(n_rows=n_rows, change=change, dtype=dtype)
    for rank in (1, 6, 12):
        for options in ({}, {"alternate": 1}, {"covariance_aware": False}):
            factored = split(rows.problem, rank, **options)
            assert all(torch.isfinite(factor.weight).all() for factor in factored.factors)
            residual = rows.Y - rows.fitted(factored)
            assert residual.mean(0).abs().max() < 1e-5 * max(1.0, float(rows.Y.abs().max()))


def test_a_dead_channel_keeps_its_weights_at_full_rank():
    def dead_and_exact(X, Y, weight):
        X[:, 1] = 0
        Y[:] = X.flatten(1) @ weight.flatten(1).T
        weight[:, 1] = 3.0

    rows = make(change=dead_and_exact, noise=0.0)
    factored = split(rows.problem, 12)
    assert torch.allclose(factored.compose()[0], rows.problem.weight, atol=1e-9)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(DecompError, match=r"conv: rank must be in 1..12 \(c·kh\), got 13"):
        split(make().problem, 13)
    with pytest.raises(DecompError, match=r"conv: rank must be in 1..3 \(n·kw\), got 0"):
        split(make(n=1).problem, 0)
    with pytest.raises(DecompError, match="conv: alternate must be 0 or more"):
        split(make().problem, 3, alternate=-1)
    for kernel in ((1, 3), (3, 1), (1, 1)):
        with pytest.raises(DecompError, match=f"more than one row and column, got {kernel[0]}x{kernel[1]}"):
            split(make(kernel=kernel).problem, 1)
    broken = make().problem
    broken.moments.K[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="conv: .* 1 of 1296 entries of K"):
        split(broken, 3)


def test_the_ridge_used_is_in_the_report():
    rows = make()
    assert split(rows.problem, 3, ridge=0.5).report["ridge"] == 0.5
    V, H = spatial.closed_form(rows.problem, 3)
    seen = spatial.through_vertical(rows.problem.moments, V, rows.problem.kernel)
    chosen = linalg.choose_ridge(seen, spatial.coefficients(H))
    assert split(rows.problem, 3).report["ridge"] == pytest.approx(chosen)
