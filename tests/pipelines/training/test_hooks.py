"""Hooks: where they are called, their state in checkpoints, and schemes that change a network while it is trained."""

import math

import pytest
import torch

from decomp.errors import FileError, NumericalError, UsageError
from decomp.pipelines.training import checkpoints, hooks
from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.loop import copy_state
from decomp.pipelines.training.recipe import ParameterGroup, Recipe
from tests.pipelines.training.small_training import (
    Blobs,
    Interrupted,
    assert_same,
    small_net,
    stop_after,
    train,
    validation,
)


class FilterDropping:
    """Before each epoch another filter is drawn, kept at zero, and put back with its old weights an epoch later.

    Its state is what a scheme may have: a generator, a mask, weights from before, counts.
    """

    def __init__(self):
        self.generator = torch.Generator().manual_seed(11)
        self.mask, self.dropped, self.events = torch.ones(4), {}, []

    def before_epoch(self, training):
        weight = training.module[0].weight.data
        for index, before in self.dropped.items():
            weight[index] = before
        index = int(torch.randint(4, (), generator=self.generator))
        self.dropped, self.mask = {index: weight[index].clone()}, torch.ones(4)
        self.mask[index] = 0.0
        for buffer in training.optimizer_buffers(training.module[0].weight):
            buffer[index] = 0.0
        self.events.append([training.epoch, index])
        self.after_step(training)

    def after_step(self, training):
        training.module[0].weight.data.mul_(self.mask[:, None, None, None])

    def state_dict(self):
        state = {"mask": self.mask, "dropped": self.dropped, "events": self.events}
        return {**state, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.mask, self.dropped, self.events = state["mask"], state["dropped"], state["events"]
        self.generator.set_state(state["generator"])


EPOCHS = 5
RECIPE = Recipe(
    EPOCHS, 0.1, 8, schedule="milestones", milestones=(2, 4), gamma=0.5,
    groups=(ParameterGroup("scales", ("1.*",), optimizer="adam", learning_rate=0.01, schedule="cosine"),),
)  # fmt: skip


def run(scheme, net_seed=0, more_hooks=(), **options):
    options = {"recipe": RECIPE, "validate": validation(Blobs()), **options}
    return train(small_net(net_seed), hooks=[Hooks.of(scheme, "dropping"), *more_hooks], **options)


def interrupted_and_resumed(checkpoint, after):
    """A training that is stopped after so many epochs, and resumed from the file with a network and a scheme anew."""
    with pytest.raises(Interrupted):
        run(FilterDropping(), checkpoint=checkpoint, more_hooks=[stop_after(after)])
    torch.rand(7)
    scheme = FilterDropping()
    return run(scheme, net_seed=9, checkpoint=checkpoint), scheme


def everything(training):
    """All bits of a training's result, without the times."""
    history = [{**line, "seconds": 0} for line in training.history]
    states = {kind: optimizer.state_dict() for kind, optimizer in training.optimizers.items()}
    return checkpoints.digest([copy_state(training.module), training.best_state, training.best_epoch, history, states])


@pytest.fixture(scope="module")
def whole():
    scheme = FilterDropping()
    return run(scheme), scheme


@pytest.mark.parametrize("after", range(1, EPOCHS))
def test_resumed_after_any_epoch_it_ends_bit_identical(tmp_path, whole, after):
    expected, expected_scheme = whole
    resumed, scheme = interrupted_and_resumed(tmp_path / "a.pt", after)
    assert everything(resumed) == everything(expected)
    assert checkpoints.digest(scheme.state_dict()) == checkpoints.digest(expected_scheme.state_dict())
    assert {index for _, index in scheme.events} != {scheme.events[0][1]}  # the generator was drawn from


@pytest.mark.parametrize("forgotten", ["dropped", "generator"])
def test_a_scheme_that_forgets_part_of_its_state_ends_otherwise(tmp_path, whole, monkeypatch, forgotten):
    """So the test above sees it: each part of the state decides the result."""
    load = FilterDropping.load_state_dict

    def forgetful(scheme, state):
        load(scheme, {**state, forgotten: FilterDropping().state_dict()[forgotten]})

    monkeypatch.setattr(FilterDropping, "load_state_dict", forgetful)
    resumed, _ = interrupted_and_resumed(tmp_path / "a.pt", 2)
    assert everything(resumed) != everything(whole[0])


def test_a_training_that_forgets_the_state_of_its_hooks_ends_otherwise(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_hook_states", lambda hooks, states: None)
    resumed, _ = interrupted_and_resumed(tmp_path / "a.pt", 2)
    assert everything(resumed) != everything(whole[0])


def test_a_training_that_forgets_the_state_of_an_optimizer_ends_otherwise(tmp_path, whole, monkeypatch):
    for kind in (torch.optim.SGD, torch.optim.Adam):
        with monkeypatch.context() as patch:
            patch.setattr(kind, "load_state_dict", lambda self, state: None)
            resumed, _ = interrupted_and_resumed(tmp_path / f"{kind.__name__}.pt", 2)
        assert everything(resumed) != everything(whole[0])


def test_weights_that_are_masked_after_every_step_stay_zero_through_a_resume(tmp_path):
    seen = []

    class Masked:
        """Filter 2 is pruned at the second epoch, under momentum and weight decay."""

        mask = torch.ones(4, 1, 1, 1)

        def before_epoch(self, training):
            if training.epoch == 1:
                self.mask = torch.tensor([1.0, 1, 0, 1])[:, None, None, None]
                self.after_step(training)

        def after_step(self, training):
            training.module[0].weight.data.mul_(self.mask)
            seen.append((training.epoch, training.module[0].weight[2].count_nonzero().item()))

        def state_dict(self):
            return {"mask": self.mask}

        def load_state_dict(self, state):
            self.mask = state["mask"]

    recipe = Recipe(4, 0.1, 8, weight_decay=0.1)
    with pytest.raises(Interrupted):
        train(small_net(), recipe=recipe, checkpoint=tmp_path / "a.pt",
              hooks=[Hooks.of(Masked(), "mask"), stop_after(2)])  # fmt: skip
    training = train(small_net(3), recipe=recipe, checkpoint=tmp_path / "a.pt", hooks=[Hooks.of(Masked(), "mask")])
    assert {count for epoch, count in seen if epoch >= 1} == {0} and {count for epoch, count in seen if epoch < 1} == {
        9
    }
    assert [epoch for epoch, _ in seen].count(3) == 5
    assert training.module[0].weight[2].count_nonzero() == 0 and training.module[0].weight[1].count_nonzero() == 9


def test_hooks_see_gradients_before_and_weights_after_the_step():
    calls = []

    def before_epoch(training):
        calls.append(("before", training.epoch))

    def after_backward(training):
        for parameter in training.module.parameters():
            parameter.grad.zero_()

    def after_epoch(training):
        calls.append(("after", training.epoch, len(training.history)))

    def after_save(training):
        calls.append(("saved", training.epoch, len(training.history)))

    net = small_net()
    before = copy_state(net)
    hook = Hooks(before_epoch, after_backward, after_epoch=after_epoch, after_save=after_save)
    train(net, recipe=Recipe(2, 0.1, 8, weight_decay=0), hooks=[hook])
    first, second = [("before", 0), ("after", 1, 0), ("saved", 1, 1)], [("before", 1), ("after", 2, 1), ("saved", 2, 2)]
    assert calls == first + second
    assert torch.equal(net[0].weight, before["0.weight"])


def test_gradients_of_a_hook_are_clipped_with_the_others():
    """A penalty that is added in a hook counts for the norm."""
    net = small_net()
    before = copy_state(net)

    def add(training):
        training.module[0].weight.grad += 1e6

    recipe = Recipe(1, 1.0, 40, schedule="constant", warmup_epochs=0, momentum=0, weight_decay=0, clip_norm=1e-2)
    train(net, recipe=recipe, hooks=[Hooks(after_backward=add)])
    moved = net[0].weight.detach() - before["0.weight"]
    assert moved.norm().item() == pytest.approx(1e-2, rel=1e-3)
    torch.testing.assert_close(moved, torch.full_like(moved, -1e-2 / math.sqrt(36)), rtol=1e-3, atol=0)


def test_a_hook_ends_a_training_early_and_a_resumed_one_at_the_same_epoch(tmp_path):
    def before_epoch(training):
        training.stopped = training.epoch == 2

    first = train(small_net(), checkpoint=tmp_path / "a.pt", hooks=[Hooks(before_epoch=before_epoch)])
    again = train(small_net(4), checkpoint=tmp_path / "a.pt", hooks=[Hooks(before_epoch=before_epoch)])
    assert first.epoch == again.epoch == 2 and not first.module.training
    assert_same(first.module.state_dict(), again.module.state_dict())


def test_a_checkpoint_of_other_hooks_is_refused(tmp_path):
    run(FilterDropping(), checkpoint=tmp_path / "a.pt", more_hooks=[])
    with pytest.raises(FileError, match=r"hooks with a state \['dropping'\] \(now \[\]\)"):
        train(small_net(), recipe=RECIPE, validate=validation(Blobs()), checkpoint=tmp_path / "a.pt")


# --- mistakes ---


def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path):
    hook = Hooks(state_dict=lambda: {"dropped": {1, 2}}, load_state_dict=lambda state: None, name="a")
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        train(small_net(), checkpoint=tmp_path / "a.pt", hooks=[hook])
    assert not (tmp_path / "a.pt").exists()


def test_a_state_needs_a_name_and_both_callables():
    with pytest.raises(UsageError, match="must have both of state_dict and load_state_dict"):
        Hooks(state_dict=dict, name="a")
    with pytest.raises(UsageError, match="must have a name for their state"):
        Hooks(state_dict=dict, load_state_dict=lambda state: None)
    pair = [Hooks(state_dict=dict, load_state_dict=lambda state: None, name="a")] * 2
    with pytest.raises(UsageError, match="different names for their states, got a twice"):
        train(small_net(), hooks=pair)


def test_methods_of_a_scheme_that_would_never_be_called_are_refused():
    class Misnamed:
        def after_steps(self, training):
            pass

    with pytest.raises(UsageError, match="hooks a: .*got after_steps; did you mean after_step"):
        Hooks.of(Misnamed(), "a")
    with pytest.raises(UsageError, match="hooks a: must have one of the methods before_epoch"):
        Hooks.of(object(), "a")


def test_of_takes_all_methods_of_a_scheme():
    scheme = FilterDropping()
    taken = Hooks.of(scheme, "dropping")
    present = {place for place in (*hooks.PLACES, *hooks.STATE) if getattr(taken, place) is not None}
    assert present == {"before_epoch", "after_step", "state_dict", "load_state_dict"}
    assert taken.after_step == scheme.after_step and taken.name == "dropping"


class ChangedBefore:
    """A scheme that changes the network before one epoch."""

    def __init__(self, epoch):
        self.epoch, self.done = epoch, 0

    def before_epoch(self, training):
        self.done = self.epoch if training.epoch >= self.epoch else 0

    def changed_after(self):
        return self.done


@pytest.mark.parametrize("changed", [0, 1])
def test_a_network_that_was_changed_on_purpose_is_judged_by_the_epochs_since(changed):
    # The first one is that of the network before the training.
    accuracies = iter([0.95, 0.1, 0.1, 0.1, 0.1] if changed == 0 else [0.95, 0.95, 0.1, 0.1, 0.1])

    def run():
        return train(
            small_net(), recipe=Recipe(epochs=4, learning_rate=1e-6, batch_size=8, warmup_epochs=0),
            validate=lambda module: {"score": 0.0, "validation_accuracy": next(accuracies)}, n_validation=1000,
            loss=lambda net, images, labels: 0 * net(images).sum() + 2,
            hooks=[Hooks.of(ChangedBefore(changed), "changed")],
        )  # fmt: skip

    if changed:
        assert run().history[-1]["epoch"] == 4
    else:
        with pytest.raises(NumericalError, match=r"the training diverges: validation accuracy 10.* after 95"):
            run()
