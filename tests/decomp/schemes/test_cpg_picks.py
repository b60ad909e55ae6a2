"""Picks: threshold, straight-through gradient, effective weights in training."""

import torch

from decomp.schemes.cpg_owners import effective
from decomp.schemes.cpg_picks import INITIAL, THRESHOLD, binary, effective_in_training, fresh, picked

OWNER = torch.tensor([0, 1, 1, 2, 3], dtype=torch.uint8)
WEIGHT = torch.tensor([7.0, 2.0, -3.0, 5.0, 9.0])
VALUES = torch.tensor([0.01, 0.01, 0.004, -1.0, 0.01])


def test_the_threshold_itself_is_not_picked():
    values = torch.tensor([THRESHOLD, THRESHOLD + 1e-6, -1.0, INITIAL])
    assert binary(values).tolist() == [0, 1, 0, 1]
    assert picked(values).tolist() == [False, True, False, True]


def test_the_gradient_passes_straight_through_the_threshold():
    values = torch.tensor([0.0, 0.01], requires_grad=True)
    (binary(values) * torch.tensor([3.0, -2.0])).sum().backward()
    assert values.grad.tolist() == [3.0, -2.0]


def test_fresh_picks_use_every_earlier_weight():
    (values,) = fresh({"a": OWNER}).values()
    assert values.shape == OWNER.shape and picked(values).all() and values.unique().numel() == 1


def test_training_sees_the_weight_that_inference_uses():
    trained = effective_in_training(WEIGHT, OWNER, 2, VALUES)
    assert trained.tolist() == [0, 2, 0, 5, 0]
    assert torch.equal(trained, effective(WEIGHT, OWNER, 2, picked(VALUES)))


def test_earlier_weights_never_train_and_picks_are_learned_exactly_for_them():
    weight, values = WEIGHT.clone().requires_grad_(), VALUES.clone().requires_grad_()
    effective_in_training(weight, OWNER, 2, values).sum().backward()
    assert weight.grad.tolist() == [0, 0, 0, 1, 0]
    # the gradient of a pick is that of the effective weight times the weight, also where it is not picked
    assert values.grad.tolist() == [0, 2, -3, 0, 0]


def test_the_first_task_has_no_picks():
    assert effective_in_training(WEIGHT, OWNER, 1, None).tolist() == [0, 2, -3, 0, 0]
