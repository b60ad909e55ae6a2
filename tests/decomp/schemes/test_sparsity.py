"""The penalty on scale factors: which ones, the sign rule, the soft threshold, and the first values."""

import pytest
import torch
from preactivation import SHAPE, Bottleneck, images, preactivation
from torch import nn

from decomp.data import zoo
from decomp.errors import UsageError
from decomp.schemes.sparsity import START, ScalePenalty, start_scales

INNER = ["block0.bn1", "block0.bn2", "block0.bn3", "norm"]


def penalty(network, strength=0.01, shape=SHAPE):
    return ScalePenalty(network, shape, strength)


def gradients(network, scaled=None):
    """Gradients of a loss; those of the loss with its penalty written out where λ is given."""
    network.zero_grad()
    loss = network(images()).square().sum()
    if scaled is not None:
        paths, strength = scaled
        loss = loss + strength * sum(network.get_parameter(f"{path}.weight").abs().sum() for path in paths)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_the_gradient_is_that_of_the_loss_with_the_sum_of_absolute_scale_factors():
    network = preactivation(Bottleneck())
    with torch.no_grad():
        network.block0.bn1.weight[:5] *= -1
        network.norm.weight[3] = 0  # the sign of 0 is 0
    wanted = gradients(network, (INNER, 0.01))
    found = penalty(network)
    gradients(network)
    found.add_gradients()
    assert [entry.path for entry in found.factors] == INNER
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=1e-6, msg=name)
    without = gradients(network)
    assert torch.equal(wanted["norm.weight"][3], without["norm.weight"][3])


def test_only_scale_factors_whose_channels_can_go_are_penalised():
    network = zoo.build("resnet20-fashion")
    found = penalty(network, shape=(1, 28, 28))
    assert {entry.path for entry in found.factors} == {f"{block}.bn1" for block in range(3, 12)}
    assert found.n_channels == 3 * (16 + 32 + 64) and "3.bn2" in found.left_out
    network(torch.randn(2, 1, 28, 28)).sum().backward()
    before = {name: p.grad.clone() for name, p in network.named_parameters()}
    found.add_gradients()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p.grad, before[name])}
    assert changed == {f"{block}.bn1.weight" for block in range(3, 12)}


def test_the_soft_threshold_gives_exact_zeros_and_never_changes_a_sign():
    network = preactivation(Bottleneck())
    with torch.no_grad():
        network.norm.weight[:4] = torch.tensor([0.3, -0.3, 0.05, -0.05])
    others = {name: p.clone() for name, p in network.named_parameters() if "bn" not in name and name != "norm.weight"}
    penalty(network, 0.5).shrink(0.2)  # by 0.1
    torch.testing.assert_close(network.norm.weight[:2], torch.tensor([0.2, -0.2]))
    assert network.norm.weight[2:4].tolist() == [0.0, 0.0]
    assert all(torch.equal(network.get_parameter(name), value) for name, value in others.items())


def test_the_sign_rule_oscillates_around_zero_where_the_soft_threshold_stays_there():
    """Of a factor that the loss does not depend on: the amplitude is about η·λ / (1 − μ)."""
    rate, momentum, strength = 0.1, 0.9, 0.01
    seen = {}
    for proximal in (False, True):
        network = preactivation(Bottleneck())
        start_scales_at(network, 0.5)
        found = penalty(network, strength)
        optimizer = torch.optim.SGD(network.parameters(), rate, momentum)
        last = []
        for step in range(120):
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            found.shrink(rate / (1 - momentum)) if step and proximal else None
            found.add_gradients() if not proximal else None
            optimizer.step()
            last.append(found.values().abs().max().item())
        seen[proximal] = last[80:]
    assert max(seen[True]) == 0.0
    assert 0 < max(seen[False]) <= 2 * rate * strength / (1 - momentum)


def start_scales_at(network, value):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, value)


def test_untrained_scale_factors_start_at_a_half_and_trained_ones_stay():
    network = zoo.build("vgg-digits")
    assert START == 0.5 and start_scales(network) == 4
    assert all((network[i].weight == 0.5).all() for i in (1, 4, 8, 11))
    trained = preactivation(Bottleneck())
    before = trained.norm.weight.clone()
    assert start_scales(trained) == 0 and torch.equal(trained.norm.weight, before)
    assert start_scales(nn.BatchNorm2d(3, affine=False)) == 0


@pytest.mark.parametrize("strength", [0, -1e-4, float("nan"), float("inf")])
def test_a_strength_that_is_no_positive_number_is_refused(strength):
    with pytest.raises(UsageError, match="sparsity: must be a positive number"):
        penalty(preactivation(Bottleneck()), strength)


def test_a_network_without_scale_factors_to_rank_is_refused_with_the_reason():
    with pytest.raises(UsageError, match="got a network without batch normalisations; .* such as l1"):
        penalty(zoo.build("convnet-fashion"), shape=(1, 28, 28))
    with pytest.raises(UsageError, match="got 0 has channels that must stay: it is the image itself"):
        penalty(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)))
