"""Zeros in the place of a layer have the shape of its outputs, and no weights."""

import pytest
import torch
from torch import nn

from decomp.graph.serialise import build_module, describe_module
from decomp.modules.select import Select
from decomp.modules.zeros import Zeros


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 7, 6)),
        (nn.Conv2d(3, 5, (3, 2), (2, 3), (1, 0), (2, 1)), (2, 3, 9, 8)),
        (nn.Conv2d(3, 5, 3, padding="same"), (2, 3, 7, 6)),
        (nn.Conv2d(3, 5, 3, 2, padding="valid"), (2, 3, 7, 6)),
        (nn.Linear(3, 5), (2, 3)),
        (nn.BatchNorm2d(3), (2, 3, 4, 4)),
        (nn.BatchNorm1d(3), (2, 3)),
        (Select(3, 2), (2, 3, 4, 5)),
    ],
)
def test_the_shape_is_that_of_the_layer_and_every_value_is_zero(layer, shape):
    x = torch.randn(shape)
    zeros = Zeros.of(layer.eval())
    again = build_module(describe_module(zeros)).eval()
    wanted = torch.zeros_like(layer(x))
    assert torch.equal(zeros(x), wanted) and torch.equal(again(x), wanted)
    assert not zeros.training and zeros.state_dict() == {}
    assert zeros(x.half()).dtype == torch.float16
