import itertools

import pytest

from decomp.schemes.drop_cycles import Cycle, drop_cycles


def test_a_hundred_epochs_hold_three_cycles_at_the_published_places():
    assert drop_cycles(100, 20, 10) == (Cycle(20, 30), Cycle(50, 60), Cycle(80, 90))
    assert drop_cycles(100, 20, 10, at_most=2) == (Cycle(20, 30), Cycle(50, 60))


@pytest.mark.parametrize("epochs, count", [(30, 0), (31, 1), (60, 1), (61, 2), (80, 2), (90, 2), (91, 3), (110, 3)])
def test_a_cycle_is_begun_only_where_a_full_epoch_follows_it(epochs, count):
    assert len(drop_cycles(epochs, 20, 10)) == count


def test_every_training_ends_with_all_filters_and_no_cycle_that_fits_is_left_out():
    for epochs, s1, s2 in itertools.product(range(1, 14), range(1, 6), range(1, 6)):
        cycles = drop_cycles(epochs, s1, s2)
        ends = [0, *(cycle.restore_at for cycle in cycles)]
        assert all(cycle.drop_at - end == s1 for cycle, end in zip(cycles, ends))
        assert all(cycle.restore_at - cycle.drop_at == s2 for cycle in cycles)
        assert ends[-1] < epochs <= ends[-1] + s1 + s2
