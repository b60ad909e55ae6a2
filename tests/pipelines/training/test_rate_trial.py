"""Trial of learning rates: the one that comes closest in its first steps, and no change of the network."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from decomp.pipelines.training import rate_trial
from decomp.pipelines.training.rate_trial import TriedRates, tried_rate
from decomp.pipelines.training.recipe import Recipe
from tests.pipelines.small_runs import quiet

#: The output of a network of one weight is its weight; the target is 1, and a step of rate 1 takes it half the way.
IMAGES = torch.ones(64, 1)


class Weight(nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[value]]))

    def forward(self, x):
        return x @ self.weight


def loss(network, images, targets):
    return (network(images) - 1).square().mean() / 4


def batches(order, batch_size, augment_seed):
    read.append(len(order))
    return ((IMAGES[part], None) for part in order.split(batch_size))


read: list = []
STEPS = {"n_images": 64, "batches": batches, "loss": loss, "device": torch.device("cpu"), "n_parts": 1}


def validate(network):
    change = float((network.weight - 1).square())
    return {"score": -change, "validation_change": change}


def tried(rate, begun=None, judge=validate, value=0.0, limit=None):
    network, lines, reporter = Weight(value), [], quiet()
    reporter.step = lines.append
    recipe = Recipe(epochs=9, learning_rate=rate, batch_size=4, momentum=0.0, weight_decay=0.0)
    found = tried_rate(network, recipe, STEPS, judge, limit, begun or {}, reporter)
    assert network.weight.item() == value
    return found, lines


@pytest.mark.parametrize("asked, expected", [(0.5, 0.5), (7.0, 1.4)])
def test_the_rate_that_comes_closest_in_a_few_steps_is_taken(asked, expected):
    # Above 4 the steps go back and forth further and further; far below 2 they are short.
    found, lines = tried(asked)
    after = {share * asked: (1 - path(share * asked)) ** 2 for share in rate_trial.SHARES}
    assert found == pytest.approx(min(after, key=after.get)) == pytest.approx(expected)
    assert read[-3:] == [32, 32, 32]
    assert lines[0].startswith(f"learning rate {found:g}: after 8 steps") and ", and 1 before them" in lines[0]


@pytest.mark.parametrize("seconds, n_steps", [(0.1, 8), (0.3, 5), (9.0, 3)])
def test_the_trial_takes_a_tenth_of_the_time_at_most_but_a_few_steps(monkeypatch, seconds, n_steps):
    monkeypatch.setattr(rate_trial, "step_time", lambda *arguments, **options: seconds)
    limit = SimpleNamespace(has=lambda needed: needed < 50)  # three rates, ten times: 30 steps for each
    assert f": after {n_steps} steps " in tried(0.5, limit=limit)[1][0]


def path(rate):
    """The weight after eight steps from 0, of which the rate rises in two."""
    weight = 0.0
    for step in range(rate_trial.STEPS):
        weight += min((step + 1) / 2, 1) * rate / 2 * (1 - weight)
    return weight


def test_a_rate_whose_loss_is_no_number_is_not_taken():
    assert tried(1e30)[0] == pytest.approx(4e28)  # all are without bounds: the lowest
    assert TriedRates(1.0, {1.0: math.inf, 0.2: 3.0, 0.04: 4.0}).best == 0.2


def test_of_equally_close_ones_the_lower_rate_is_taken():
    assert tried(1.0, judge=lambda network: {"score": -2.0})[0] == pytest.approx(0.04)


def test_a_training_that_goes_on_keeps_its_rate_without_a_trial():
    def judge(network):
        raise AssertionError

    assert tried(1.0, {"tried_rate": 0.2}, judge) == (0.2, [])
