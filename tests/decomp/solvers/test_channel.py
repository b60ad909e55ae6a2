import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import make, output_metric, relative, sizes

from decomp.errors import DecompError, NumericalError
from decomp.problem.factors import Geometry
from decomp.problem.moments import Moments
from decomp.solvers import spatial
from decomp.solvers.channel import decompose
from decomp.solvers.half_quadratic import ACTIVATIONS
from decomp.solvers.linalg import least_squares

FIXED = {"ridge": 1e-10}


def response_error(rows, factored, metric=None):
    """Relative error after the activation, judged on the rows."""
    r = ACTIVATIONS[rows.problem.activation]
    wanted, got = r(rows.Y), r(rows.fitted(factored))
    weights = torch.ones(rows.Y.shape[1]).double() if metric is None else metric.diagonal()
    total = ((wanted - wanted.mean(0)).square() * weights).sum()
    return float(((wanted - got).square() * weights).sum() / total)


@settings(max_examples=20, deadline=None)
@given(size=sizes, activation=st.sampled_from(["identity", "relu", "relu6", "gelu"]))
def test_full_rank_gives_the_weights_back(size, activation):
    rows = make(noise=0.0, activation=activation, **size)
    weight, bias = decompose(rows.problem, rows.problem.n_filters).compose()
    assert (weight - rows.problem.weight).abs().max() <= 1e-10 * rows.problem.weight.abs().max()
    assert torch.allclose(bias, rows.problem.bias, rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", [None, output_metric(6)])
def test_the_linear_form_is_the_best_of_its_rank_and_falls_with_the_rank(metric):
    rows = make(n=6)
    problem = dataclasses.replace(rows.problem, metric=metric)
    full = least_squares(problem.moments, ridge=1e-10)
    root = torch.eye(6).double() if metric is None else torch.linalg.cholesky(metric)
    L = torch.linalg.cholesky(problem.moments.K)
    singular = torch.linalg.svdvals(L.T @ full.weight @ root).square()
    total = float((root.T @ problem.moments.S @ root).trace())
    for rank in range(1, 7):
        found = decompose(problem, rank, activation_aware=False, **FIXED)
        bound = problem.moments.error(full.weight, metric) + float(singular[rank:].sum()) / total
        assert found.report["error"] == pytest.approx(bound, rel=1e-6)
        assert relative(rows.Y, rows.fitted(found), metric) == pytest.approx(bound, rel=1e-6)
        assert found.ranks == (rank,)


@pytest.mark.parametrize("n_rows", [300, 20])
@pytest.mark.parametrize("with_base", [False, True])
def test_the_mean_error_of_the_linear_form_is_zero(n_rows, with_base):
    rows = make(n_rows=n_rows)
    base = spatial.split(rows.problem, 5) if with_base else None
    found = decompose(rows.problem, 2, base=base, activation_aware=False)
    residual = rows.Y - rows.fitted(found)
    assert residual.mean(0).abs().max() < 1e-10


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 300),
    rank=st.integers(1, 8),
    activation=st.sampled_from(["relu", "relu6"]),
    with_base=st.booleans(),
    with_metric=st.booleans(),
)
def test_minding_the_activation_is_never_worse_after_it(seed, rank, activation, with_base, with_metric):
    rows = make(n=8, seed=seed, activation=activation)
    metric = output_metric(8) if with_metric else None
    problem = dataclasses.replace(rows.problem, metric=metric)
    base = spatial.split(problem, 6) if with_base else None
    aware = decompose(problem, rank, base=base)
    linear = decompose(problem, rank, base=base, activation_aware=False)
    report = aware.report
    assert report["form"] == "activation-aware"
    assert report["response_error"] == pytest.approx(response_error(rows, aware, metric), rel=1e-6, abs=1e-12)
    assert report["response_error_linear"] == pytest.approx(response_error(rows, linear, metric), rel=1e-6, abs=1e-12)
    assert report["response_error"] <= report["response_error_linear"]


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_minding_the_activation_gains_where_much_is_cut_off(activation):
    rows = make(n=12, c=6, activation=activation, seed=1)
    scaled = 5.0 if activation == "relu6" else 1.0
    problem = dataclasses.replace(
        rows.problem, weight=rows.problem.weight * scaled, bias=rows.problem.bias * scaled,
        moments=Moments.of_rows(rows.X, rows.Y * scaled), rows=lambda: iter([(rows.X, rows.Y * scaled)]),
    )  # fmt: skip
    report = decompose(problem, 3).report
    assert report["response_error"] < 0.95 * report["response_error_linear"]


def test_the_base_keeps_its_vertical_factor_and_the_bias_is_last():
    rows = make(geometry=Geometry((2, 1), (1, 2)))
    base = spatial.split(rows.problem, 5)
    found = decompose(rows.problem, 3, base=base)
    assert found.names == ("vertical", "horizontal", "pointwise")
    assert found.ranks == (5, 3)
    assert found.factors[0] is base.factors[0]
    assert [factor.bias is None for factor in found.factors] == [True, True, False]
    assert found.factors[1].geometry == base.factors[1].geometry
    weight, bias = found.compose()
    x = torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.nn.functional.conv2d(x, weight, bias, (2, 1), (1, 2))
    assert torch.allclose(found.forward(x), wanted, atol=1e-10)


def test_the_bias_goes_through_the_low_rank_map():
    """A large offset of the responses costs nothing: only the mean of the fit has to meet it."""
    rows = make()
    moved = dataclasses.replace(
        rows.problem, bias=rows.problem.bias + 50, moments=Moments.of_rows(rows.flat, rows.Y + 50)
    )
    here = decompose(rows.problem, 2, activation_aware=False)
    there = decompose(moved, 2, activation_aware=False)
    assert torch.allclose(there.compose()[0], here.compose()[0], atol=1e-8)
    assert torch.allclose(there.compose()[1], here.compose()[1] + 50, atol=1e-8)


def test_what_has_no_aware_form_is_fitted_linearly_and_says_so():
    rows = make(activation="gelu")
    linear = decompose(rows.problem, 2, activation_aware=False)
    for problem, words in (
        (rows.problem, "'gelu' has no activation-aware form"),
        (make(with_rows=False).problem, "needs the rows, and none were given"),
    ):
        found = decompose(problem, 2)
        assert words in found.report["note"] and found.report["form"] == "linear"
        assert torch.equal(found.compose()[0], linear.compose()[0])
    assert linear.report["note"] == "the linear form was chosen"
    assert "note" not in decompose(make(activation="identity").problem, 2).report


@pytest.mark.parametrize("activation_aware", [True, False])
def test_scales_and_orders_pass_through(activation_aware):
    rows = make(n=6)
    wanted, bias = decompose(rows.problem, 3, activation_aware=activation_aware).compose()
    filters, channels = torch.tensor([3, 0, 5, 1, 2, 4]), torch.tensor([2, 0, 3, 1])
    X, Y = rows.X[:, channels] * 7, rows.Y[:, filters] * 1e3
    problem = dataclasses.replace(
        rows.problem, weight=rows.problem.weight[filters][:, channels] * 1e3 / 7,
        bias=rows.problem.bias[filters] * 1e3, moments=Moments.of_rows(X, Y), rows=lambda: iter([(X, Y)]),
    )  # fmt: skip
    got, got_bias = decompose(problem, 3, activation_aware=activation_aware).compose()
    scale = float(wanted.abs().max())
    assert torch.allclose(got * 7 / 1e3, wanted[filters][:, channels], atol=1e-5 * scale)
    assert torch.allclose(got_bias / 1e3, bias[filters], atol=1e-5 * scale)


def test_equal_input_gives_equal_bytes():
    first, second = (decompose(make().problem, 3) for _ in range(2))
    for a, b in zip(first.factors, second.factors):
        assert torch.equal(a.weight, b.weight)
    assert torch.equal(first.factors[-1].bias, second.factors[-1].bias)


@pytest.mark.parametrize("activation_aware", [True, False])
def test_float32_is_within_1e_4_of_float64(activation_aware):
    a = decompose(make(dtype=torch.float32).problem, 3, activation_aware=activation_aware)
    b = decompose(make().problem, 3, activation_aware=activation_aware)
    weight, wanted = a.compose()[0].double(), b.compose()[0]
    assert a.factors[0].weight.dtype == torch.float32
    if activation_aware:
        # The iterations may end at different counts; what they are judged by agrees.
        assert a.report["response_error"] == pytest.approx(b.report["response_error"], rel=1e-4)
    else:
        assert (weight - wanted).norm() <= 1e-4 * wanted.norm()


def dead(X, Y, weight):
    X[:, 1] = 0
    Y[:, 2] = -3.0


def silent(X, Y, weight):
    Y[:] = -0.7


@pytest.mark.parametrize("change", [None, dead, silent])
@pytest.mark.parametrize("n_rows", [1, 5, 36, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_base", [False, True])
def test_what_is_singular_has_a_defined_answer(change, n_rows, dtype, with_base):
    rows = make(n_rows=n_rows, change=change, dtype=dtype)
    base = spatial.split(rows.problem, 4) if with_base else None
    for rank in (1, 6):
        for activation_aware in (False, True):
            found = decompose(rows.problem, rank, base=base, activation_aware=activation_aware)
            assert all(torch.isfinite(factor.weight).all() for factor in found.factors)
            assert torch.isfinite(found.factors[-1].bias).all()
            assert all(np.isfinite(v) for v in found.report.values() if isinstance(v, float))


def test_what_cannot_be_decomposed_is_refused():
    rows = make()
    with pytest.raises(DecompError, match=r"conv: rank must be in 1..6 \(n\), got 7"):
        decompose(rows.problem, 7)
    done = decompose(rows.problem, 2)
    with pytest.raises(DecompError, match="conv: the base must be vertical and horizontal factors"):
        decompose(rows.problem, 2, base=done)
    other = spatial.split(make(n=5).problem, 3)
    with pytest.raises(DecompError, match="conv: the base must be factors of this layer"):
        decompose(rows.problem, 2, base=other)
    part = dataclasses.replace(rows.problem, rows=lambda: iter([(rows.X[:50], rows.Y[:50])]))
    with pytest.raises(DecompError, match="conv: the rows must be the 300 of the moments, got 50"):
        decompose(part, 2)
    rows.problem.moments.S[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="entries of S NaN or Inf"):
        decompose(rows.problem, 2)
