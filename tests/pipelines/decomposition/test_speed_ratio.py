"""Measured speed-up: medians, the interval of the median ratio, and the signs of a busy machine."""

import numpy as np
import pytest

from decomp.pipelines.decomposition import speed_ratio
from decomp.pipelines.decomposition.speed_ratio import RoundsRule, SpeedRatio, measure_ratio, median_interval, of_rounds


def test_speedup_is_the_ratio_of_medians_with_quantiles_of_single_rounds():
    original = [10.0] * 11
    found = of_rounds({"original": original, "planned": [10.0 / r for r in np.linspace(1.5, 2.5, 11)],
                       "again": original})  # fmt: skip
    assert found.speedup == pytest.approx(2.0) and (found.low, found.high) == pytest.approx((1.6, 2.4))
    assert (found.noise, found.bias, found.disturbances) == (0.0, 0.0, [])
    said = found.to_json()
    assert (said["measured_speedup"], said["original_ms"], said["measured_ms"], said["busy"]) == (2.0, 10.0, 5.0, False)


def test_the_interval_of_the_median_covers_it_in_95_of_100_samples():
    random = np.random.default_rng(0)
    held = [low <= 0.0 <= high for low, high in (median_interval(random.standard_normal(60)) for _ in range(2000))]
    assert 0.93 <= np.mean(held) <= 0.985
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_blocks_are_measured_until_the_interval_is_narrow():
    random, blocks = np.random.default_rng(0), []

    def block(spread):
        blocks.append(spread)
        return {name: list(10 + spread * random.standard_normal(30)) for name in ("original", "planned", "again")}

    measure_ratio(lambda: block(0.1))
    assert len(blocks) == speed_ratio.FEWEST_BLOCKS
    blocks.clear()
    found = measure_ratio(lambda: block(0.4))
    assert speed_ratio.FEWEST_BLOCKS < len(blocks) < speed_ratio.MOST_BLOCKS
    assert found.interval[1] - found.interval[0] <= 2 * speed_ratio.PRECISION * found.speedup
    blocks.clear()
    measure_ratio(lambda: block(3.0))
    assert len(blocks) == speed_ratio.MOST_BLOCKS
    blocks.clear()
    measure_ratio(lambda: block(3.0), RoundsRule(most_blocks=3))
    assert len(blocks) == 3


@pytest.mark.parametrize(("wanted", "coarse"), [((2.0, 3.0), True), ((0.3, 0.5), True), ((0.9, 1.1), False)])
def test_a_ratio_far_from_those_that_are_wanted_is_measured_less_exactly(wanted, coarse):
    random, blocks = np.random.default_rng(0), []

    def block():
        blocks.append(1)
        return {name: list(10 + 0.5 * random.standard_normal(30)) for name in ("original", "planned", "again")}

    found = measure_ratio(block, RoundsRule(wanted))
    width = (found.interval[1] - found.interval[0]) / found.speedup
    assert (len(blocks) <= speed_ratio.FEWEST_BLOCKS) == coarse and width <= 2 * speed_ratio.COARSE
    assert (width <= 2 * speed_ratio.PRECISION) != coarse


@pytest.mark.parametrize(("kept", "soon"), [((0.9, 1.1), True), ((0.999, 1.1), False), ((0.9, 1.001), False)])
def test_an_interval_within_a_kept_promise_is_narrow_enough(kept, soon):
    random, blocks = np.random.default_rng(0), []

    def block():
        blocks.append(1)
        return {name: list(10 + 0.5 * random.standard_normal(30)) for name in ("original", "planned", "again")}

    found = measure_ratio(block, RoundsRule(kept=kept))
    assert (len(blocks) == speed_ratio.FEWEST_BLOCKS) == soon
    assert kept[0] <= found.interval[0] and found.interval[1] <= kept[1] or not soon


@pytest.fixture
def waits_for_nothing(monkeypatch):
    """A process that never waits for a processor."""
    monkeypatch.setattr(speed_ratio, "Contention", lambda: type("Waits", (), {"share": lambda self: 0.0})())


def slow_then_quick(n_slow):
    """Blocks of exact times: during the first ones the original takes half as long again, the plan twice as long."""
    for place in range(20):
        slow = place < n_slow
        yield {"original": [15.0 if slow else 10.0] * 8, "planned": [10.0 if slow else 5.0] * 8,
               "again": [15.0 if slow else 10.0] * 8}  # fmt: skip


@pytest.mark.parametrize(("n_slow", "fastest"), [(0, None), (1, None), (3, 10.0), (0, 10.2)])
@pytest.mark.usefixtures("waits_for_nothing")
def test_rounds_in_which_the_original_is_slower_than_at_best_do_not_count(n_slow, fastest):
    blocks = slow_then_quick(n_slow)
    found = measure_ratio(lambda: next(blocks), RoundsRule(fastest=fastest))
    assert found.speedup == 2.0 and found.slowed == 0.0 and not found.disturbances


@pytest.mark.usefixtures("waits_for_nothing")
def test_a_machine_that_stays_slow_is_measured_as_it_is_and_said():
    blocks = slow_then_quick(20)
    found = measure_ratio(lambda: next(blocks), RoundsRule(fastest=10.0))
    assert found.speedup == 1.5 and found.slowed == 0.5
    assert found.disturbances == ["the original takes 1.50 times as long as at other times"]
    assert len(list(blocks)) == 20 - speed_ratio.MOST_BLOCKS
    assert not found.is_comparable(SpeedRatio(10.0, 5.0, 2.0, 2.0, (2.0, 2.0)))
    assert found.is_comparable(SpeedRatio(14.0, 5.0, 2.0, 2.0, (2.0, 2.0)))


@pytest.mark.parametrize(
    ("signs", "words"),
    [
        ({"noise": 1.5}, "times of the original against itself spread over 150 %"),
        ({"bias": -0.07}, "the original is 7 % faster or slower than itself"),
        ({"waited": 0.3}, "the threads waited for a processor for 30 % of the time"),
        ({"spread": 0.12}, "the speed-up differs by 12 % from one measurement to another"),
    ],
)
def test_each_sign_of_a_busy_machine_is_said(signs, words):
    ratio = SpeedRatio(10.0, 5.0, 1.9, 2.1, (1.98, 2.02), **signs)
    assert ratio.disturbances == [words] and ratio.to_json()["busy"]


def test_a_machine_that_slows_all_rounds_alike_is_recognised_by_the_wait_for_processors(monkeypatch):
    monkeypatch.setattr(speed_ratio, "Contention", lambda: type("Waits", (), {"share": lambda self: 0.8})())
    found = measure_ratio(lambda: {name: [10.0] * 8 for name in ("original", "planned", "again")})
    assert found.noise == 0.0 and found.disturbances == ["the threads waited for a processor for 80 % of the time"]
