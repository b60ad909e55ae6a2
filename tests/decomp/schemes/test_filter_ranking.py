import pytest
import torch

from decomp.errors import UsageError
from decomp.schemes.filter_ranking import choose_dropped, least_kept, share_of


def choose(scores, share, dead=None, **options):
    scores = [torch.tensor(values, dtype=torch.float64) for values in scores]
    dead = [torch.zeros(len(s), dtype=torch.bool) for s in scores] if dead is None else list(map(torch.tensor, dead))
    return choose_dropped(scores, dead, share, **options)


@pytest.mark.parametrize(
    "n, share, expected", [(10, 0.3, 3), (100, 0.29, 29), (64, 0.3, 19), (3, 0.3, 0), (7, 0.99, 6), (1000, 0.001, 1)]
)
def test_the_number_dropped_is_the_floor_of_the_share(n, share, expected):
    assert share_of(n, share) == expected
    scores = [[float(i) for i in range(n)]]
    assert len(choose(scores, share)[0]) == min(expected, n - 1)


def test_one_list_over_all_layers_decides_and_the_highest_overlap_goes_first():
    assert choose([[0.1, 0.9, 0.2], [0.8, 0.3, 0.7]], 0.5) == [[1], [0, 2]]
    assert choose([[0.1, 0.9, 0.2], [0.8, 0.3, 0.7]], 0.5, order="reversed") == [[0, 2], [1]]


def test_equal_scores_are_ordered_by_layer_and_filter():
    assert choose([[0.5] * 4, [0.5] * 4], 0.5) == [[0, 1, 2], [0]]
    # Such a difference is one of rounding: it depends on the number of threads.
    assert choose([[0.5, 0.5 + 1e-16, 0.5], [0.5 + 1e-15] * 3], 0.34) == [[0, 1], []]


def test_a_layer_keeps_its_floor_and_the_next_of_the_list_go_instead():
    assert choose([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]], 0.5) == [[0, 1, 2], [3]]
    assert choose([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]], 0.5, min_keep=0.5) == [[0, 1], [2, 3]]
    assert choose([[0.9, 0.8, 0.7], [0.1]], 0.9) == [[0, 1], []]
    assert [least_kept(10, share) for share in (0.0, 0.1, 0.11, 0.3, 0.99)] == [1, 1, 2, 3, 10]


def test_dead_filters_go_first_in_both_orders():
    dead = [[False, False, True], [False, True, False]]
    for order in ("overlap", "reversed"):
        assert choose([[0.5, 0.6, 0.0], [0.7, 0.0, 0.4]], 0.34, dead, order=order) == [[2], [1]]


def test_the_random_order_follows_its_generator_and_not_the_scores():
    scores = [[float(i) for i in range(50)]]
    drawn = [choose(scores, 0.5, order="random", generator=torch.Generator().manual_seed(s))[0] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 5 < sum(f < 25 for f in drawn[0]) < 20


def test_an_unknown_order_is_refused():
    with pytest.raises(UsageError, match="order: must be one of overlap, reversed, random, got 'reverse'; did you"):
        choose([[0.1, 0.2]], 0.5, order="reverse")
