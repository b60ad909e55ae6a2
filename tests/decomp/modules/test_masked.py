"""Masked layers: outputs, gradients and shared parameters."""

import pytest
import torch
from torch import nn

from decomp.modules.masked import MaskedConv2d, MaskedLinear, masked_parameters, set_masks
from decomp.surgery.narrow_module import narrow_layer

LAYERS = {
    "linear": lambda bias: nn.Linear(6, 5, bias=bias),
    "convolution": lambda bias: nn.Conv2d(6, 5, (3, 1), 2, "valid", bias=bias),
    "reflected": lambda bias: nn.Conv2d(6, 5, 3, padding=1, dilation=2, padding_mode="reflect", bias=bias),
}


def masked_of(layer):
    return (MaskedLinear if isinstance(layer, nn.Linear) else MaskedConv2d).of(layer)


def images(layer):
    shape = (4, 6) if isinstance(layer, nn.Linear) else (4, 6, 7, 7)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_are_those_of_the_smaller_layer_and_zero_elsewhere(kind, bias):
    layer = LAYERS[kind](bias)
    masked, reads, writes = masked_of(layer), [0, 2, 5], [1, 4]
    x = images(layer)
    torch.testing.assert_close(masked(x), layer(x))  # at first all channels count
    set_masks(masked, reads, writes)
    small = narrow_layer(layer, torch.tensor(reads), torch.tensor(writes))
    got = masked(x)
    torch.testing.assert_close(got[:, writes], small(x[:, reads]))
    assert got.shape == layer(x).shape and (got[:, [0, 2, 3]] == 0).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_training_moves_only_what_counts(kind):
    layer = LAYERS[kind](True)
    masked, before = masked_of(layer), {k: v.clone() for k, v in layer.state_dict().items()}
    set_masks(masked, [0, 2, 5], [1, 4])
    optimizer = torch.optim.SGD(masked.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        masked(images(layer)).square().sum().backward()
        optimizer.step()
    moved = masked.weight.detach() != before["weight"]
    assert moved[[1, 4]][:, [0, 2, 5]].all() and int(moved.sum()) == moved[[1, 4]][:, [0, 2, 5]].numel()
    assert (masked.bias.detach() != before["bias"]).tolist() == [False, True, False, False, True]
    assert layer.weight is masked.weight and layer.bias is masked.bias


def test_weights_that_are_no_numbers_do_not_pass_a_mask():
    masked = masked_of(nn.Linear(3, 2))
    with torch.no_grad():
        masked.weight[0] = float("nan")
        masked.bias[0] = float("inf")
    set_masks(masked, writes=[1])
    weight, bias = masked_parameters(masked)
    assert weight.isfinite().all() and bias.tolist()[0] == 0


def test_masks_are_buffers_and_come_back_with_the_state():
    masked = MaskedConv2d(4, 3, 3, padding=1)
    set_masks(masked, [1, 2], [0])
    again = MaskedConv2d(4, 3, 3, padding=1)
    again.load_state_dict(masked.state_dict())
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(again(x), masked(x)) and len(list(masked.parameters())) == 2


def test_several_groups_are_refused():
    with pytest.raises(ValueError, match="a masked convolution has one group, got 2"):
        MaskedConv2d.of(nn.Conv2d(4, 4, 1, groups=2))
