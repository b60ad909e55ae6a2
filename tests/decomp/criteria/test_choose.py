"""Choice of the channels that stay: shares, ranks and targets."""

import pytest
import torch

from decomp.criteria.choose import (
    COARSE,
    Choice,
    by_counts,
    by_layer,
    by_rank,
    check_ratio,
    for_speedup,
    greatest_speedup,
    greedily,
)
from decomp.criteria.ranking import Limits
from decomp.errors import TargetError, UsageError


def scores(**values):
    return {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()}


def gradual(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SCORES = {"a": gradual(10), "b": 3 * gradual(20, 1), "c": 2 * gradual(30, 2)}


def quadratic(keep):
    """Cost of a chain of three layers behind three channels, with ten outputs."""
    a, b, c = (len(keep[name]) for name in "abc")
    return 3 * a + a * b + b * c + 10 * c


def test_kept_channels_are_the_highest_in_ascending_order():
    choice = by_layer(scores(a=[3, 1, 4, 1.5, 9, 2]), 0.5)
    assert choice == Choice({"a": [0, 2, 4]})
    assert by_counts(scores(a=[3, 1, 4], b=[1, 2]), {"a": 2}).keep == {"a": [0, 2], "b": [0, 1]}
    assert by_layer(SCORES, {"b": 0.3}).counts == {"a": 10, "b": 14, "c": 30}


def test_ninety_percent_of_ten_channels_leave_one():
    assert by_layer({"a": gradual(10)}, 0.9).counts == {"a": 1}


def test_no_layer_is_emptied():
    assert by_layer(SCORES, 0.999).counts == {"a": 1, "b": 1, "c": 1}
    with_one = by_rank(SCORES, 0.95, Limits(floor=0.0))
    assert min(with_one.counts.values()) >= 1 and sum(with_one.counts.values()) == 3


@pytest.mark.parametrize("place", [0, 7])
def test_the_only_live_filter_of_a_layer_stays_wherever_it_lies(place):
    found = {"a": torch.zeros(10, dtype=torch.float64), "b": gradual(10)}
    found["a"][place] = 0.01
    assert by_layer(found, 0.9).keep["a"] == [place]
    assert by_rank(found, 0.9, Limits(floor=0.0)).keep["a"] == [place]


@pytest.mark.parametrize("share", [0.0, 0.999])
def test_a_share_of_nothing_drops_nothing_and_one_next_to_all_leaves_one_in_each_layer(share):
    for found in (SCORES, {name: torch.ones_like(s) for name, s in SCORES.items()}):
        if share == 0:
            assert by_rank(found, share).counts == {"a": 10, "b": 20, "c": 30}
        else:
            with pytest.raises(TargetError, match="at most 57 of 60 channels can go, as each layer keeps one channel"):
                by_rank(found, share, Limits(floor=0.0))
            assert by_rank(found, 0.95, Limits(floor=0.0)).counts == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("values", ["different", "equal"])
def test_exactly_the_rounded_down_share_of_all_channels_goes(share, values):
    found = SCORES if values == "different" else {name: torch.ones_like(s) for name, s in SCORES.items()}
    counts = by_rank(found, share).counts
    assert 60 - sum(counts.values()) == int(60 * share + 1e-9)


def test_the_channels_that_go_are_the_lowest_of_all_layers():
    choice = by_rank(SCORES, 0.5)
    gone = [s for name in SCORES for i, s in enumerate(SCORES[name].tolist()) if i not in choice.keep[name]]
    kept = [s for name in SCORES for i, s in enumerate(SCORES[name].tolist()) if i in choice.keep[name]]
    assert len(gone) == 30 and max(gone) < min(kept) and choice.limited == ()


def test_floors_are_kept_and_reported_and_the_count_stays_exact():
    found = {"low": 0.01 * gradual(20), "high": 1 + gradual(80)}
    choice = by_rank(found, 0.5)
    assert choice.counts == {"low": 2, "high": 48} and choice.limited == ("low",)
    choice = by_rank(found, 0.5, Limits(cap=0.5))
    assert choice.counts == {"low": 10, "high": 40} and choice.limited == ("low",)


def test_a_share_that_the_limits_do_not_allow_is_refused_with_the_largest_one():
    with pytest.raises(TargetError) as error:
        by_rank(SCORES, 0.96)
    assert str(error.value) == (
        "ratio: at most 54 of 60 channels can go, as each layer keeps 10 % of its channels at least, got 0.96, which "
        "is 57; take 0.9 or less, or loosen these limits."
    )
    assert sum(by_rank(SCORES, 0.9).counts.values()) == 6


def test_normalisation_changes_what_goes_first():
    found = {"small": torch.tensor([1.0, 2.0, 3.0]), "large": torch.tensor([10.0, 40.0, 90.0])}
    found = {name: s.double() for name, s in found.items()}
    assert by_rank(found, 0.34).counts == {"small": 1, "large": 3}
    assert by_rank(found, 0.34, normalisation="mean").counts == {"small": 2, "large": 2}


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan"), "0.5", True, None])
def test_ratios_outside_of_the_half_open_interval_are_refused(ratio):
    with pytest.raises(UsageError, match="ratio: must be a share of channels to drop, from 0 to less than 1, got "):
        check_ratio(ratio)


def test_a_ratio_or_count_for_a_space_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="d: is not a channel space that was scored"):
        by_layer(SCORES, {"d": 0.5})
    with pytest.raises(UsageError, match="a: the number of channels that stay must be in 1..10, got 11"):
        by_counts(SCORES, {"a": 11})


@pytest.mark.parametrize("ranking", ["global", "layer"])
@pytest.mark.parametrize("speedup", [1, 1.3, 2, 4, 7.5])
def test_a_speedup_is_met_with_the_fewest_channels_dropped(ranking, speedup):
    whole = quadratic(by_counts(SCORES, {}).keep)
    choice = for_speedup(SCORES, speedup, quadratic, ranking=ranking)
    assert whole / quadratic(choice.keep) >= speedup
    dropped = 60 - sum(choice.counts.values())
    if ranking == "global" and dropped:
        less = by_rank(SCORES, (dropped - 1) / 60)
        assert sum(less.counts.values()) == sum(choice.counts.values()) + 1
        assert whole / quadratic(less.keep) < speedup
    if ranking == "layer":
        shares = sorted({k / len(s) for s in SCORES.values() for k in range(len(s))})
        enough = [p for p in shares if whole / quadratic(by_layer(SCORES, p).keep) >= speedup]
        same = by_layer(SCORES, enough[0])
        if whole / quadratic(same.keep) <= COARSE * speedup:
            assert choice.counts == same.counts
        else:  # the last step is taken in some spaces only
            before = by_layer(SCORES, shares[shares.index(enough[0]) - 1]).counts
            assert all(choice.counts[name] in (same.counts[name], before[name]) for name in SCORES)
            assert sum(same.counts.values()) < sum(choice.counts.values()) < sum(before.values())


def test_a_coarse_step_of_the_same_share_is_taken_only_in_as_many_spaces_as_the_target_needs():
    lowest = {"a": 0.4, "b": 0.1, "c": 0.3, "d": 0.2}  # beside a channel of 1: relative to the mean in the same order
    scores = {
        name: 10**place * torch.tensor([value, 1.0]).double() for place, (name, value) in enumerate(lowest.items())
    }
    calls = []

    def cost(keep):
        calls.append(keep)
        return float(sum(map(len, keep.values())))

    choice = for_speedup(scores, 1.3, cost, ranking="layer", normalisation="none")
    assert choice.counts == {"a": 2, "b": 1, "c": 2, "d": 1} and choice.keep["b"] == [1]  # 8 of 6; of 4 by the share
    assert for_speedup(scores, 1.6, cost, ranking="layer").counts == {"a": 2, "b": 1, "c": 1, "d": 1}
    calls.clear()
    assert for_speedup(scores, 2, cost, ranking="layer").counts == dict.fromkeys("abcd", 1)
    assert len(calls) < 8
    limits = Limits(cap=0.4)
    with pytest.raises(TargetError, match="at most 1x"):
        for_speedup(scores, 1.3, cost, ranking="layer", limits=limits)


def test_a_cap_of_the_ratio_itself_is_met_in_whole_channels():
    odd = {name: gradual(5, 5) for name in "abc"}
    choice = by_rank(odd, 0.5, Limits(cap=0.5))
    assert choice.counts == {"a": 3, "b": 3, "c": 3}  # 7 of 15 asked for, 2 of each 5 go
    with pytest.raises(TargetError, match="at most 6 of 15 channels can go"):
        by_rank(odd, 0.6, Limits(cap=0.5))
    with pytest.raises(TargetError, match="at most 6 of 15 channels can go"):
        by_rank(odd, 0.5, Limits(floor=0.6, cap=0.5))


def test_a_speedup_counts_from_the_original():
    choice = for_speedup(SCORES, 2, quadratic, original=2.0 * quadratic(by_counts(SCORES, {}).keep))
    assert choice.counts == {"a": 10, "b": 20, "c": 30}


def test_multiples_are_kept_while_a_speedup_is_met():
    found = {name: gradual(n, n) for name, n in (("a", 64), ("b", 128), ("c", 256))}
    choice = for_speedup(found, 3, quadratic, limits=Limits(multiple=8))
    assert all(n % 8 == 0 for n in choice.counts.values())
    assert quadratic(by_counts(found, {}).keep) / quadratic(choice.keep) >= 3


def test_a_speedup_out_of_reach_names_the_greatest_and_what_limits():
    whole = quadratic(by_counts(SCORES, {}).keep)
    with pytest.raises(TargetError) as error:
        for_speedup(SCORES, 30, quadratic)
    most = int(100 * greatest_speedup(SCORES, quadratic, whole)) / 100
    free = int(100 * greatest_speedup(SCORES, quadratic, whole, Limits(0.0))) / 100
    assert str(error.value) == (
        f"speedup: at most {most:g}x can be reached when each layer keeps 10 % of its channels at least, got 30x; ask "
        f"for {most:g}x or less, or loosen floor 0.1 ({free:g}x without it)."
    )
    for_speedup(SCORES, most, quadratic)
    for_speedup(SCORES, 30, quadratic, limits=Limits(floor=0.0))
    with pytest.raises(TargetError, match=rf"ask for {most:g}x or less \({free:g}x without floor, cap and multiple\)"):
        for_speedup(SCORES, 1000, quadratic)


def test_a_cap_that_keeps_everything_is_loosened_and_no_speedup_of_one_is_advised():
    with pytest.raises(TargetError, match=r"at most 1x can be reached.*; loosen cap 0 \([\d.]+x without it\)\.$"):
        for_speedup(SCORES, 2, quadratic, limits=Limits(cap=0.0))
    assert for_speedup(SCORES, 2, quadratic).keep


def test_no_speedup_of_one_is_advised_where_loosened_limits_are_not_enough_either():
    free = int(100 * greatest_speedup(SCORES, quadratic, quadratic(by_counts(SCORES, {}).keep), Limits(0.0))) / 100
    with pytest.raises(TargetError, match=rf"; loosen floor, cap and multiple \({free:g}x then\)\.$"):
        for_speedup(SCORES, 1000, quadratic, limits=Limits(cap=0.0))
    with pytest.raises(TargetError, match=r"at most 1x can be reached.*; let other channels go\.$"):
        for_speedup(SCORES, 2, lambda keep: 1e5 + sum(map(len, keep.values())), limits=Limits(cap=0.0))


def test_nothing_to_narrow_reaches_no_speedup():
    with pytest.raises(
        TargetError, match="there are no channels that may go, so 1x is the most, got 2x; let other channels go"
    ):
        for_speedup({}, 2, lambda keep: 10.0)
    assert for_speedup({}, 1, lambda keep: 10.0).keep == {}


@pytest.mark.parametrize("speedup", [0.5, float("inf"), float("nan"), "2", True])
def test_a_speedup_that_is_no_number_from_one_is_refused(speedup):
    with pytest.raises(UsageError, match="speedup: must be a number from 1, got "):
        for_speedup(SCORES, speedup, quadratic)


def test_greedy_choices_know_the_earlier_ones_and_keep_the_counts():
    seen = []

    def score_of(name, keep):
        seen.append((name, dict(keep)))
        return -SCORES[name]

    choice = greedily(by_layer(SCORES, 0.8), score_of)
    assert choice.counts == {"a": 2, "b": 4, "c": 6}
    assert choice.keep["a"] == sorted(SCORES["a"].argsort()[:2].tolist())
    assert [name for name, _ in seen] == ["a", "b", "c"]
    assert seen[2][1] == {"a": choice.keep["a"], "b": choice.keep["b"]}


def test_only_the_spaces_that_may_be_emptied_lose_all_channels_without_floor_and_cap():
    scores = {"in": torch.full((10,), 0.01, dtype=torch.float64), "out": torch.full((10,), 0.02, dtype=torch.float64)}
    limits = Limits(0.2, cap=0.8, emptied=frozenset({"in"}))
    found = by_rank(scores, 0.9, limits)
    assert found.counts == {"in": 0, "out": 2} and found.limited == ()
    assert by_rank(scores, 0.5, limits).counts == {"in": 0, "out": 10}
    assert by_layer(scores, 0.95, limits).counts == {"in": 0, "out": 2}
    cost = lambda keep: 1 + sum(map(len, keep.values()))  # noqa: E731
    assert for_speedup(scores, 7, cost, limits=limits).counts == {"in": 0, "out": 2}
    with pytest.raises(TargetError, match="7x can be reached"):
        for_speedup(scores, 8, cost, limits=limits)
