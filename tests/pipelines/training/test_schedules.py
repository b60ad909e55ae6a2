"""Learning-rate schedules against their closed forms."""

import math

import pytest
import torch

from decomp.pipelines.training import recipe as recipes
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.schedules import learning_rate_at


def rates_of(steps_per_epoch, **options):
    rule = Recipe(**{"warmup_epochs": 0, **options}).rules()["weights"]
    return [learning_rate_at(rule, step, steps_per_epoch) for step in range(options["epochs"] * steps_per_epoch)]


def test_cosine_follows_its_closed_form():
    rates = rates_of(20, epochs=10, learning_rate=0.4, warmup_epochs=1)
    assert rates[0] == pytest.approx(0.4 / 20)
    assert rates[19] == pytest.approx(0.4)
    assert rates[20] == pytest.approx(0.4)
    assert rates[20 + 90] == pytest.approx(0.2)
    assert rates[20 + 45] == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert 0 < rates[-1] < 1e-4
    assert all(earlier >= later for earlier, later in zip(rates[19:], rates[20:]))


def test_constant_stays_at_the_peak_after_the_warm_up():
    rates = rates_of(4, epochs=2, learning_rate=0.3, warmup_epochs=0.5, schedule="constant")
    assert rates == pytest.approx([0.15] + [0.3] * 7)


def test_a_warm_up_takes_at_most_half_of_a_short_training():
    rates = rates_of(4, epochs=1, learning_rate=1.0, warmup_epochs=5)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_milestones_multiply_the_rate_at_the_start_of_their_epochs():
    options = {"epochs": 8, "learning_rate": 0.5, "schedule": "milestones", "milestones": (3, 6)}
    expected = [0.5] * 6 + [0.05] * 6 + [0.005] * 4
    assert rates_of(2, **options) == pytest.approx(expected)
    weight = torch.zeros(1, requires_grad=True)
    torchs = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([weight], 0.5), milestones=[3, 6], gamma=0.1)
    for epoch in range(8):
        assert torchs.get_last_lr() == pytest.approx(expected[2 * epoch : 2 * epoch + 1])
        torchs.optimizer.step()
        torchs.step()


def test_every_milestone_can_have_its_own_factor_also_zero():
    rates = rates_of(1, epochs=6, learning_rate=1.0, schedule="milestones", milestones=(1, 4), gamma=(0.2, 0.0))
    assert rates == pytest.approx([1.0, 0.2, 0.2, 0.2, 0.0, 0.0])


def test_milestones_come_after_a_warm_up():
    rates = rates_of(2, epochs=4, learning_rate=1.0, warmup_epochs=1, schedule="milestones", milestones=(2,), gamma=0.5)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5])


def test_every_schedule_that_a_recipe_accepts_reaches_its_peak():
    for name in recipes.SCHEDULES:
        milestones = (2,) if name == "milestones" else ()
        rates = rates_of(3, epochs=4, learning_rate=0.7, schedule=name, milestones=milestones)
        assert (
            max(rates) == pytest.approx(0.7) and len(set(rates)) == {"cosine": 12, "constant": 1, "milestones": 2}[name]
        )
