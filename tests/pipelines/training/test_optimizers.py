"""Optimizers and parameter groups: steps against their formulas, and which parameters each group has."""

import pytest
import torch
from torch import nn

from decomp.errors import UsageError
from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.loop import copy_state, fit
from decomp.pipelines.training.optimizers import group_parameters, make_optimizers
from decomp.pipelines.training.recipe import ParameterGroup, Recipe
from tests.pipelines.training.small_training import Blobs, assert_same, cross_entropy, small_net, train

CONSTANT = {"schedule": "constant", "warmup_epochs": 0}


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def gradients_of(weight, bias, data):
    """Those of the mean cross-entropy of a linear layer, in float64."""
    images = data.images.flatten(1).double()
    difference = (images @ weight.T + bias).softmax(1) - nn.functional.one_hot(data.labels, 3)
    return difference.T @ images / len(images), difference.mean(0)


def fit_whole(net, recipe, **options):
    """Train with all images in one step per epoch, in order and without augmentation."""
    data = Blobs(8)

    def batches(order, batch_size, augment_seed):
        return data.batches(order, batch_size)

    return fit(net, recipe, stage="test", n_images=8, batches=batches, loss=cross_entropy, **options), data


def double(net):
    return net[1].weight.detach().double().clone(), net[1].bias.detach().double().clone()


def assert_close(net, weight, bias):
    torch.testing.assert_close(net[1].weight.double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net[1].bias.double(), bias, rtol=1e-5, atol=1e-6)


def test_two_steps_are_those_of_sgd_with_nesterov_momentum_and_decay_of_weights_alone():
    net = linear()
    weight, bias = double(net)
    _, data = fit_whole(net, Recipe(2, 0.1, 8, weight_decay=0.01, **CONSTANT))
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(2):
        of_weight, of_bias = gradients_of(weight, bias, data)
        gradients = [of_weight + 0.01 * weight, of_bias]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients)]
        weight, bias = (p - 0.1 * (g + 0.9 * v) for p, g, v in zip((weight, bias), gradients, velocity))
    assert_close(net, weight, bias)


def test_sgd_without_nesterov_steps_along_the_velocity():
    net = linear()
    weight, bias = double(net)
    _, data = fit_whole(net, Recipe(2, 0.1, 8, weight_decay=0, nesterov=False, momentum=0.5, **CONSTANT))
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(2):
        velocity = [0.5 * v + g for v, g in zip(velocity, gradients_of(weight, bias, data))]
        weight, bias = (p - 0.1 * v for p, v in zip((weight, bias), velocity))
    assert_close(net, weight, bias)


def test_sgd_without_momentum_subtracts_the_gradient_and_remembers_nothing():
    net = linear()
    weight, bias = double(net)
    training, data = fit_whole(net, Recipe(2, 0.1, 8, weight_decay=0, momentum=0, **CONSTANT))
    for _ in range(2):
        weight, bias = (p - 0.1 * g for p, g in zip((weight, bias), gradients_of(weight, bias, data)))
    assert_close(net, weight, bias)
    assert training.optimizer_buffers(net[1].weight) == []


def test_two_steps_are_those_of_adam():
    net = linear()
    weight, bias = double(net)
    _, data = fit_whole(net, Recipe(2, 0.01, 8, weight_decay=0, optimizer="adam", **CONSTANT))
    first, second = [0.0, 0.0], [0.0, 0.0]
    for step in (1, 2):
        gradients = gradients_of(weight, bias, data)
        first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, gradients)]
        updates = [m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8) for m, v in zip(first, second)]
        weight, bias = (p - 0.01 * update for p, update in zip((weight, bias), updates))
    assert_close(net, weight, bias)


def test_decay_by_hand_in_a_hook_equals_the_optimizers():
    expected, net = linear(), linear()
    net.load_state_dict(expected.state_dict())
    fit_whole(expected, Recipe(2, 0.1, 8, weight_decay=0.05, **CONSTANT))

    def decay(training):
        (weight,) = training.group("weights")["params"]
        weight.grad += 0.05 * weight.detach()

    fit_whole(net, Recipe(2, 0.1, 8, weight_decay=0, **CONSTANT), hooks=[Hooks(after_backward=decay)])
    torch.testing.assert_close(net.state_dict(), expected.state_dict())


def test_a_group_is_trained_by_its_own_optimizer_and_leaves_the_others_as_they_were():
    """The frozen rest shows that Adam's group alone moves; the moved rest, that SGD's is as without Adam."""
    scales = (ParameterGroup("scales", ("1.*",), optimizer="adam", learning_rate=1e-3, weight_decay=0.0),)
    alone, frozen = small_net(), small_net()
    alone[1].requires_grad_(False)
    for number in (0, 5):
        frozen[number].requires_grad_(False)

    both = train(small_net(), recipe=Recipe(1, 0.1, 40, groups=scales)).module
    sgd = train(alone, recipe=Recipe(1, 0.1, 40)).module
    adam = train(frozen, recipe=Recipe(1, 0.1, 40, groups=scales)).module
    start = small_net()
    for name, parameter in both.named_parameters():
        expected = adam if name.startswith("1.") else sgd
        assert torch.equal(parameter, expected.get_parameter(name)), name
        assert not torch.equal(parameter, start.get_parameter(name)), name
    # The first step of Adam has the size of the rate, whatever the gradient.
    assert (both[1].weight - start[1].weight).abs().max() <= 1e-3 * 1.001


def test_every_group_has_the_rate_of_its_own_schedule():
    groups = (
        ParameterGroup("scales", ("1.weight",), optimizer="adam", learning_rate=0.01, schedule="milestones",
                       milestones=(1, 2), gamma=(0.5, 0.0)),
        ParameterGroup("head", ("5.*",), schedule="constant"),
    )  # fmt: skip
    seen = []

    def look(training):
        seen.append([training.group(name)["lr"] for name in ("weights", "biases", "scales", "head")])

    recipe = Recipe(3, 0.1, 40, warmup_epochs=0, groups=groups)
    training = train(small_net(), recipe=recipe, hooks=[Hooks(after_step=look)])
    cosine = [0.1, 0.075, 0.025]
    expected = [[rate, rate, scale, 0.1] for rate, scale in zip(cosine, (0.01, 0.005, 0.0))]
    assert [value for line in seen for value in line] == pytest.approx([value for line in expected for value in line])
    last = training.history[-1]
    assert [last[f"learning_rate{name}"] for name in ("", "_scales", "_head")] == pytest.approx([0.025, 0.0, 0.1])


def test_a_rate_of_zero_leaves_adams_parameters_as_they_are():
    groups = (ParameterGroup("scales", ("1.*",), optimizer="adam", schedule="milestones", milestones=(1,), gamma=0.0),)
    seen = []
    hook = Hooks(after_epoch=lambda training: seen.append(copy_state(training.module)))
    train(small_net(), recipe=Recipe(3, 0.1, 8, weight_decay=0.1, groups=groups), hooks=[hook])
    for name in ("1.weight", "1.bias"):
        assert torch.equal(seen[0][name], seen[2][name]) and not torch.equal(
            seen[0][name], small_net().state_dict()[name]
        )
    assert not torch.equal(seen[0]["0.weight"], seen[2]["0.weight"])


def test_parameters_are_grouped_by_dimension_pattern_and_predicate():
    net, recipe = small_net(), Recipe(1, 0.1)
    assert group_parameters(net, recipe) == {
        "weights": ["0.weight", "5.weight"],
        "biases": ["1.weight", "1.bias", "5.bias"],
    }
    groups = (
        ParameterGroup("scales", lambda name, parameter: isinstance(net[int(name[0])], nn.BatchNorm2d)),
        ParameterGroup("head", ("5.*",)),
    )
    found = group_parameters(net, Recipe(1, 0.1, groups=groups))
    assert found == {"weights": ["0.weight"], "scales": ["1.weight", "1.bias"], "head": ["5.weight", "5.bias"]}
    net[1].bias.requires_grad_(False)
    assert group_parameters(net, Recipe(1, 0.1, groups=groups))["scales"] == ["1.weight"]


def test_groups_that_do_not_fit_the_network_are_refused():
    net = small_net()
    with pytest.raises(UsageError, match="group head: must have a trainable.*got 5.wieght; did you mean 5.weight"):
        make_optimizers(net, Recipe(1, 0.1, groups=(ParameterGroup("head", ("5.wieght",)),)))
    both = (ParameterGroup("head", ("5.*",)), ParameterGroup("all", ("*",)))
    with pytest.raises(UsageError, match="parameter 5.weight: must be in one group, got head and all"):
        make_optimizers(net, Recipe(1, 0.1, groups=both))
    with pytest.raises(UsageError, match="network: must have a trainable parameter"):
        make_optimizers(net.requires_grad_(False), Recipe(1, 0.1))


def test_a_group_that_a_hook_misspells_is_refused_with_the_names_there_are():
    training = train(small_net(), recipe=Recipe(1, 0.1, 40))
    with pytest.raises(UsageError, match="must be one of weights, biases, got 'weigths'; did you mean weights"):
        training.group("weigths")


def test_buffers_of_a_parameter_are_those_that_its_next_step_uses():
    """Filters whose weights, gradients and buffers are zeroed stay where they are, with momentum and with Adam."""
    for optimizer, n_buffers in (("sgd", 1), ("adam", 2)):
        net = small_net()

        def drop(training, n_buffers=n_buffers):
            weight = training.module[0].weight
            buffers = training.optimizer_buffers(weight)
            assert len(buffers) == (n_buffers if training.epoch else 0)
            if training.epoch == 1:
                for tensor in (weight.data, *buffers):
                    tensor[1] = 0.0

        def stop_gradient(training):
            if training.epoch >= 1:
                training.module[0].weight.grad[1] = 0.0

        hooks = [Hooks(before_epoch=drop, after_backward=stop_gradient)]
        train(net, recipe=Recipe(3, 0.05, 8, optimizer=optimizer), hooks=hooks)
        assert net[0].weight[1].count_nonzero() == 0 and net[0].weight[0].count_nonzero() == 9


def test_the_names_of_groups_survive_a_checkpoint(tmp_path):
    groups = (ParameterGroup("scales", ("1.*",), optimizer="adam"),)
    recipe = Recipe(2, 0.1, 8, groups=groups)
    train(small_net(), recipe=recipe, checkpoint=tmp_path / "a.pt")
    training = train(small_net(), recipe=recipe, checkpoint=tmp_path / "a.pt")
    assert training.group("scales")["params"] == list(training.module[1].parameters())
    assert_same(training.module.state_dict(), train(small_net(), recipe=recipe).module.state_dict())
