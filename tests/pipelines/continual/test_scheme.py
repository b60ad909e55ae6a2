"""Hooks of CPG: frozen weights under every optimizer, released weights at every step, early end."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from decomp.errors import DecompError
from decomp.pipelines.continual.guard import Guard
from decomp.pipelines.continual.scheme import CpgScheme
from decomp.pipelines.continual.starts import start
from decomp.pipelines.training.optimizers import buffers_of
from decomp.schemes.cpg_ladder import Rung
from decomp.schemes.cpg_module import TaskModule

IMAGES, LABELS = torch.randn(20, 1, 6, 6), torch.arange(20) % 2


@pytest.fixture
def module(learned):
    """The third task as it begins."""
    store = learned.store
    begin = start(store.family_at(1.0), store.committed(store.tasks()), 3, 1.0, 2, seed=0)
    return TaskModule(store.family_at(1.0).build(1.0, 2), begin, 3)


@pytest.fixture
def guard(learned):
    return Guard(learned.store, learned.store.tasks())


def train(module, scheme, optimizer, steps=6, each=lambda: None):
    training = SimpleNamespace(optimizer_buffers=lambda p: buffers_of({"sgd": optimizer}, p), epoch=0, best_epoch=0,
                               stopped=False)  # fmt: skip
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(IMAGES), LABELS).backward()
        scheme.after_backward(training)
        optimizer.step()
        scheme.after_step(training)
        each()
    return training


def sgd(module, **options):
    return torch.optim.SGD(module.parameters(), **{"lr": 0.05, "momentum": 0.9, "nesterov": True, **options})


@pytest.mark.parametrize(
    "make", [sgd, lambda m: torch.optim.Adam(m.parameters()), lambda m: torch.optim.RMSprop(m.parameters())]
)
def test_fresh_optimizers_leave_frozen_weights_as_they_are(module, guard, make):
    before = {layer: weight.detach().clone() for layer, weight in module.weights.items()}
    train(module, CpgScheme(module, guard, 1e-3), make(module))
    guard.check_module(module)
    for layer, weight in module.weights.items():
        own = module.owners[layer] == 3
        assert torch.equal(weight[~own], before[layer][~own]) and not torch.equal(weight[own], before[layer][own])


def test_weight_decay_of_the_optimizer_moves_frozen_weights_and_is_noticed(module, guard):
    train(module, CpgScheme(module, guard, 0.0), sgd(module, weight_decay=1e-4))
    with pytest.raises(DecompError, match="frozen weights: must stay"):
        guard.check_module(module)


def test_an_optimizer_of_an_earlier_phase_moves_frozen_weights_and_is_noticed(module, guard):
    optimizer = sgd(module)
    for weight in module.weights.values():
        optimizer.state[weight]["momentum_buffer"] = torch.ones_like(weight)
    train(module, CpgScheme(module, guard, 0.0), optimizer, steps=1)
    with pytest.raises(DecompError, match="frozen weights: must stay"):
        guard.check_module(module)


def test_decay_acts_on_the_weights_of_the_task_alone(module, guard):
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    CpgScheme(module, guard, 0.5).after_backward(None)
    for layer, weight in module.weights.items():
        own = module.owners[layer] == 3
        assert torch.equal(weight.grad, torch.where(own, 0.5 * weight.detach(), torch.zeros(())))
    others = [p for name, p in module.named_parameters() if p.dim() < 2 or "picks" in name or ".8." in name]
    assert others and not any(parameter.grad.any() for parameter in others)


def test_released_weights_and_their_momentum_are_zero_after_every_step(module, guard):
    optimizer, scheme = sgd(module), CpgScheme(module, guard, 1e-3, Rung(0.0, 0.6, 8, every=2))
    owned, counts = {layer: owner == 3 for layer, owner in module.owners.items()}, []

    def check():
        counts.append(0)
        for layer, weight in module.weights.items():
            gone = owned[layer] & (module.owners[layer] == 0)
            (momentum,) = buffers_of({"sgd": optimizer}, weight)
            assert not weight[gone].any() and not momentum[gone].any()
            counts[-1] += int(gone.sum())

    train(module, scheme, optimizer, steps=12, each=check)
    guard.check_module(module)
    total = sum(int(own.sum()) for own in owned.values())
    assert counts[0] == 0 < counts[1] < counts[3] < counts[7] == counts[11] and abs(counts[7] - 0.6 * total) <= 2


def test_picks_learn_for_earlier_weights_alone(module, guard):
    before = {layer: values.detach().clone() for layer, values in module.pick_values.items()}
    train(module, CpgScheme(module, guard, 0.0), sgd(module))
    for layer, values in module.pick_values.items():
        earlier = (module.owners[layer] > 0) & (module.owners[layer] < 3)
        assert torch.equal(values[~earlier], before[layer][~earlier]) and not torch.equal(values, before[layer])


@pytest.mark.parametrize(
    ("epoch", "best", "stopped"), [(4, 0, False), (5, 0, True), (9, 5, False), (9, 4, True), (5, None, True)]
)
def test_a_phase_ends_after_its_patience_without_a_better_epoch(module, guard, epoch, best, stopped):
    training = SimpleNamespace(epoch=epoch, best_epoch=best, stopped=False)
    CpgScheme(module, guard, 0.0, patience=5).before_epoch(training)
    assert training.stopped == stopped


def test_the_step_of_a_rung_survives_a_checkpoint(module, guard):
    scheme = CpgScheme(module, guard, 0.0, Rung(0.0, 0.5, 4))
    train(module, scheme, sgd(module), steps=3)
    other = CpgScheme(module, guard, 0.0, Rung(0.0, 0.5, 4))
    other.load_state_dict(scheme.state_dict())
    assert other.step == 3


def test_every_epoch_begins_and_ends_with_the_guard(module, guard):
    with torch.no_grad():
        module.weights["4"].add_(1.0)
    scheme = CpgScheme(module, guard, 0.0)
    for place in (scheme.before_epoch, scheme.after_epoch):
        with pytest.raises(DecompError):
            place(SimpleNamespace(epoch=0, best_epoch=0))
