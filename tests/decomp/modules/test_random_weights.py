"""Random weights of networks that are only timed."""

import torch

from decomp.modules.random_weights import PERIOD, random_weights


def test_outputs_are_about_as_large_as_inputs_and_equal_at_every_call():
    weight = random_weights((64, 300, 3, 3))
    assert weight.shape == (64, 300, 3, 3) and torch.equal(weight, random_weights((64, 300, 3, 3)))
    outputs = torch.randn(200, 2700, generator=torch.Generator().manual_seed(1)) @ weight.flatten(1).T
    assert 0.9 < outputs.std() < 1.1


def test_rows_of_weights_that_repeat_differ():
    weight = random_weights((40, PERIOD // 10))
    assert weight.numel() > 3 * PERIOD and torch.equal(weight.flatten()[:9], weight.flatten()[PERIOD : PERIOD + 9])
    assert len({tuple(row[:5].tolist()) for row in weight}) == 40


def test_the_global_generator_stays_as_it_is():
    before = torch.get_rng_state()
    random_weights((4, 4))
    assert torch.equal(torch.get_rng_state(), before)
