"""Sparse training in the loop: λ after the gradients, no weight decay on γ, the budget, and resumed trainings."""

import math

import pytest
import torch
from torch import nn

from decomp.criteria.choose import by_rank
from decomp.criteria.ranking import Limits
from decomp.criteria.scale_factors import scaled_channels
from decomp.criteria.scores import score
from decomp.data.sources import open_source
from decomp.graph.tracing import trace
from decomp.modules.copies import deep_copy
from decomp.pipelines.training import loop
from decomp.pipelines.training.loop import fit
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.sparse import SparseTraining, round_up, shrink_budget
from decomp.schemes.sparsity import ScalePenalty, start_scales
from decomp.surgery.narrow_network import shrink
from tests.pipelines.digit_runs import Collected
from tests.pipelines.training.small_training import Blobs, cross_entropy, small_net, train


def sparse(net, strength, proximal=False):
    return SparseTraining(ScalePenalty(net, (1, 6, 6), strength), proximal)


def trained(strength=None, proximal=False, recipe=None, loss=cross_entropy, **options):
    net = small_net()
    start_scales(net)
    hooks = [] if strength is None else [sparse(net, strength, proximal).hooks()]
    recipe = recipe or Recipe(epochs=1, learning_rate=0.1, batch_size=40, warmup_epochs=0, schedule="constant")
    train(net, recipe=recipe, loss=loss, hooks=hooks, **options)
    return net


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_strength_is_that_of_the_unscaled_gradient(precision):
    """Also under autocast: one step with λ differs from one without by η·(1 + μ)·λ·sign(γ) (Nesterov's momentum)."""

    def loss(module, images, labels):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            return cross_entropy(module, images, labels)

    change = trained(0.02, loss=loss)[1].weight - trained(loss=loss)[1].weight
    torch.testing.assert_close(change.detach(), torch.full((4,), -0.1 * 1.9 * 0.02), rtol=0, atol=1e-6)


def test_the_proximal_step_moves_by_the_rate_over_one_minus_the_momentum():
    change = trained(0.02, proximal=True)[1].weight - trained()[1].weight
    torch.testing.assert_close(change.detach(), torch.full((4,), -0.02 * 0.1 / (1 - 0.9)), rtol=0, atol=1e-6)


def test_weight_decay_does_not_act_on_scale_factors():
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=40, warmup_epochs=0, weight_decay=0.5)
    light = Recipe(epochs=1, learning_rate=0.1, batch_size=40, warmup_epochs=0, weight_decay=0.0)
    first, second = trained(0.02, recipe=recipe), trained(0.02, recipe=light)
    assert torch.equal(first[1].weight, second[1].weight) and not torch.equal(first[0].weight, second[0].weight)


@pytest.mark.parametrize("proximal", [False, True])
def test_a_killed_sparse_training_ends_with_the_same_bits(proximal, tmp_path, monkeypatch):
    recipe = Recipe(epochs=3, learning_rate=0.1, batch_size=8)
    whole = trained(0.4, proximal, recipe)
    original = loop._train_epoch

    def stop(state, *rest):
        if state.epoch == 2:
            raise KeyboardInterrupt
        return original(state, *rest)

    monkeypatch.setattr(loop, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(0.4, proximal, recipe, checkpoint=tmp_path / "x")
    monkeypatch.undo()
    resumed = trained(0.4, proximal, recipe, checkpoint=tmp_path / "x")
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())
    assert not torch.equal(whole[1].weight, trained(recipe=recipe)[1].weight)
    assert bool((whole[1].weight == 0).any()) == proximal


def test_the_budget_is_the_sum_of_the_rates_over_one_minus_the_momentum():
    constant = Recipe(epochs=4, learning_rate=0.1, batch_size=10, schedule="constant", warmup_epochs=0)
    assert shrink_budget(1e-3, constant, 105) == pytest.approx(1e-3 * 0.1 * 40 / 0.1)
    cosine = Recipe(epochs=4, learning_rate=0.1, batch_size=10, warmup_epochs=0)
    rates = [0.05 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    assert shrink_budget(1e-3, cosine, 105) == pytest.approx(1e-3 * sum(rates) / 0.1)
    net = small_net()  # nothing in the loss holds the factors: they fall by the budget, less what momentum still owes
    nn.init.constant_(net[1].weight, 5.0)
    train(net, Blobs(100), constant, loss=lambda module, images, labels: 0 * module(images).sum(),
          hooks=[sparse(net, 0.1).hooks()])  # fmt: skip
    fallen = 5.0 - net[1].weight.max().item()
    assert shrink_budget(0.1, constant, 100) * 0.8 < fallen < shrink_budget(0.1, constant, 100)


def test_a_strength_that_shows_nothing_is_told_with_one_that_does():
    recipe, reporter = Recipe(epochs=4, learning_rate=0.1, batch_size=10), Collected()
    sparse(small_net(), 1e-4).announce(recipe, 100, reporter)
    step, warning = reporter.messages
    assert step.startswith("sparsity 0.0001 (sign rule) on 4 scale factors of 1 batch normalisation, from 0.5 on")
    budget = shrink_budget(1e-4, recipe, 100)
    assert f"fall by up to {budget:.3g}" in step and "too small for this training" in warning
    better = float(warning.split("; ")[1].split()[0])
    assert 5 <= shrink_budget(better, recipe, 100) < 10
    reporter = Collected()
    sparse(small_net(), better, proximal=True).announce(recipe, 100, reporter)
    assert len(reporter.messages) == 1 and "(proximal step)" in reporter.messages[0]


def test_a_strength_that_swings_factors_past_their_start_is_warned_of_where_the_sign_rule_moves_them():
    recipe = Recipe(epochs=2, learning_rate=0.1, batch_size=40, warmup_epochs=0, schedule="constant")
    for strength, proximal, warned in ((0.6, False, True), (0.6, True, False), (0.4, False, False)):
        reporter = Collected()
        sparse(small_net(), strength, proximal).announce(recipe, 1000, reporter)
        assert any("too large for this learning rate" in line for line in reporter.messages) is warned


def digits_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))
    start_scales(net)
    return net


def accuracies(strength, ratios):
    """Of a network trained on 400 digits, after channels were removed and before any tuning, on 500 others."""
    split = open_source("digits").train
    (images, labels), (others, wanted) = (
        (split.images(part), split.labels(part)) for part in (torch.arange(400), torch.arange(400, 900))
    )
    net = digits_net()
    hooks = [SparseTraining(ScalePenalty(net, (1, 8, 8), strength), False).hooks()] if strength else []
    fit(
        net, Recipe(epochs=20, learning_rate=0.1, batch_size=40, warmup_epochs=0), stage="test", n_images=400,
        batches=lambda order, size, augment: ((images[i], labels[i]) for i in order.split(size)), loss=cross_entropy,
        hooks=hooks,
    )  # fmt: skip
    scaled = scaled_channels(trace(net), (1, 8, 8))
    scores = score(scaled.network, scaled.graph.spaces, scaled.spaces, "bn-scale")
    found = []
    for ratio in ratios:
        network = deep_copy(scaled.network)
        shrink(network, scaled.graph.spaces, by_rank(scores, ratio, Limits(floor=0.02)).keep)
        with torch.no_grad():
            found.append((network(others).argmax(1) == wanted).double().mean().item())
    return found


def test_accuracy_is_flat_and_then_falls_where_factors_were_penalised_and_falls_at_once_where_not():
    whole, some, half, most = accuracies(0.05, (0.0, 0.3, 0.5, 0.9))
    assert whole > 0.9 and abs(some - whole) < 0.02 and abs(half - whole) < 0.02 and most < 0.5
    whole, some, half, most = accuracies(0.0, (0.0, 0.3, 0.5, 0.9))
    assert whole > 0.9 and some < whole - 0.2 and half < 0.5


def test_scale_factors_near_zero_and_at_zero_are_counted():
    net = small_net()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.0, -0.009, 0.011, 0.5]))
    assert sparse(net, 1.0).facts() == {"channels": 4, "near_zero": 2, "zero": 1}


@pytest.mark.parametrize(("value", "rounded"), [(0.00012, 0.0002), (0.05, 0.05), (1, 1), (0.0099, 0.01), (37, 40)])
def test_a_number_is_rounded_up_to_one_digit(value, rounded):
    assert round_up(value) == pytest.approx(rounded)
