"""Moments of each channel of a depthwise convolution."""

import pytest
import torch

from decomp.errors import DecompError, NumericalError
from decomp.problem import channel_moments
from decomp.problem.channel_moments import ChannelMoments, ChannelMomentSum
from decomp.problem.moments import Moments


def rows(n=50, c=3, m=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, c, 2, 2, generator=generator, dtype=torch.float64) + 3
    Y = torch.randn(n, c * m, generator=generator, dtype=torch.float64) - 5
    return X.to(dtype), Y.to(dtype)


def moments_of(X, Y, *, cut=None):
    own = ChannelMomentSum(X.shape[1], X[0, 0].numel(), Y.shape[1] // X.shape[1])
    for x, y in zip(X.split(cut or len(X)), Y.split(cut or len(Y))):
        own.add(x, y)
    return own.total()


def assert_same(one, other, atol=1e-9):
    for name in ("K", "C", "S", "x_mean", "y_mean"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=atol, rtol=1e-9)
    assert one.n_rows == other.n_rows


def test_each_channel_has_the_moments_of_its_own_patches_and_responses():
    X, Y = rows()
    for i in range(3):
        assert_same(moments_of(X, Y).of(i), Moments.of_rows(X[:, i].flatten(1), Y[:, 2 * i : 2 * i + 2]))


@pytest.mark.parametrize("cut", [1, 7, 49])
def test_rows_in_several_calls_tiles_and_parts_of_the_channels_add_up(cut, monkeypatch):
    X, Y = rows()
    whole = moments_of(X, Y)
    monkeypatch.setattr(channel_moments, "TILE_ROWS", 4)
    monkeypatch.setattr(channel_moments, "CHANNELS_AT_A_TIME", 2)
    assert_same(moments_of(X, Y, cut=cut), whole)


def test_rows_in_memory_are_those_added_tile_by_tile():
    X, Y = rows()
    assert_same(ChannelMoments.of_rows(X, Y), moments_of(X, Y), atol=0)
    none = ChannelMomentSum(3, 4, 2).total()
    assert none.n_rows == 0 and none.C.shape == (3, 4, 2) and not none.K.any()


def test_a_column_that_does_not_vary_has_no_variance():
    X, Y = rows(n=1000)
    X[:, 1] = 0.1
    assert moments_of(X, Y, cut=300).K[1].abs().max() == 0 and moments_of(X, Y).K[1].abs().max() == 0


def test_uncentred_moments_are_the_sums_of_products():
    X, Y = rows()
    moments, x, y = moments_of(X, Y).uncentred(), X[:, 2].flatten(1), Y[:, 4:]
    torch.testing.assert_close(moments.K[2], x.T @ x)
    torch.testing.assert_close(moments.C[2], x.T @ y)
    torch.testing.assert_close(moments.S[2], y.T @ y)
    assert not moments.x_mean.any() and not moments.y_mean.any()


def test_the_error_is_that_of_the_rows_with_the_best_bias():
    X, Y = rows()
    B = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fitted = torch.einsum("ncp,cpm->ncm", X.flatten(2), B).flatten(1)
    left = fitted - Y
    wanted = (left - left.mean(0)).square().sum() / (Y - Y.mean(0)).square().sum()
    assert moments_of(X, Y).error(B) == pytest.approx(float(wanted))


def test_responses_without_variance_are_fitted_by_a_constant_alone():
    X, Y = rows()
    moments = moments_of(X, torch.full_like(Y, 2.0))
    assert moments.error(torch.zeros(3, 4, 2)) == 0 and moments.error(torch.ones(3, 4, 2)) == float("inf")


def test_rows_of_another_shape_and_nan_are_refused():
    X, Y = rows()
    with pytest.raises(DecompError, match=r"rows must be \(rows, 3, 4\) and \(rows, 6\), got \(50, 3, 4\), \(50, 5\)"):
        ChannelMomentSum(3, 4, 2).add(X, Y[:, :5])
    with pytest.raises(NumericalError, match="own: a layer problem needs rows, got none"):
        ChannelMoments.zeros(3, 4, 2).check("own")
    X[3, 1, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="own: inputs and responses must be finite over its 50 rows, got 7 of 48"):
        moments_of(X, torch.zeros_like(Y)).check("own")
