"""State in which a task begins."""

import pytest
import torch

from decomp.pipelines.continual.starts import alone, start
from decomp.pipelines.continual.store import base_state


@pytest.fixture
def before(learned):
    return learned.store.committed(learned.store.tasks())


def test_earlier_weights_and_owners_lead_and_all_free_ones_are_claimed(learned, before):
    family = learned.store.family(True)
    begin = start(family, before, 3, 4.0, 5, seed=0)
    for layer, owner in before.owners.items():
        narrow = tuple(slice(0, size) for size in owner.shape)
        assert begin.weights[layer].shape[0] == 2 * owner.shape[0]
        assert torch.equal(begin.weights[layer][narrow], before.weights[layer])
        assert torch.equal(begin.owners[layer][narrow], torch.where(owner == 0, 3, owner))
        assert (begin.owners[layer][owner.shape[0] :] == 3).all()
        assert begin.weights[layer][owner.shape[0] :].abs().min() > 0  # from the initialiser
    assert torch.equal(begin.private["1.running_mean"][:4], before.private["1.running_mean"])
    assert begin.private["1.running_var"][4:].tolist() == [1, 1, 1, 1]


def test_released_weights_begin_at_zero_or_are_drawn_anew_and_frozen_ones_stay(learned, before):
    family, free = learned.store.family(True), before.owners["4"] == 0
    zero, drawn = (start(family, before, 3, 1.0, 2, seed=0, reinitialise=new).weights["4"] for new in (False, True))
    assert not zero[free].any() and drawn[free].abs().min() > 0
    assert torch.equal(zero[~free], drawn[~free]) and torch.equal(zero, before.weights["4"])


def test_a_head_is_new_and_small_and_picks_are_fresh(learned, before):
    begin = start(learned.store.family(True), before, 3, 1.0, 40, seed=0)
    head = begin.private["8.weight"]
    assert head.shape == (40, 54) and head.std() == pytest.approx(0.01, rel=0.1)
    assert not begin.private["8.bias"].any() and begin.private["8.bias"].shape == (40,)
    assert all((values == 0.01).all() for values in begin.picks.values()) and set(begin.picks) == {"0", "4"}


def test_the_first_task_begins_with_the_base_and_has_no_picks(learned):
    store = learned.store
    base = base_state(store.base, store.family(False))
    begin = start(store.family(False), base, 1, 1.0, 2, seed=0, reinitialise=True)
    assert begin.picks == {} and all(torch.equal(begin.weights[k], base.weights[k]) for k in base.weights)


def test_a_start_is_a_copy_and_the_same_again(learned, before):
    one, two = (start(learned.store.family(True), before, 3, 1.5, 2, seed=0) for _ in range(2))
    other = start(learned.store.family(True), before, 3, 1.5, 2, seed=1)
    assert torch.equal(one.weights["4"], two.weights["4"]) and not torch.equal(one.weights["4"], other.weights["4"])
    one.weights["4"].zero_()
    one.private["1.running_mean"].zero_()
    assert before.weights["4"].any() and before.private["1.running_mean"].any()


def test_an_independent_network_is_its_own_for_every_task(learned):
    store = learned.store
    family, base = store.family(False), base_state(store.base, store.family(False))
    first, second, third = (alone(family, base, 2, seed=0, redrawn=number) for number in (None, 2, 3))
    assert torch.equal(first.weights["4"], base.weights["4"])
    assert len({float(state.weights["4"].sum()) for state in (first, second, third)}) == 3
    assert all((owner == 1).all() for owner in third.owners.values())
