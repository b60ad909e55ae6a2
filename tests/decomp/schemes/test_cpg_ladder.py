"""Gradual pruning: the published schedule, release by magnitude, forced release, choice of a rung."""

import pytest
import torch

from decomp.schemes.cpg_ladder import Rung, choose, forced_share, release, rungs, zero_released

BYTE = torch.uint8


def test_the_schedule_is_that_of_the_published_log():
    rung = Rung(0.8, 0.9, 4 * 79)
    last = [max(step for step in range(1, 79 * epoch + 1) if step % 10 == 0) for epoch in (1, 2, 3, 4)]
    assert last == [70, 150, 230, 310]
    assert [round(rung.sparsity(step), 4) for step in last] == [0.8528, 0.8855, 0.8980, 0.9000]


def test_the_target_is_reached_exactly_at_the_end_of_a_rung_and_kept():
    rung = Rung(0.8, 0.9, 316)
    assert rung.sparsity(0) == 0.8 and rung.sparsity(316) == 0.9 == rung.sparsity(9999)
    updates = [step for step in range(1, 400) if rung.is_update(step)]
    assert updates == [*range(10, 311, 10), 316]
    assert [step for step in range(1, 9) if Rung(0, 0.1, 3).is_update(step)] == [3]


def test_every_rung_begins_where_the_one_before_ended():
    ladder = list(rungs((0.1, 0.5, 0.95), 10))
    assert [rung.start for rung in ladder] == [0.0, 0.1, 0.5]
    assert [rung.target for rung in ladder] == [0.1, 0.5, 0.95]


def test_the_smallest_of_own_and_free_weights_are_released_and_earlier_ones_never():
    weight = torch.tensor([0.0, 0.1, -0.2, 0.3, -0.4, 0.001])
    owner = torch.tensor([0, 2, 2, 2, 2, 1], dtype=BYTE)
    # five candidates, the third smallest is 0.2
    assert release(weight, owner, 2, 0.6).tolist() == [False, True, True, False, False, False]


def test_all_weights_up_to_the_cut_are_released_with_it():
    weight, owner = torch.tensor([0.5, 0.5, 0.5, 0.9]), torch.full((4,), 3, dtype=BYTE)
    assert release(weight, owner, 3, 0.25).tolist() == [True, True, True, False]


def test_a_rank_of_zero_and_a_layer_without_candidates_release_nothing():
    weight, owner = torch.tensor([0.5, 0.1, 0.2]), torch.full((3,), 2, dtype=BYTE)
    assert not release(weight, owner, 2, 0.1).any()  # round(0.3) = 0
    assert not release(weight, torch.ones(3, dtype=BYTE), 2, 0.9).any()


def test_twenty_tasks_must_release_the_derived_shares():
    shares = [forced_share(task, 20) for task in range(1, 21)]
    assert shares == [0.9] * 14 + [0.8] * 3 + [0.7, 0.5, 0.0]
    assert forced_share(25, 20) == 0.0


@pytest.mark.parametrize(
    ("recorded", "forced", "chosen"),
    [
        ({0.1: 0.95, 0.2: 0.89, 0.3: 0.91}, False, 0.3),  # the most compact that meets the goal, whatever lies between
        ({0.1: 0.8, 0.2: 0.7}, False, 0.0),
        ({0.1: 0.8, 0.2: 0.7}, True, 0.2),
        ({}, True, 0.0),
        ({0.1: 0.9}, False, 0.1),
    ],
)
def test_the_most_compact_model_that_meets_the_goal_is_chosen(recorded, forced, chosen):
    assert choose(recorded, 0.9, forced) == chosen


def test_released_weights_are_set_to_zero_in_place():
    weights = {"a": torch.tensor([1.0, 2.0])}
    zero_released(weights, {"a": torch.tensor([0, 1], dtype=BYTE)})
    assert weights["a"].tolist() == [0.0, 2.0]
