"""Training loop: resume, seeds, best weights, modes, clipping, and losses that are not finite."""

import math

import pytest
import torch
from torch import nn

from decomp.errors import FileError, NumericalError
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.record import last_saved_epoch, read_log
from decomp.pipelines.training import checkpoints
from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.loop import copy_state, fit
from decomp.pipelines.training.recipe import Recipe
from tests.pipelines.training.small_training import (
    Blobs,
    Interrupted,
    assert_same,
    cross_entropy,
    small_net,
    stop_after,
    train,
    validation,
)


def test_clipping_bounds_the_gradient_that_is_applied():
    net = small_net()
    before = copy_state(net)
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


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_training_ends_bit_identical(tmp_path, after):
    data = Blobs()
    whole = train(small_net(), validate=validation(data))
    checkpoint = tmp_path / "last.pt"
    with pytest.raises(Interrupted):
        train(small_net(), validate=validation(data), checkpoint=checkpoint, hooks=[stop_after(after)])
    torch.rand(7)  # the global generator must not matter
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


# --- best weights ---


def test_the_best_weights_are_those_of_the_best_epoch_even_the_start():
    scores = iter([5.0, 1.0, 2.0, 4.0])
    net = small_net()
    start = copy_state(net)
    outcome = train(net, validate=lambda net: {"score": next(scores)})
    assert outcome.best_epoch == 0 and outcome.best_score == 5.0
    assert_same(outcome.best_state, start)
    assert not torch.equal(net[0].weight, start["0.weight"])

    scores, seen = iter([1.0, 2.0, 7.0, 7.0]), []

    def validate(net):
        seen.append(copy_state(net))
        return {"score": next(scores)}

    outcome = train(small_net(), validate=validate)
    assert outcome.best_epoch == 2
    assert_same(outcome.best_state, seen[2])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_without_the_best_no_copy_is_kept(tmp_path, checkpoint):
    options = {"checkpoint": tmp_path / "a.pt"} if checkpoint else {}
    outcome = train(small_net(), validate=validation(Blobs()), keep_best=False, **options)
    assert outcome.best_epoch is None and outcome.best_state is None
    assert [line["epoch"] for line in outcome.history] == [0, 1, 2, 3] and outcome.history[3]["validation_loss"] > 0
    assert_same(outcome.module.state_dict(), train(small_net(), validate=validation(Blobs())).module.state_dict())
    if checkpoint:
        assert torch.load(tmp_path / "a.pt", weights_only=True)["best"] == [None, -math.inf, None]


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_epoch_is_logged_when_it_is_in_the_checkpoint(tmp_path, monkeypatch, place):
    run, save = RunDirectory.create(tmp_path / "r"), checkpoints.save

    def killed(training, *args):
        if training.epoch < 3 or place == "after":
            save(training, *args)
        if training.epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt), Reporter.for_run(run, quiet=True).stage("test") as reporter:
        train(small_net(), checkpoint=tmp_path / "c.pt", reporter=reporter)
    saved = checkpoints.read(tmp_path / "c.pt")["epoch"]
    assert saved == (3 if place == "after" else 2)
    assert last_saved_epoch(run.log, "test") == "epoch 2 of 3"  # never one that the file lacks


def test_the_epoch_of_a_diverging_training_is_shown_and_not_taken_for_saved(tmp_path):
    run, recipe = RunDirectory.create(tmp_path / "r"), Recipe(epochs=4, learning_rate=0.01, batch_size=8)
    with pytest.raises(NumericalError), Reporter.for_run(run, quiet=True).stage("test") as reporter:
        train(small_net(), None, recipe, loss=exploding(), checkpoint=tmp_path / "c.pt", reporter=reporter)
    assert [event["epoch"] for event in read_log(run.log) if "epoch" in event] == [1, 2]
    assert last_saved_epoch(run.log, "test") == "epoch 1 of 4"


def test_without_the_best_no_score_is_needed():
    assert train(small_net(), validate=lambda net: {"overlap": 0.5}, keep_best=False).history[0]["overlap"] == 0.5


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


@pytest.mark.parametrize("precision, dtype", [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_precision_is_that_of_the_training_and_weights_and_validation_stay_in_float32(precision, dtype, tmp_path):
    net, data, seen = small_net(), Blobs(), set()

    def loss(module, images, labels):
        scores = module(images)
        seen.add(("train", scores.dtype))
        return nn.functional.cross_entropy(scores.float(), labels)

    def validate(module):
        seen.add(("validation", module(data.images).dtype))
        return {"score": 0.0}

    def check(training):
        seen.update(("gradient", parameter.grad.dtype) for parameter in net.parameters())

    options = {"loss": loss, "checkpoint": tmp_path / "a.pt"}
    train(net, data, precision=precision, validate=validate, hooks=[Hooks(after_backward=check)], **options)
    assert seen == {("train", dtype), ("validation", torch.float32), ("gradient", torch.float32)}
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    other = "float32" if precision else "bfloat16"
    with pytest.raises(FileError, match=rf"computed in .*{other}\)"):
        train(net, data, precision=other, validate=validate, **options)


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


def test_a_diverging_training_is_an_error():
    with pytest.raises(NumericalError, match="lower the learning rate"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Linear(64, 3)), recipe=Recipe(20, 1e12, 8))


def test_frozen_parameters_stay_and_the_network_comes_back_as_it_was_laid_out():
    net = small_net()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    train(net)
    assert torch.equal(net[0].weight, before)
    assert all(p.is_contiguous() for p in net.parameters())


def exploding(first=0.5, epoch=2, factor=100.0):
    """A loss that is `factor` times the first one from an epoch on; epochs have five steps."""
    steps = []

    def loss(module, images, labels):
        steps.append(1)
        wanted = first * (factor if len(steps) > 5 * (epoch - 1) else 1)
        value = cross_entropy(module, images, labels)
        return value * (wanted / value.detach())

    return loss


def test_a_diverging_training_is_stopped_with_the_best_weights_and_its_hooks_save_them(tmp_path):
    net, saved, checkpoint, scores = small_net(), [], tmp_path / "last.pt", iter([0.1, 0.5, 0.3])
    save = Hooks(after_save=lambda training: saved.append((training.epoch, copy_state(training.module))))
    with pytest.raises(NumericalError) as caught:
        train(
            net, None, Recipe(epochs=4, learning_rate=0.01, batch_size=8), loss=exploding(), hooks=[save],
            validate=lambda _: {"score": next(scores)}, checkpoint=checkpoint, start_over="give --redo",
        )  # fmt: skip
    assert str(caught.value) == (
        "epoch 2: the training diverges: its mean loss is 50, that of its first step was 0.5; "
        "lower the learning rate (now 0.01) and give --redo."
    )
    assert [epoch for epoch, _ in saved] == [1, 2]
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    assert_same(saved[1][1], saved[0][1])  # the first epoch is the best one: what the second did is gone
    assert_same(net.state_dict(), saved[1][1])


def test_the_first_loss_is_that_of_the_first_step_also_after_a_resume(tmp_path):
    checkpoint = tmp_path / "last.pt"
    with pytest.raises(Interrupted):
        train(small_net(), loss=exploding(epoch=9), checkpoint=checkpoint, hooks=[stop_after(1)])
    with pytest.raises(
        NumericalError, match=r"epoch 2: .* first step was 0.5; lower the learning rate \(now 0.1\) and"
    ):
        train(small_net(), loss=exploding(epoch=1), checkpoint=checkpoint)
    with pytest.raises(NumericalError, match=r"epoch 1, step 1: .*lower the learning rate \(now 0.1\)\.$"):
        train(small_net(), loss=lambda *_: cross_entropy(*_) * math.nan)


def test_parts_of_a_pass_have_every_image_once_and_each_pass_another_order():
    data, orders = Blobs(), []

    def batches(order, batch_size, augment_seed):
        orders.append(order)
        return data.batches(order, batch_size, augment_seed)

    recipe = Recipe(epochs=8, learning_rate=0.1, batch_size=5)
    fit(small_net(), recipe, stage="test", n_images=40, batches=batches, loss=cross_entropy, slices=4)
    assert [len(order) for order in orders] == [10] * 8
    first, second = torch.cat(orders[:4]), torch.cat(orders[4:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(40))
    assert not torch.equal(first, second)
