"""The training loop: schedule, resume, best weights, hooks, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from decomp.errors import FileError, NumericalError, UsageError
from decomp.pipelines.measure import accuracy, devices
from decomp.pipelines.training import checkpoints
from decomp.pipelines.training import loop as training
from decomp.pipelines.training.loop import Hooks, Recipe, fit, hold_out, learning_rate_at


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * 36, 3),
        )


class Blobs:
    """Forty noisy images of three classes, told apart by where they are bright."""

    def __init__(self, n=40):
        generator = torch.Generator().manual_seed(5)
        self.labels = torch.arange(n) % 3
        self.images = torch.randn(n, 1, 6, 6, generator=generator)
        for number, label in enumerate(self.labels.tolist()):
            self.images[number, 0, 2 * label : 2 * label + 2] += 1.0

    def batches(self, order, batch_size, augment_seed=None):
        images = self.images
        if augment_seed is not None:
            images = images + 0.01 * torch.randn(
                images.shape, generator=torch.Generator().manual_seed(augment_seed % 2**31)
            )
        for indices in order.split(batch_size):
            yield images[indices], self.labels[indices]


def cross_entropy(module, images, labels):
    return nn.functional.cross_entropy(module(images), labels)


def train(net, data=None, recipe=None, **options):
    data = data or Blobs()
    recipe = recipe or Recipe(epochs=3, learning_rate=0.1, batch_size=8)
    options = {"stage": "test", "loss": cross_entropy, **options}
    return fit(net, recipe, n_images=len(data.labels), batches=data.batches, **options)


def validation(data):
    def validate(net):
        with torch.no_grad():
            loss = cross_entropy(net, data.images, data.labels).item()
        return {"score": -loss, "validation_loss": loss}

    return validate


def assert_same(state, other):
    assert state.keys() == other.keys()
    for name in state:
        assert torch.equal(state[name], other[name]), name


# --- schedule ---


def test_cosine_schedule_follows_its_closed_form():
    recipe = Recipe(epochs=10, learning_rate=0.4, warmup_epochs=1)
    rates = [learning_rate_at(recipe, step, 20) for step in range(200)]
    assert rates[0] == pytest.approx(0.4 / 20)
    assert rates[19] == pytest.approx(0.4)
    assert rates[20] == pytest.approx(0.4)
    assert rates[20 + 90] == pytest.approx(0.2)
    assert rates[20 + 45] == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert 0 < rates[-1] < 1e-4
    assert all(earlier >= later for earlier, later in zip(rates[19:], rates[20:]))


def test_constant_schedule_stays_after_the_warm_up():
    recipe = Recipe(epochs=2, learning_rate=0.3, warmup_epochs=0.5, schedule="constant")
    rates = [learning_rate_at(recipe, step, 4) for step in range(8)]
    assert rates == pytest.approx([0.15] + [0.3] * 7)


def test_warm_up_takes_at_most_half_of_a_short_training():
    recipe = Recipe(epochs=1, learning_rate=1.0, warmup_epochs=5)
    rates = [learning_rate_at(recipe, step, 4) for step in range(4)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_the_optimizer_runs_at_the_scheduled_rates():
    seen = []
    hook = Hooks(after_step=lambda state: seen.append(state.optimizer.param_groups[0]["lr"]))
    recipe = Recipe(epochs=2, learning_rate=0.1, batch_size=8)
    train(small_net(), recipe=recipe, hooks=[hook])
    assert seen == [learning_rate_at(recipe, step, 5) for step in range(10)]


# --- one step against the formula ---


def test_two_steps_are_those_of_sgd_with_nesterov_momentum_and_decay_of_weights_alone():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    weight, bias = net[1].weight.detach().double(), net[1].bias.detach().double()
    data = Blobs(8)
    recipe = Recipe(epochs=2, learning_rate=0.1, batch_size=8, warmup_epochs=0, schedule="constant", weight_decay=0.01)
    images, labels = data.images.flatten(1).double(), data.labels
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(2):
        difference = (images @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, 3)
        gradients = [difference.T @ images / 8 + 0.01 * weight, difference.mean(0)]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients)]
        weight, bias = (p - 0.1 * (g + 0.9 * v) for p, g, v in zip((weight, bias), gradients, velocity))
    fit(
        net,
        recipe,
        stage="test",
        n_images=8,
        batches=lambda order, size, seed: data.batches(order, size),
        loss=cross_entropy,
    )
    torch.testing.assert_close(net[1].weight.double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net[1].bias.double(), bias, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_gradient_that_is_applied():
    net = small_net()
    before = training.copy_state(net)
    recipe = Recipe(
        epochs=1,
        learning_rate=1.0,
        batch_size=40,
        schedule="constant",
        warmup_epochs=0,
        momentum=0,
        weight_decay=0,
        clip_norm=1e-3,
    )
    train(net, recipe=recipe)
    moved = math.sqrt(sum((p.detach() - before[name]).square().sum().item() for name, p in net.named_parameters()))
    assert moved == pytest.approx(1e-3, rel=1e-3)


# --- resume ---


class Interrupted(Exception):
    pass


def stop_after(epochs):
    def after_epoch(state):
        if state.epoch == epochs:
            raise Interrupted

    return Hooks(before_epoch=lambda state: after_epoch(state))


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_training_ends_bit_identical(tmp_path, after):
    data = Blobs()
    whole = train(small_net(), validate=validation(data))
    checkpoint = tmp_path / "last.pt"
    with pytest.raises(Interrupted):
        train(small_net(), validate=validation(data), checkpoint=checkpoint, hooks=[stop_after(after)])
    torch.rand(7)  # whatever happens to the global generator in between must not matter
    resumed = train(small_net(seed=9), validate=validation(data), checkpoint=checkpoint)
    assert_same(whole.module.state_dict(), resumed.module.state_dict())
    assert_same(whole.best_state, resumed.best_state)
    assert whole.best_epoch == resumed.best_epoch
    without_time = [{**line, "seconds": 0} for line in whole.history]
    assert without_time == [{**line, "seconds": 0} for line in resumed.history]


def test_a_finished_training_is_not_continued(tmp_path):
    first = train(small_net(), checkpoint=tmp_path / "last.pt")
    steps = []
    again = train(small_net(), checkpoint=tmp_path / "last.pt", hooks=[Hooks(after_step=steps.append)])
    assert not steps
    assert_same(first.module.state_dict(), again.module.state_dict())


def test_a_checkpoint_of_other_options_is_refused_by_name(tmp_path):
    train(small_net(), checkpoint=tmp_path / "last.pt", identity={"labels": "train"})
    recipe = Recipe(epochs=3, learning_rate=0.2, batch_size=8)
    with pytest.raises(FileError, match=r"learning rate 0.1 \(now 0.2\)"):
        train(small_net(), recipe=recipe, checkpoint=tmp_path / "last.pt", identity={"labels": "train"})
    with pytest.raises(FileError, match=r"labels train \(now none\)"):
        train(small_net(), checkpoint=tmp_path / "last.pt", identity={"labels": "none"})


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
def test_a_broken_checkpoint_is_one_clear_error(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(FileError, match="cannot be read as a checkpoint"):
        train(small_net(), checkpoint=tmp_path / "last.pt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"version": 2, "module": Hostile()}, tmp_path / "last.pt")
    with pytest.raises(FileError):
        checkpoints.read(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


# --- seeds ---


def test_the_seed_decides_and_nothing_global_is_touched():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = train(small_net())
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(1234)
    two = train(small_net())
    other = train(small_net(), recipe=Recipe(epochs=3, learning_rate=0.1, batch_size=8, seed=1))
    assert_same(one.module.state_dict(), two.module.state_dict())
    assert not torch.equal(one.module[0].weight, other.module[0].weight)


def test_each_epoch_has_its_own_order_augmentation_and_dropout():
    orders, seeds, masks = [], [], []
    data = Blobs()

    def batches(order, batch_size, augment_seed):
        orders.append(order)
        seeds.append(augment_seed)
        return data.batches(order, batch_size)

    def loss(module, images, labels):
        masks.append(torch.rand(1).item())
        return cross_entropy(module, images, labels)

    fit(small_net(), Recipe(3, 0.1, 40), stage="test", n_images=40, batches=batches, loss=loss)
    assert len(set(seeds)) == 3 and len(set(masks)) == 3
    assert not torch.equal(orders[0], orders[1])
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(40))


def test_an_incomplete_batch_is_left_out_unless_it_is_all_there_is():
    sizes = []

    def loss(module, images, labels):
        sizes.append(len(images))
        return cross_entropy(module, images, labels)

    train(small_net(), recipe=Recipe(1, 0.1, 39), loss=loss)
    train(small_net(), recipe=Recipe(1, 0.1, 100), loss=loss)
    assert sizes == [39, 40]


def test_hold_out_is_a_seeded_partition():
    train_part, held_out = hold_out(100, 0)
    assert len(held_out) == 10
    assert torch.equal(torch.cat([train_part, held_out]).sort().values, torch.arange(100))
    assert torch.equal(held_out, hold_out(100, 0)[1])
    assert not torch.equal(held_out, hold_out(100, 1)[1])
    assert len(hold_out(60000, 0)[1]) == 5000
    assert [len(part) for part in hold_out(2, 0)] == [1, 1]
    with pytest.raises(UsageError, match="at least 2"):
        hold_out(1, 0)


# --- best weights ---


def test_the_best_weights_are_those_of_the_best_epoch_even_the_start():
    scores = iter([5.0, 1.0, 2.0, 4.0])
    net = small_net()
    start = training.copy_state(net)
    outcome = train(net, validate=lambda net: {"score": next(scores)})
    assert outcome.best_epoch == 0 and outcome.best_score == 5.0
    assert_same(outcome.best_state, start)
    assert not torch.equal(net[0].weight, start["0.weight"])

    scores, seen = iter([1.0, 2.0, 7.0, 7.0]), []

    def validate(net):
        seen.append(training.copy_state(net))
        return {"score": next(scores)}

    outcome = train(small_net(), validate=validate)
    assert outcome.best_epoch == 2
    assert_same(outcome.best_state, seen[2])


def test_validation_runs_in_eval_mode_and_training_in_training_mode():
    modes = []

    def loss(module, images, labels):
        modes.append(("train", module.training))
        return cross_entropy(module, images, labels)

    def validate(net):
        modes.append(("eval", net.training))
        return {"score": 0.0}

    outcome = train(small_net(), loss=loss, validate=validate)
    assert set(modes) == {("train", True), ("eval", False)}
    assert not outcome.module.training
    assert [line["epoch"] for line in outcome.history] == [0, 1, 2, 3]


# --- trouble ---


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad_step", [0, 3, 4])
def test_a_loss_that_is_not_finite_names_epoch_and_step(value, bad_step):
    count = iter(range(1000))

    def loss(module, images, labels):
        result = cross_entropy(module, images, labels)
        return result * value if next(count) == 5 + bad_step else result

    with pytest.raises(NumericalError, match=rf"epoch 2, step {bad_step + 1}: .*lower the learning rate \(now 0.1\)"):
        train(small_net(), loss=loss)


def test_a_diverging_training_is_told():
    with pytest.raises(NumericalError, match="lower the learning rate"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Linear(64, 3)), recipe=Recipe(20, 1e12, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"batch_size": 0},
        {"schedule": "linear"},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"clip_norm": 0.0},
        {"warmup_epochs": -1},
    ],
)
def test_a_recipe_out_of_range_is_refused_by_name(options):
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", " ")):
        Recipe(**{"epochs": 1, "learning_rate": 0.1, **options})


def test_an_unknown_device_is_a_usage_error():
    with pytest.raises(UsageError, match="device"):
        devices.pick_device("toaster")
    with pytest.raises(UsageError, match="CUDA devices here"):
        devices.pick_device("cuda:99")


def test_frozen_parameters_stay_and_the_network_comes_back_as_it_was_laid_out():
    net = small_net()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    train(net)
    assert torch.equal(net[0].weight, before)
    assert all(p.is_contiguous() for p in net.parameters())


def test_hooks_see_gradients_before_and_weights_after_the_step():
    calls = []

    def before_epoch(state):
        calls.append(("before", state.epoch))

    def after_backward(state):
        for parameter in state.module.parameters():
            parameter.grad.zero_()

    def after_epoch(state):
        calls.append(("after", state.epoch))

    net = small_net()
    before = training.copy_state(net)
    hook = Hooks(before_epoch=before_epoch, after_backward=after_backward, after_epoch=after_epoch)
    train(net, recipe=Recipe(2, 0.1, 8, weight_decay=0), hooks=[hook])
    assert calls == [("before", 0), ("after", 1), ("before", 1), ("after", 2)]
    assert torch.equal(net[0].weight, before["0.weight"])


def test_accuracy_equals_a_naive_count():
    data = Blobs()
    net = small_net().eval()
    order = torch.arange(5, 25)
    naive = sum(int(net(data.images[i : i + 1]).argmax()) == int(data.labels[i]) for i in order.tolist()) / 20
    assert accuracy.accuracy(net, data, order, torch.device("cpu"), batch_size=7) == naive
