"""Confidence intervals of shares: published values, coverage by simulation, the ends."""

import numpy as np
import pytest
from scipy import stats

from decomp.pipelines.measure.intervals import paired_difference, share_words, short_share, wilson


@pytest.mark.parametrize(("count", "n"), [(0, 6), (6, 6), (1, 10), (81, 263), (15, 148), (4700, 5000)])
def test_wilson_equals_scipys_interval(count, n):
    expected = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert wilson(count, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_six_of_six_images_say_little():
    low, high = wilson(6, 6)
    assert (low, high) == (pytest.approx(0.6097, abs=1e-4), 1.0)


def test_interval_of_the_paired_difference_covers_the_true_one():
    rng = np.random.default_rng(0)
    n, chances = 300, [0.05, 0.02, 0.93]
    draws = rng.multinomial(n, chances, size=4000)
    inside = [low <= 0.03 <= high for low, high in (paired_difference(int(a), int(b), n) for a, b, _ in draws)]
    assert 0.94 <= np.mean(inside) <= 0.975


def test_paired_difference_is_antisymmetric_and_ignores_images_alike():
    low, high = paired_difference(9, 2, 400)
    assert paired_difference(2, 9, 400) == pytest.approx((-high, -low))
    wide = paired_difference(9, 2, 100)
    assert wide[1] - wide[0] > high - low


def test_words_have_as_many_digits_as_the_images_justify():
    assert share_words(1.0, 6) == "100 % (95 % interval 61 to 100)"
    assert share_words(0.936, 500).startswith("93.6 % (95 % interval 91.1 to 95.4")
    assert share_words(0.9431, 10000) == "94.31 % (95 % interval 93.84 to 94.75)"


@pytest.mark.parametrize(
    "count, n, text",
    [(6, 6, "100 % (61–100)"), (448, 450, "99.6 % (98.4–99.9)"), (94_310, 100_000, "94.31 % (94.16–94.45)")],
)
def test_the_short_form_has_the_same_numbers(count, n, text):
    assert short_share(count / n, n) == text
    bounds = share_words(count / n, n)
    numbers = text.replace("–", " ").replace("(", " ").replace(")", " ").replace("%", " ").split()
    assert len(numbers) == 3 and all(number in bounds for number in numbers)


def test_a_share_of_an_unknown_number_of_images_stands_alone():
    assert short_share(0.5, 0) == "50.0 %"
