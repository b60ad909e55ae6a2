"""Refit of a depthwise convolution, channel by channel."""

import pytest
import torch
import torch.nn.functional as F

from decomp.problem.channel_moments import ChannelMoments
from decomp.problem.factors import Geometry
from decomp.solvers.depthwise import channel_ridges, kernels_by_channel, refit_channels, solve_depthwise
from decomp.solvers.linalg import EVIDENCE, choose_ridge, least_squares


def problem(n=400, c=3, m=2, noise=0.0, bias=True, seed=0):
    """Moments, the true kernel and bias, and the rows X (n, c, 3, 3)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    X, weight, b = normal(n, c, 3, 3) + 1, normal(c * m, 1, 3, 3), normal(c * m) if bias else torch.zeros(c * m)
    Y = F.conv2d(X, weight, b.double(), groups=c).flatten(1)
    moments = ChannelMoments.of_rows(X + noise * normal(*X.shape), Y)
    return moments, weight, b if bias else None, X


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_kernels_that_made_the_responses_are_found_from_wrong_ones(m, bias):
    moments, weight, b, _ = problem(m=m, bias=bias)
    wrong = weight + 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, found_bias, _ = refit_channels(moments, wrong, None if b is None else b + 1, ridge=1e-12)
    torch.testing.assert_close(found, weight, atol=1e-8, rtol=0)
    assert (found_bias is None) == (not bias)
    if bias:
        torch.testing.assert_close(found_bias, b, atol=1e-8, rtol=0)


def test_a_layer_without_a_bias_is_fitted_without_one():
    _, weight, b, X = problem()
    Y = F.conv2d(X, weight, b, groups=3).flatten(1)  # with an offset that no kernel alone can give
    moments = ChannelMoments.of_rows(X, Y)
    found, _, _ = refit_channels(moments, weight, None, ridge=1e-12)
    wanted = torch.linalg.lstsq(X[:, 1].flatten(1), Y[:, 2:4]).solution
    torch.testing.assert_close(found[2:4].flatten(1).T, wanted, atol=1e-6, rtol=0)


def test_exact_kernels_are_returned_as_they_are():
    moments, weight, b, _ = problem()
    found, bias, _ = refit_channels(moments, weight.float(), b.float())
    torch.testing.assert_close(found, weight.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(bias, b.float(), atol=1e-5, rtol=0)


def test_each_channel_is_the_fit_of_its_rows_alone_with_its_own_ridge():
    moments, weight, b, _ = problem(noise=0.5)
    found, _, ridges = refit_channels(moments, weight, b)
    for i in range(3):
        own = least_squares(moments.of(i), ridge=EVIDENCE, prior=weight[2 * i : 2 * i + 2].flatten(1).T)
        torch.testing.assert_close(found[2 * i : 2 * i + 2].flatten(1).T, own.weight)
        assert ridges[i] == pytest.approx(own.report["ridge"], rel=1e-6)
    assert len(set(ridges)) == 3


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_channel_whose_input_does_not_vary_keeps_its_kernel_and_gets_the_mean_of_its_responses(value):
    moments, weight, b, X = problem()
    Y = F.conv2d(X, weight, b, groups=3).flatten(1)
    X = X.clone()
    X[:, 1] = value
    moments = ChannelMoments.of_rows(X, Y)
    found, bias, _ = refit_channels(moments, weight, b)
    torch.testing.assert_close(found[2:4], weight[2:4])
    given = F.conv2d(X, found, bias, groups=3).flatten(1)
    torch.testing.assert_close(given[:, 2:4].mean(0), Y[:, 2:4].mean(0))


def test_fewer_rows_than_weights_leave_the_other_directions_as_they_were():
    _, weight, b, X = problem()
    X, change = X[:4], torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moments = ChannelMoments.of_rows(X, F.conv2d(X, weight, b, groups=3).flatten(1))
    found, _, _ = refit_channels(moments, weight + change, b, ridge=1e-8)
    centred = (X - X.mean(0))[:, 0].flatten(1)
    free = torch.linalg.svd(centred).Vh[3:]  # four rows about their mean have three directions
    before, after = (weight + change)[:2].flatten(1), found[:2].flatten(1)
    torch.testing.assert_close(after @ free.T, before @ free.T, atol=1e-4, rtol=0)
    assert (after - before).abs().max() > 0.1
    assert moments.error(found.reshape(3, 2, 9).mT) < 1e-9


def test_the_report_has_the_errors_before_and_after_on_fitted_and_held_out_rows():
    (moments, weight, b, _), (held_out, *_) = problem(noise=0.4), problem(noise=0.4, seed=5)
    solution, report = solve_depthwise("own", weight, b, Geometry(), moments, held_out)
    (factor,) = solution.factored.factors
    assert solution.name == report["layer"] == "own" and solution.selection is None and report["rows"] == 400
    assert factor.weight.shape == weight.shape
    errors = report["errors"]
    assert list(errors) == ["before", "refit"]
    assert errors["before"]["fitted"] == pytest.approx(moments.error(weight.reshape(3, 2, 9).mT))
    assert errors["refit"]["fitted"] == pytest.approx(moments.error(factor.weight.reshape(3, 2, 9).mT))
    assert errors["refit"]["fitted"] < errors["before"]["fitted"]
    assert "held_out" not in solve_depthwise(
        "own", weight, b, Geometry(), moments, ChannelMoments.zeros(3, 9, 2)
    )[1]["errors"]["refit"]  # fmt: skip
    assert errors["refit"]["held_out"] == pytest.approx(held_out.error(factor.weight.reshape(3, 2, 9).mT))


@pytest.mark.parametrize("n", [8, 60, 4000])
@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
def test_ridges_of_all_channels_together_are_those_of_each(n, noise):
    """Few rows and many; exact kernels and wrong ones; a channel that does not vary, and one of two equal columns."""
    moments, weight, _, X = problem(n=n, c=5, noise=noise, seed=1)
    X = X + noise * torch.randn(X.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    Y = F.conv2d(X, weight, groups=5).flatten(1)
    X = X + noise * torch.randn(X.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    X[:, 1], X[:, 2, 0, 0] = 0.5, X[:, 2, 0, 1]
    moments = ChannelMoments.of_rows(X, Y)
    priors = kernels_by_channel(moments, weight * torch.linspace(0.5, 1, 10).view(-1, 1, 1, 1))
    wanted = [choose_ridge(moments.of(i), priors[i]) for i in range(5)]
    assert channel_ridges(moments, priors) == pytest.approx(wanted, rel=1e-4)
