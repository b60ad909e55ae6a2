"""Order of channels over all layers: counts, ties and limits."""

import pytest
import torch

from decomp.criteria.ranking import Limits, Order, normalised, rounded_down, top
from decomp.errors import UsageError


def scores(**values):
    return {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()}


def test_counts_are_rounded_down_past_the_rounding_error_of_the_share():
    assert [rounded_down(10 * (1 - p)) for p in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)] == [10, 9, 7, 5, 3, 1]
    assert int(10 * (1 - 0.9)) == 0  # what it would be otherwise
    assert [rounded_down(10 * t) for t in (0.0, 0.09, 0.1, 0.3, 0.7, 0.999)] == [0, 0, 1, 3, 7, 9]
    assert rounded_down(12112 * 0.4) == 4844 and rounded_down(64 * (1 - 0.3)) == 44


def test_the_highest_stay_in_ascending_order_and_of_equal_ones_those_in_front():
    assert top(torch.tensor([1.0, 5.0, 3.0, 5.0, 3.0]), 3) == [1, 2, 3]
    assert top(torch.ones(5), 2) == [0, 1]
    assert top(torch.ones(5), 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rule, divisor", [("none", 1), ("mean", 3.5), ("max", 4), ("l2", 5)])
def test_scores_are_divided_by_a_number_of_their_layer(rule, divisor):
    found = normalised(scores(a=[3.0, -4.0], b=[0.0, 0.0]), rule)
    assert found["a"].tolist() == pytest.approx([3 / divisor, -4 / divisor])
    assert found["b"].tolist() == [0, 0]


def test_an_unknown_normalisation_is_named():
    with pytest.raises(UsageError, match="normalisation: must be one of none, mean, max, l2, got 'median'"):
        normalised({}, "median")


def test_dropping_follows_the_order_over_all_layers():
    order = Order.of(scores(a=[1, 4, 6], b=[2, 3, 5, 7]), Limits(0.0), "none")
    left = [order.counts(k)[0] for k in range(order.most + 1)]
    assert [(x["a"], x["b"]) for x in left] == [(3, 4), (2, 4), (2, 3), (2, 2), (1, 2), (1, 1)]
    assert order.counts(4) == ({"a": 1, "b": 2}, ())
    # The next in the order would be the last of a, which stays.
    assert order.counts(5)[1] == ()


def test_a_layer_at_its_limit_is_reported_and_the_next_channels_go_instead():
    order = Order.of(scores(a=[1, 2, 3, 4], b=[5, 6, 7, 8]), Limits(0.5), "none")
    assert order.most == 4
    assert order.counts(2) == ({"a": 2, "b": 4}, ())
    assert order.counts(3) == ({"a": 2, "b": 3}, ("a",))
    order = Order.of(scores(a=[1, 2, 3, 4], b=[5, 6, 7, 8]), Limits(0.0, cap=0.25), "none")
    assert order.counts(2) == ({"a": 3, "b": 3}, ("a",))


def test_equal_scores_spread_over_the_layers():
    order = Order.of(scores(a=[1.0] * 8, b=[1.0] * 4), Limits(0.0), "none")
    assert order.counts(6)[0] == {"a": 4, "b": 2}
    assert order.counts(0)[0] == {"a": 8, "b": 4}
    assert order.counts(order.most)[0] == {"a": 1, "b": 1}


def test_limits_keep_at_least_one_and_round_up_to_multiples():
    assert [Limits(f).least(10) for f in (0.0, 0.1, 0.11, 0.3, 1.0)] == [1, 1, 2, 3, 10]
    assert [Limits(0.0, cap=c).least(10) for c in (1.0, 0.9, 0.55, 0.3, 0.0)] == [1, 1, 5, 7, 10]
    assert [Limits(multiple=8).rounded(n, 64) for n in (1, 8, 9, 63, 64)] == [8, 8, 16, 64, 64]
    # Where a layer is narrow, the multiple gives way.
    assert [Limits(multiple=8).rounded(n, 20) for n in (1, 3, 19)] == [2, 4, 20]
    assert [Limits(multiple=8).rounded(n, 6) for n in (1, 5)] == [1, 5]


@pytest.mark.parametrize(
    "options, line",
    [
        ({"floor": 1.5}, "floor: must be a share of a layer's channels, from 0 to 1, got 1.5."),
        ({"cap": -0.1}, "cap: must be a share of a layer's channels, from 0 to 1, got -0.1."),
        ({"multiple": 0}, "multiple: must be a whole number from 1, got 0."),
    ],
)
def test_limits_out_of_range_are_refused(options, line):
    with pytest.raises(UsageError) as error:
        Limits(**options)
    assert str(error.value) == line
