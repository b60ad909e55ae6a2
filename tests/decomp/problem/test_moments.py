import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import output_metric, relative

from decomp.errors import DecompError, NumericalError
from decomp.problem import moments as module
from decomp.problem.moments import Moments, MomentSum


def rows(m=60, p=7, n=3, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(m, p, generator=generator, dtype=torch.float64) + offset
    return X, X[:, :n] * 2 + torch.randn(m, n, generator=generator, dtype=torch.float64)


def parts(moments):
    return {name: getattr(moments, name) for name in ("K", "C", "S", "x_mean", "y_mean")}


def assert_same(a, b, tolerance=1e-10):
    assert a.n_rows == b.n_rows
    for name, value in parts(a).items():
        other = parts(b)[name]
        assert (value - other).norm() <= tolerance * max(1.0, float(other.norm())), name


def test_moments_are_the_covariance_sums():
    X, Y = rows()
    got = Moments.of_rows(X, Y)
    joint = np.cov(torch.cat([X, Y], dim=1).numpy(), rowvar=False) * (len(X) - 1)
    np.testing.assert_allclose(got.K, joint[:7, :7], rtol=1e-12)
    np.testing.assert_allclose(got.C, joint[:7, 7:], rtol=1e-12)
    np.testing.assert_allclose(got.S, joint[7:, 7:], rtol=1e-12)
    np.testing.assert_allclose(got.x_mean, X.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.y_mean, Y.numpy().mean(0), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=5),
    order=st.randoms(use_true_random=False),
    offset=st.sampled_from([0, 1e3]),
)
def test_any_split_of_the_rows_gives_the_same_moments(cuts, order, offset):
    X, Y = rows(offset=offset)
    edges = [0, *sorted(cuts), 60]
    shards = [slice(a, b) for a, b in zip(edges, edges[1:])]
    order.shuffle(shards)
    streamed, merged = MomentSum(7, 3), MomentSum(7, 3)
    for shard in shards:
        streamed.add(X[shard], Y[shard])
        own = MomentSum(7, 3)
        own.add(X[shard], Y[shard])
        merged.merge(own)
    assert_same(streamed.total(), Moments.of_rows(X, Y))
    assert_same(merged.total(), Moments.of_rows(X, Y))


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3), (5,), (0, 6)])
def test_whoever_adds_which_tiles_the_moments_have_the_same_bits(cuts, monkeypatch):
    monkeypatch.setattr(module, "TILE_ROWS", 7)
    monkeypatch.setattr(module, "TILE_COLUMNS", 4)
    X, Y = rows(m=45, offset=10)
    X, Y = X.float() * torch.logspace(-6, 6, 7), Y.float()
    edges, total = [0, *(7 * cut for cut in cuts), 45], MomentSum(7, 3)
    for start, stop in zip(edges, edges[1:]):
        own = MomentSum(7, 3)
        own.add(X[start:stop], Y[start:stop])
        total.merge(own)
    for name, value in parts(Moments.of_rows(X, Y)).items():
        assert torch.equal(parts(total.total())[name], value), name


def test_a_sum_that_is_added_to_another_stays_as_it_is_and_goes_on():
    X, Y = rows()
    one, other = MomentSum(7, 3), MomentSum(7, 3)
    one.add(X[:20], Y[:20])
    other.add(X[20:50], Y[20:50])
    one.merge(other)
    assert_same(one.total(), Moments.of_rows(X[:50], Y[:50]))
    assert_same(other.total(), Moments.of_rows(X[20:50], Y[20:50]))
    one.add(X[50:], Y[50:])
    assert_same(one.total(), Moments.of_rows(X, Y))


def test_tiles_of_rows_and_columns_leave_no_seam(monkeypatch):
    X, Y = rows(p=11)
    whole = Moments.of_rows(X, Y)
    monkeypatch.setattr(module, "TILE_ROWS", 7)
    monkeypatch.setattr(module, "TILE_COLUMNS", 4)
    tiled = Moments.of_rows(X, Y)
    assert_same(tiled, whole)
    assert torch.equal(tiled.K, tiled.K.T), "K must be symmetric to the last bit"


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_float32_rows_lose_nothing_to_cancellation(offset):
    X, Y = rows(m=5000, offset=offset)
    X, Y = X.float(), Y.float()
    single, double = Moments.of_rows(X, Y), Moments.of_rows(X.double(), Y.double())
    assert_same(single, double, tolerance=1e-5)
    assert (single.x_mean - double.x_mean).abs().max() <= 1e-9 * max(1.0, offset)


def test_products_do_not_fall_below_float32_where_torch_is_told_to():
    X, Y = rows()
    X, Y = X.float(), Y.float()
    torch.set_float32_matmul_precision("medium")
    try:
        got = Moments.of_rows(X, Y)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert_same(got, Moments.of_rows(X.double(), Y.double()), tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_column_has_no_variance_at_all(dtype):
    X, Y = rows(m=1000)
    X[:, 2] = 0.1
    own = MomentSum(7, 3)
    for shard in (slice(0, 333), slice(333, 1000)):
        own.add(X[shard].to(dtype), Y[shard].to(dtype))
    got = own.total()
    assert torch.equal(got.K[2], torch.zeros(7, dtype=torch.float64))
    assert torch.equal(got.C[2], torch.zeros(3, dtype=torch.float64))


def test_taking_and_mapping_are_those_of_the_rows():
    X, Y = rows()
    whole = Moments.of_rows(X, Y)
    index = torch.tensor([5, 0, 3])
    generator = torch.Generator().manual_seed(3)
    T = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    assert_same(whole.take_inputs(index), Moments.of_rows(X[:, index], Y))
    assert_same(whole.map_outputs(T), Moments.of_rows(X, Y @ T))


@pytest.mark.parametrize("metric", [None, output_metric(3)])
def test_the_error_is_that_of_the_rows(metric):
    X, Y = rows()
    B = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = Moments.of_rows(X, Y).error(B, metric)
    assert got == pytest.approx(relative(Y, X @ B, metric), rel=1e-12)
    assert Moments.of_rows(X, Y).error(B * 0, metric) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perfect_fit_reads_zero_and_never_less(dtype):
    X, _ = rows(m=500, offset=3)
    B = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    error = Moments.of_rows(X.to(dtype), (X @ B).to(dtype)).error(B)
    assert 0 <= error < (1e-13 if dtype == torch.float64 else 1e-6)


def test_responses_that_do_not_vary_have_a_defined_error():
    X, Y = rows()
    moments = Moments.of_rows(X, torch.ones_like(Y))
    assert moments.error(torch.zeros(7, 3)) == 0
    assert moments.error(torch.ones(7, 3)) == float("inf")


def test_moments_of_different_rows_are_noticed():
    X, Y = rows()
    moments = Moments.of_rows(X, Y)
    moments.S *= 0.01
    B = torch.linalg.solve(moments.K, moments.C)
    with pytest.raises(NumericalError, match="one set of rows"):
        moments.error(B)


def test_not_a_number_is_named_with_layer_and_count():
    X, Y = rows()
    X[4, 2] = float("nan")
    with pytest.raises(NumericalError, match=r"conv3_1: .*60 rows.* 13 of 49 entries of K NaN or Inf"):
        Moments.of_rows(X, Y).check("conv3_1")
    with pytest.raises(NumericalError, match="conv3_1: a layer problem needs rows"):
        Moments.zeros(7, 3).check("conv3_1")


def test_rows_of_another_shape_are_refused():
    X, Y = rows()
    with pytest.raises(DecompError, match=r"rows must be \(m, 7\) and \(m, 3\)"):
        MomentSum(7, 3).add(X[:, :6], Y)
    with pytest.raises(DecompError, match="rows must be"):
        MomentSum(7, 3).add(X[:5], Y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_processor_gives():
    X, Y = rows(m=5000, offset=10)
    there = Moments.of_rows(X.float().cuda(), Y.float().cuda())
    assert_same(there.to("cpu"), Moments.of_rows(X, Y), tolerance=1e-5)


def few_rows(n_rows=40, p=300, n=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n_rows)
    X = torch.randn(n_rows, p, generator=generator, dtype=dtype) * torch.logspace(-2, 2, p) + 5
    X[:, 7] = 3.0
    return X, torch.randn(n_rows, n, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_root_of_few_rows_has_their_products_to_the_rounding_of_each_input(dtype, monkeypatch):
    X, Y = few_rows(dtype=dtype)
    found = Moments.of_rows(X, Y)
    root, size = found.root, found.K.diagonal().sqrt()
    assert root.shape == (39, 300) and float(root[:, 7].abs().max()) == 0
    off = (root.T @ root - found.K).abs() / torch.outer(size, size).clamp_min(1e-300)
    assert float(off.max()) < (2e-6 if dtype == torch.float32 else 1e-11)
    B = torch.randn(300, 3, dtype=torch.float64)
    assert torch.allclose(found.times(B), found.K @ B, rtol=1e-5, atol=1e-5 * float((found.K @ B).abs().max()))
    error = found.error(B)
    monkeypatch.setattr(module, "MANY_INPUTS", 10**9)
    assert error == pytest.approx(
        Moments(found.K, found.C, found.S, found.x_mean, found.y_mean, found.n_rows).error(B), rel=1e-5
    )


def test_moments_of_many_rows_or_of_few_inputs_have_no_root():
    assert Moments.of_rows(*few_rows(n_rows=150)).root is not None
    assert Moments.of_rows(*few_rows(n_rows=151)).root is None
    assert Moments.of_rows(*few_rows(n_rows=20, p=255)).root is None


def test_the_root_goes_through_choices_and_maps_of_the_inputs():
    X, Y = few_rows(30, 400)
    found, index = Moments.of_rows(X, Y), torch.arange(0, 400, 1)[50:].flip(0)
    T = torch.randn(3, 2).double()
    for made in (found.take_inputs(index), found.map_outputs(T)):
        assert torch.allclose(made.root.T @ made.root, made.K, rtol=1e-9, atol=1e-9 * float(made.K.abs().max()))
    assert found.with_responses(found.C, found.S, found.y_mean).root is found.root
    assert found.take_inputs(index[:255]).root is None


def test_the_error_of_few_rows_in_a_metric_is_that_of_the_whole_matrix():
    found = Moments.of_rows(*few_rows(n_rows=40, n=80))
    n = found.C.shape[1]
    half = torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    metric = half @ half.T
    B = 0.1 * torch.randn(found.C.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    by_hand = ((found.S - 2 * B.T @ found.C + B.T @ found.K @ B) * metric).sum() / (found.S * metric).sum()
    assert found.root is not None and found.error(B, metric) == pytest.approx(float(by_hand), rel=1e-6)
