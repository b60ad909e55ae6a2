"""Owners of weights: claims, effective weights, shares, digest of the frozen ones."""

import pytest
import torch

from decomp.errors import DecompError
from decomp.schemes.cpg_growth import grown
from decomp.schemes.cpg_owners import (
    claim,
    effective,
    frozen_digest,
    old,
    released,
    require_zero_where_free,
    shared_ratio,
    shares,
    sparsity,
    task_ratio,
)

OWNER = torch.tensor([[0, 1, 2], [3, 2, 1]], dtype=torch.uint8)
WEIGHT = torch.tensor([[0.0, 10.0, 20.0], [30.0, 21.0, 11.0]])


def test_a_claim_takes_the_free_weights_and_no_other():
    assert claim({"a": OWNER}, 4)["a"].tolist() == [[4, 1, 2], [3, 2, 1]]
    assert OWNER[0, 0] == 0


@pytest.mark.parametrize("task", [0, 256])
def test_a_task_outside_one_byte_is_refused(task):
    with pytest.raises(DecompError, match=r"must be one of 1\.\.255, got"):
        claim({"a": OWNER}, task)


def test_the_effective_weight_has_own_and_picked_earlier_entries_and_zeros_elsewhere():
    picked = torch.tensor([[True, True, True], [True, True, False]])
    assert effective(WEIGHT, OWNER, 2, picked).tolist() == [[0, 10, 20], [0, 21, 0]]
    assert effective(WEIGHT, OWNER, 2).tolist() == [[0, 10, 20], [0, 21, 11]]
    assert effective(WEIGHT, OWNER, 1, ~picked).tolist() == [[0, 10, 0], [0, 0, 11]]


def test_the_effective_weight_is_a_pure_function_so_that_evaluating_a_task_erases_no_other():
    weight = WEIGHT.clone()
    effective(weight, OWNER, 1).mul_(0)
    assert torch.equal(weight, WEIGHT)
    assert effective(weight, OWNER, 3)[1, 0] == 30


def test_the_effective_weight_of_a_task_does_not_depend_on_later_owners():
    changed = torch.where(OWNER > 2, torch.full_like(WEIGHT, torch.nan), WEIGHT)
    assert torch.equal(effective(changed, OWNER, 2), effective(WEIGHT, OWNER, 2))


def test_gradients_reach_own_entries_alone():
    weight = WEIGHT.clone().requires_grad_()
    effective(weight, OWNER, 2).sum().backward()
    assert weight.grad.tolist() == [[0, 0, 1], [0, 1, 0]]


def test_owners_partition_the_weights():
    share = shares({"a": OWNER, "b": torch.zeros(2, dtype=torch.uint8)})
    assert share == {0: 3 / 8, 1: 2 / 8, 2: 2 / 8, 3: 1 / 8}
    assert sum(share.values()) == 1


def test_ratios_are_those_of_the_published_log():
    owners = {"a": torch.tensor([0] * 12 + [3] * 38 + [1] * 50, dtype=torch.uint8)}
    assert sparsity(owners, 3) == pytest.approx(12 / 50)
    # task 3 has 0.760 of width 1; of one and a half times the weights it would have 0.840 to print 1.260
    assert task_ratio({"a": torch.tensor([3] * 76 + [1] * 24, dtype=torch.uint8)}, 3) == pytest.approx(0.76)
    assert task_ratio({"a": torch.tensor([3] * 84 + [1] * 16, dtype=torch.uint8)}, 3, 1.5) == pytest.approx(1.26)
    assert task_ratio(owners, 0, 1.5) == pytest.approx(0.18)


def test_the_shared_ratio_counts_picks_among_earlier_weights():
    picked = {"a": torch.tensor([[True, True, False], [True, False, False]])}
    assert shared_ratio({"a": OWNER}, 3, picked) == 1 / 4
    assert shared_ratio({"a": OWNER}, 1, picked) is None
    assert old(OWNER, 3).tolist() == [[False, True, True], [False, True, True]]


def test_a_free_weight_other_than_zero_is_refused():
    require_zero_where_free({"a": WEIGHT}, {"a": OWNER})
    with pytest.raises(DecompError, match="a: a free weight must be exactly 0"):
        require_zero_where_free({"a": WEIGHT + 1e-38}, {"a": OWNER})
    assert released({"a": OWNER})["a"].tolist() == [[True, False, False], [False] * 3]


def test_the_digest_of_frozen_weights_sees_every_bit_of_them_and_nothing_else():
    before = frozen_digest({"a": WEIGHT}, {"a": OWNER}, 3)
    later = WEIGHT.clone()
    later[1, 0], later[0, 0] = -1.0, 5.0
    assert frozen_digest({"a": later}, {"a": OWNER}, 3) == before
    later[0, 1] = torch.nextafter(later[0, 1], torch.tensor(0.0))
    assert frozen_digest({"a": later}, {"a": OWNER}, 3) != before
    moved = OWNER.clone()
    moved[0, 1], moved[0, 2] = 2, 1
    assert frozen_digest({"a": WEIGHT}, {"a": moved}, 3) != before


def test_the_digest_of_frozen_weights_survives_growth():
    wide, owner = grown(WEIGHT, torch.randn(4, 5)), grown(OWNER, torch.full((4, 5), 3, dtype=torch.uint8))
    assert frozen_digest({"a": wide}, {"a": owner}, 3) == frozen_digest({"a": WEIGHT}, {"a": OWNER}, 3)
