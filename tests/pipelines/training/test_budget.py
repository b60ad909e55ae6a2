"""Budget in minutes: the epochs that fit, the hook that ends a training, and an interrupted training's number."""

import pytest
import torch
from torch import nn

from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.training import budget
from decomp.pipelines.training.budget import Budget, EpochTime, epoch_time, step_time
from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.loop import Training, fit
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.schedules import learning_rate_at

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
    found = epoch_time(
        module, recipe, n_images=n_images, batches=batches, loss=loss, validate=validate, device=CPU, clock=clock
    )
    assert found.of(1) == expected and found.rest == 7.0 and len(steps) <= 1 + budget.TRIAL_STEPS
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.weight.grad is None and module.training


def test_slow_steps_are_timed_fewer_times():
    clock, steps = Clock(), []

    def loss(network, images, labels):
        steps.append(1)
        clock.now += 15.0
        return network(images).sum()

    found = epoch_time(
        nn.Linear(3, 2), Recipe(epochs=1, learning_rate=0.1, batch_size=1), n_images=50,
        batches=lambda order, size, seed: ((torch.ones(1, 3), None) for _ in order), loss=loss,
        validate=lambda network: None, device=CPU, clock=clock,
    )  # fmt: skip
    assert len(steps) == 3 and found == EpochTime(50 * 15.0, 50, 0.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_are_timed_in_the_precision_of_the_training(precision):
    seen = []

    def loss(network, images, labels):
        seen.append(network(images).dtype)
        return network(images).sum()

    step_time(
        nn.Linear(3, 2), Recipe(epochs=1, learning_rate=0.1, batch_size=1), n_images=50, device=CPU, most=4,
        batches=lambda order, size, seed: ((torch.ones(1, 3), None) for _ in order), loss=loss, precision=precision,
    )  # fmt: skip
    assert seen == 5 * [getattr(torch, precision)]


def test_there_is_time_for_what_is_less_than_nine_tenths_of_the_rest(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget.time, "perf_counter", clock)
    limit, clock.now = Budget(1, 0.0), 20.0
    assert limit.has(35.9) and not limit.has(36.1)


def planned(minutes, each, spent=0.0, folder=None, monkeypatch=None):
    clock = Clock()
    monkeypatch.setattr(budget.time, "perf_counter", clock)
    limit = Budget(minutes, 0.0)

    def seconds():
        clock.now += spent
        return EpochTime(each, 1000, 0.0)

    return limit, limit.plan(Recipe(epochs=1, learning_rate=0.1), folder / "checkpoint.pt", "again", seconds)


@pytest.mark.parametrize("minutes, each, spent, epochs", [(1, 6.0, 0.0, 9), (1, 6.0, 20.0, 6), (1, 9.0, 0.0, 6)])
def test_nine_tenths_of_the_time_that_is_left_are_planned(tmp_path, monkeypatch, minutes, each, spent, epochs):
    limit, recipe = planned(minutes, each, spent, tmp_path, monkeypatch)
    assert recipe.epochs == epochs and limit.slices == 1


@pytest.mark.parametrize("each, slices, epochs", [(20.0, 2, 5), (500.0, 38, 4), (1e6, 1000, 1)])
def test_where_few_passes_fit_an_epoch_is_a_part_of_one(tmp_path, monkeypatch, each, slices, epochs):
    limit, recipe = planned(1, each, 0.0, tmp_path, monkeypatch)
    assert limit.slices == slices and recipe.epochs == epochs


def test_a_validation_that_is_longer_than_the_time_leaves_one_step():
    assert EpochTime(50.0, 10, 9.0).slices(8.0) == 10
    assert EpochTime(50.0, 10, 9.0).slices(34.0) == 2 and EpochTime(50.0, 10, 9.0).of(2) == 34.0


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


class Paced:
    """The epochs of a training whose seconds are given; the rates of its steps, of which an epoch has five."""

    def __init__(self, limit, recipe, seconds, stop=None):
        self.hook = limit.hook(Reporter(quiet=True))
        self.training = training = Training(nn.Linear(3, 2), {}, recipe)
        self.rates, self.places, rule = [], [], recipe.rules()["weights"]
        while training.epoch < training.n_epochs and training.epoch != stop:
            self.hook.before_epoch(training)
            if training.stopped:
                break
            places = [training.place(step, 5) for step in range(6)]
            self.places += [places[0], places[-1]]
            self.rates += [learning_rate_at(rule, place, 5) for place in places[:5]]
            training.epoch += 1
            training.history.append({"epoch": training.epoch, "seconds": seconds[training.epoch - 1]})


RECIPE = Recipe(epochs=8, learning_rate=0.1, warmup_epochs=0.5)


@pytest.mark.parametrize(
    "seconds, epochs",
    [([5.0] * 8, 8), ([5.0, 10.0, 10.0, 10.0, 10.0, 10.0], 6), ([5.0, 5.0, 40.0, 5.0], 4), ([25.0, 1.0, 1.0], 2)],
)
def test_the_schedule_ends_at_its_minimum_on_a_machine_that_becomes_slower(seconds, epochs):
    ran = Paced(Budget(1, 0.0), RECIPE, seconds)
    assert ran.training.epoch == epochs
    assert ran.places[-1] == pytest.approx(8 * 5) and ran.rates[-1] == min(ran.rates)
    assert learning_rate_at(RECIPE.rules()["weights"], ran.places[-1], 5) == pytest.approx(0, abs=1e-12)
    assert ran.places[1:-1:2] == pytest.approx(ran.places[2::2])  # an epoch begins where the last one ended
    assert ran.rates[3:] == sorted(ran.rates[3:], reverse=True)


def test_fewer_epochs_than_planned_are_said_when_it_is_known(monkeypatch):
    said = []
    monkeypatch.setattr(Reporter, "step", lambda self, line: said.append(line))
    Paced(Budget(1, 0.0), RECIPE, [7.0] * 8)
    assert said == []
    Paced(Budget(1, 0.0), RECIPE, [5.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    assert said == ["6 epochs in all: at the pace of the last one no more fit into the time"]


def test_at_the_planned_pace_every_rate_is_that_of_the_recipe():
    ran, rule = Paced(Budget(1, 0.0), RECIPE, [7.0] * 8), RECIPE.rules()["weights"]
    assert ran.rates == [learning_rate_at(rule, step, 5) for step in range(40)]


def test_a_resumed_training_goes_on_with_its_plan():
    seconds = [5.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    whole, begun = (Paced(Budget(1, 0.0), RECIPE, seconds, stop) for stop in (None, 4))
    limit = Budget(1, 0.0)
    hook = limit.hook(Reporter(quiet=True))
    hook.load_state_dict(begun.hook.state_dict())
    training = Training(nn.Linear(3, 2), {}, RECIPE, epoch=4, history=begun.training.history)
    hook.before_epoch(training)
    assert training.n_epochs == 6 and training.place(0, 5) == whole.places[8]


@pytest.mark.parametrize("epoch, seconds, stopped", [(2, 30.0, True), (2, 29.0, False), (0, 100.0, False)])
def test_no_epoch_begins_when_the_time_is_over_but_the_first(epoch, seconds, stopped):
    history = [{"epoch": number, "seconds": seconds} for number in range(2)]
    training = Training(nn.Linear(3, 2), {}, RECIPE, epoch=epoch, history=history)
    Budget(1, 0.0).hook(Reporter(quiet=True)).before_epoch(training)
    assert training.stopped == stopped
