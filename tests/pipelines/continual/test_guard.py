"""Guard: every change of what is committed is noticed."""

import pytest
import torch

from decomp.errors import DecompError
from decomp.pipelines.continual import guard as guard_module
from decomp.pipelines.continual.guard import Guard, scores


@pytest.fixture
def state(learned):
    return learned.store.committed(learned.store.tasks())


@pytest.fixture
def guard(learned):
    return Guard(learned.store, learned.store.tasks())


def first(mask):
    return tuple(mask.nonzero()[0].tolist())


def test_the_committed_state_passes(guard, state):
    guard.check_state(state)


def test_a_frozen_weight_that_moves_by_one_bit_is_noticed(guard, state):
    place = first(state.owners["4"] == 1)
    state.weights["4"][place] = torch.nextafter(state.weights["4"][place], torch.tensor(9.0))
    with pytest.raises(DecompError, match="frozen weights: must stay as they were committed to the last bit"):
        guard.check_state(state)


def test_an_owner_that_changes_is_noticed(guard, state):
    state.owners["4"][first(state.owners["4"] == 1)] = 2
    with pytest.raises(DecompError, match="4: the owner of a weight that a committed task owns must not change"):
        guard.check_state(state)


def test_a_released_weight_that_is_not_zero_is_noticed(guard, state):
    state.weights["4"][first(state.owners["4"] == 0)] = 1e-30
    with pytest.raises(DecompError, match="4: a free weight must be exactly 0"):
        guard.check_state(state)


def test_other_scores_of_a_committed_task_are_noticed(guard, state):
    entry = guard.committed[0]
    entry.task.private["8.bias"] += 1e-6
    with pytest.raises(DecompError, match="task sides: its class scores must not change by a bit"):
        guard.check_state(state)


def test_a_claimed_weight_may_change(guard, state):
    free = state.owners["4"] == 0
    state.owners["4"][free], state.weights["4"][free] = 3, 2.0
    guard.check_state(state)


def test_scores_are_computed_in_one_batch(learned):
    task = learned.store.tasks(1)[0]
    template = learned.store.family_at(1.0).build(1.0, task.n_classes)
    state = learned.store.effective([task])
    assert torch.equal(scores(template, state, task.probe["images"]), task.probe["scores"])
    assert guard_module.scores is scores and not template.training
