"""Joint refinement of the weights of a block."""

import copy

import pytest
import torch
from torch import nn

from decomp.execution import block_refinement
from decomp.execution.block_refinement import (
    BlockOf,
    Pairs,
    refine_block,
    relative_error,
    spread,
    targets_of,
)
from decomp.graph.blocks import find_blocks
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace

SHAPE = (2, 6, 6)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3),
    )  # fmt: skip


def blocks(module, least=2):
    traced = trace(module)
    return traced, [BlockOf(traced, block) for block in find_blocks(NetworkGraph(traced, SHAPE), least)]


def images(n=60, seed=1):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_blocks_one_after_the_other_are_the_network_and_leave_their_inputs():
    traced, parts = blocks(network())
    x = images(7)
    before, value = x.clone(), x
    for part in parts:
        kept = value.clone()
        after = part.of_all(value)
        assert torch.equal(value, kept)
        value = after
    assert len(parts) == 2 and torch.equal(value, traced(x)) and torch.equal(x, before)


def perturbed(seed=0):
    """Blocks of a network and of a disturbed copy, and pairs of the first block for fitted and unseen images."""
    original = network(seed)
    _, theirs = blocks(original)
    other = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += (
                0.3 * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            )
    _, ours = blocks(other)
    pairs = [Pairs(x, theirs[0].of_all(x)) for x in (images(), images(20, 3))]
    return ours[0], *pairs


def refined(block, fitted, unseen, steps=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return refine_block(block, fitted, unseen, steps=steps, batch_size=16, generator=generator)


def test_a_disturbed_block_comes_back_towards_the_original_on_unseen_images():
    block, fitted, unseen = perturbed()
    scale = spread(fitted.targets)
    before = relative_error(block, unseen, scale)
    report = refined(block, fitted, unseen)
    assert report["error_before"] == pytest.approx(before) and before > 0.05
    assert report["error_after"] == pytest.approx(relative_error(block, unseen, scale)) and report["step"] > 0
    assert report["error_after"] < 0.3 * before


def test_the_state_that_stays_is_that_of_least_error_on_unseen_images(monkeypatch):
    block, fitted, unseen = perturbed()
    errors = iter([0.5, 0.5, 0.4, 0.1, float("nan"), 0.3, 0.2, 0.1])
    states = []

    def told(block, pairs, scale):
        states.append(block.weights())
        return next(errors)

    monkeypatch.setattr(block_refinement, "relative_error", told)
    report = refined(block, fitted, unseen, steps=10)
    assert report == {"error_before": 0.5, "error_after": 0.1, "step": 4}
    assert all(torch.equal(value, states[3][name]) for name, value in states[7].items())
    states = states[1:]
    assert all(torch.equal(p, states[2][name]) for name, p in block.parameters().items())
    assert not torch.equal(states[2]["0.weight"], states[5]["0.weight"])


def test_the_state_can_be_chosen_by_another_number():
    block, fitted, unseen = perturbed()
    before, numbers = relative_error(block, unseen, spread(fitted.targets)), iter([3.0, 2.0, 1.0, 2.0, 2.0, 2.0])
    report = refine_block(
        block, fitted, unseen, steps=10, batch_size=16, generator=torch.Generator(), judge=lambda: next(numbers)
    )
    assert report["step"] == 4 and report["error_before"] == pytest.approx(before)
    assert report["error_after"] == pytest.approx(relative_error(block, unseen, spread(fitted.targets)))


def test_another_loss_and_rate_take_the_place_of_the_error_and_its_rate():
    """A loss that wants twice the values of the targets; the first step of Adam is the rate of each weight's size."""
    block, fitted, unseen = perturbed()
    doubled = Pairs(unseen.inputs, 2 * unseen.targets)
    before, scale = relative_error(block, doubled, 1.0), block_refinement._size(block.parameters()["0.weight"])
    old = block.weights()["0.weight"]
    options = {
        "batch_size": 16,
        "generator": torch.Generator(),
        "loss": lambda wanted, got: (2 * wanted - got).pow(2).sum(),
    }
    refine_block(block, fitted, unseen, steps=1, judge=iter([1.0, 0.0]).__next__, rate=0.003, **options)
    moved = (block.weights()["0.weight"] - old).abs()
    assert moved.max() == pytest.approx(0.003 * scale, rel=1e-3) and moved.min() > 0.002 * scale
    judge = iter([1.0, 0.9, 0.8, 0.7, 0.6, 0.5]).__next__
    refine_block(block, fitted, unseen, steps=100, judge=judge, rate=0.02, **options)
    assert relative_error(block, doubled, 1.0) < 0.5 * before


def test_a_block_that_only_becomes_worse_on_unseen_images_keeps_its_weights():
    block, fitted, _ = perturbed()
    # It already gives what is wanted of the unseen images, and something else is wanted of the fitted ones.
    unseen = Pairs(images(20, 3), block.of_all(images(20, 3)))
    before = block.weights()
    report = refined(block, fitted, unseen, steps=20)
    assert report == {"error_before": 0.0, "error_after": 0.0, "step": 0}
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in block.parameters().items())


def test_the_error_of_some_channels_is_relative_to_their_own_variance():
    block, fitted, unseen = perturbed()
    y = block.of_all(unseen.inputs)
    block.put({"2.weight": torch.zeros_like(block.parameters()["2.weight"])})
    block.put({"2.bias": torch.zeros_like(block.parameters()["2.bias"])})  # and so all outputs are zero
    narrow = Pairs(unseen.inputs, torch.cat([y, y], 1)[:, : y.shape[1] + 2], torch.arange(y.shape[1]))
    found = relative_error(block, narrow, spread(narrow.targets, narrow.columns))
    assert found == pytest.approx(float(y.square().mean()) / spread(y))


def test_a_block_in_which_nothing_was_changed_is_not_trained(monkeypatch):
    block, fitted, _ = perturbed()
    same = Pairs(fitted.inputs, block.of_all(fitted.inputs))
    monkeypatch.setattr(torch.optim, "Adam", None)
    assert refined(block, same, same) == {"error_before": 0.0, "error_after": 0.0, "step": 0}


def test_the_same_generator_gives_the_same_weights_and_another_one_others():
    weights = []
    for seed in (0, 0, 1):
        block, fitted, unseen = perturbed()
        refined(block, fitted, unseen, steps=10, seed=seed)
        weights.append(block.parameters()["2.weight"].detach().clone())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_targets_that_do_not_vary_and_blocks_without_parameters_are_left_alone():
    block, fitted, unseen = perturbed()
    constant = Pairs(fitted.inputs, torch.ones_like(fitted.targets))
    before = block.parameters()["0.weight"].detach().clone()
    assert refined(block, constant, unseen) == {} and torch.equal(block.parameters()["0.weight"], before)
    nan = Pairs(fitted.inputs, fitted.targets * float("nan"))
    assert refined(block, nan, unseen) == {}


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.a(self.c(self.b(self.a(x)))).mean((2, 3))


def test_weights_that_are_used_outside_the_block_too_are_not_trained():
    _, (first, second) = blocks(Twice())
    assert list(first.parameters()) == ["b.weight", "b.bias"] and list(second.parameters()) == ["c.weight", "c.bias"]


def test_the_error_is_the_share_of_the_variance_about_the_means_of_the_channels():
    y = (
        torch.randn(30, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3])[:, None, None]
        + 7
    )
    assert spread(y) == pytest.approx(((y - y.mean((0, 2, 3), keepdim=True)) ** 2).mean().item())
    some = y[:, [0, 2]]
    assert spread(y, torch.tensor([0, 2])) == pytest.approx(
        ((some - some.mean((0, 2, 3), keepdim=True)) ** 2).mean().item()
    )
    assert spread(y.flatten(1)) == pytest.approx(((y - y.mean(0)) ** 2).mean().item())


def test_targets_are_the_channels_that_stayed():
    y = torch.randn(2, 5, 3, 3)
    assert torch.equal(targets_of(y, torch.tensor([1, 4])), y[:, [1, 4]]) and targets_of(y, None) is y


def test_values_are_put_into_parameters_of_the_same_names():
    block, _, _ = perturbed()
    before = block.weights()
    block.put({"0.bias": torch.full((6,), 2.0)})
    after = block.weights()
    assert (after.pop("0.bias") == 2).all() and all(torch.equal(value, before[name]) for name, value in after.items())


class Compared:
    """A block that ends in a comparison."""

    def __init__(self, block):
        self.block = block

    def __getattr__(self, name):
        return getattr(self.block, name)

    def __call__(self, x):
        return (self.block(x) > 0).float()


def test_a_block_that_ends_in_a_step_without_a_gradient_keeps_its_weights():
    block, fitted, unseen = perturbed()
    fitted, unseen = (Pairs(pairs.inputs, (pairs.targets > 0).float()) for pairs in (fitted, unseen))
    before = block.parameters()["0.weight"].detach().clone()
    result = refined(Compared(block), fitted, unseen)
    assert result["step"] == 0 and result["error_before"] == result["error_after"] > 0.01
    assert torch.equal(block.parameters()["0.weight"], before)
