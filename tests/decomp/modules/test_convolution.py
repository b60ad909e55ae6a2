import pytest
import torch
from torch import nn

from decomp.modules.convolution import conv_from_weights, geometry, kernel_of, padding, pair
from decomp.problem.factors import Geometry

CONVS = [
    nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0), (1, 2)),
    nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", bias=False),
    nn.Conv2d(3, 4, 3, padding="valid"),
    nn.Conv2d(3, 4, 5, padding=2, padding_mode="circular"),
    nn.ConvTranspose2d(3, 4, (3, 2), (2, 1), (1, 0), (1, 1), dilation=(1, 2)),
    nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False),
]


def test_the_geometry_of_a_convolution():
    assert geometry(CONVS[0]) == Geometry((2, 1), (1, 0), (1, 2), "zeros")
    assert geometry(CONVS[1]) == Geometry((1, 1), "same", (1, 1), "reflect")
    assert geometry(CONVS[4]) == Geometry((2, 1), (1, 0), (1, 2), "zeros", (1, 1))
    assert padding(CONVS[2]) == "valid" and padding(CONVS[3]) == (2, 2)


def test_two_sizes_make_a_pair():
    assert pair([3, 5]) == (3, 5)
    with pytest.raises(ValueError, match="unpack"):
        pair([3])


@pytest.mark.parametrize("conv", CONVS)
def test_a_convolution_of_the_same_weights_and_geometry_computes_the_same(conv):
    again, x = conv_from_weights(kernel_of(conv), conv.bias, geometry(conv)), torch.randn(2, 3, 9, 8)
    assert type(again) is type(conv) and again.weight.shape == conv.weight.shape
    assert torch.equal(again(x), conv(x)) and again.weight.data_ptr() != conv.weight.data_ptr()
