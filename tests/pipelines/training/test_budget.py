"""Budget in minutes: the epochs that fit, the hook that ends a training, and an interrupted training's number."""

import pytest
import torch
from torch import nn

from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.training import budget
from decomp.pipelines.training.budget import Budget, epoch_seconds
from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.loop import Training, fit
from decomp.pipelines.training.recipe import Recipe

CPU = torch.device("cpu")


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    "n_images, batch_size, expected", [(100, 10, 10 * 2.0 + 7.0), (1000, 10, 100 * 2.0 + 7.0), (5, 10, 9.0 + 7.0)]
)
def test_an_epoch_is_its_steps_and_a_validation_without_the_slow_first_step(n_images, batch_size, expected):
    clock, module, steps = Clock(), nn.Linear(3, 2), []

    def batches(order, size, augment_seed):
        for part in order.split(size):
            yield torch.ones(len(part), 3), None

    def loss(network, images, labels):
        steps.append(len(images))
        clock.now += 2.0 if len(steps) > 1 else 9.0
        return network(images).sum()

    def validate(network):
        assert not network.training
        clock.now += 7.0

    before = {name: value.clone() for name, value in module.state_dict().items()}
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=batch_size)
    seconds = epoch_seconds(
        module, recipe, n_images=n_images, batches=batches, loss=loss, validate=validate, device=CPU, clock=clock
    )
    assert seconds == expected and len(steps) <= 1 + budget.TRIAL_STEPS
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.weight.grad is None and module.training


def test_slow_steps_are_timed_fewer_times():
    clock, steps = Clock(), []

    def loss(network, images, labels):
        steps.append(1)
        clock.now += 15.0
        return network(images).sum()

    seconds = epoch_seconds(
        nn.Linear(3, 2), Recipe(epochs=1, learning_rate=0.1, batch_size=1), n_images=50,
        batches=lambda order, size, seed: ((torch.ones(1, 3), None) for _ in order), loss=loss,
        validate=lambda network: None, device=CPU, clock=clock,
    )  # fmt: skip
    assert len(steps) == 3 and seconds == 50 * 15.0


def planned(minutes, each, spent=0.0, folder=None, monkeypatch=None):
    clock = Clock()
    monkeypatch.setattr(budget.time, "perf_counter", clock)
    limit = Budget(minutes, 0.0)

    def seconds():
        clock.now += spent
        return each

    return limit, limit.plan(Recipe(epochs=1, learning_rate=0.1), folder / "checkpoint.pt", "again", seconds)


@pytest.mark.parametrize("minutes, each, spent, epochs", [(1, 6.0, 0.0, 9), (1, 6.0, 20.0, 6), (1, 500.0, 0.0, 1)])
def test_nine_tenths_of_the_time_that_is_left_are_planned(tmp_path, monkeypatch, minutes, each, spent, epochs):
    assert planned(minutes, each, spent, tmp_path, monkeypatch)[1].epochs == epochs


def test_a_checkpoint_keeps_its_number_of_epochs(tmp_path):
    recipe = Recipe(epochs=4, learning_rate=0.1, batch_size=4)

    def stop(training):
        training.stopped = training.epoch == 2

    fit(
        nn.Linear(3, 2), recipe, stage="test", n_images=8,
        batches=lambda order, size, seed: ((torch.ones(size, 3), None) for _ in order.split(size)),
        loss=lambda network, images, labels: network(images).square().mean(), checkpoint=tmp_path / "checkpoint.pt",
        hooks=[Hooks(before_epoch=stop)],
    )  # fmt: skip
    plan = Budget(60, 0.0).plan(Recipe(epochs=1, learning_rate=0.1), tmp_path / "checkpoint.pt", "again", lambda: 1 / 0)
    assert plan.epochs == 4


@pytest.mark.parametrize("epoch, seconds, stopped", [(2, 30.0, True), (2, 29.0, False), (0, 100.0, False)])
def test_no_epoch_begins_when_the_time_is_over_but_the_first(tmp_path, monkeypatch, epoch, seconds, stopped):
    limit, recipe = planned(1, 1.0, 0.0, tmp_path, monkeypatch)
    history = [{"epoch": number, "seconds": seconds} for number in range(2)]
    training = Training(nn.Linear(3, 2), {}, recipe, epoch=epoch, history=history)
    limit.hook(Reporter(quiet=True)).before_epoch(training)
    assert training.stopped == stopped
