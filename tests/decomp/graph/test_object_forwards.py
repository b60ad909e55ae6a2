import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decomp.graph.object_forwards import class_with_forward, drop_hooks, hooked
from decomp.graph.tracing import trace
from decomp.modules.copies import deep_copy

SHAPE = (3, 6, 6)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.d(self.c(x))


def doubled_convolution(block):
    before = block.d.forward
    block.d.forward = lambda x: before(x) * 2


def other_convolution(block):
    d = block.d
    d.forward = lambda x, scale=3: F.conv2d(x, d.weight * scale, d.bias)


def other_block(block):
    block.forward = types.MethodType(lambda self, x: self.d(self.c(x).relu()), block)


def wrapped_block(block):
    before = block.forward
    block.forward = lambda x: before(x) + 1


@pytest.mark.parametrize("change", [doubled_convolution, other_convolution, other_block, wrapped_block])
@pytest.mark.parametrize("nested", [False, True])
def test_a_forward_pass_of_an_object_is_the_one_that_is_traced(change, nested):
    torch.manual_seed(0)
    block, x = Block().eval(), torch.randn(2, *SHAPE)
    of_class = block(x)
    change(block)
    module = nn.Sequential(block, nn.ReLU()) if nested else block
    with torch.no_grad():
        wanted, got = module(x), trace(module, shape=SHAPE)(x)
    torch.testing.assert_close(got, wanted)
    assert not torch.allclose(wanted, of_class)


def test_the_class_of_the_original_does_not_change():
    block = Block()
    class_with_forward(block)
    assert type(block) is Block
    other_block(block)
    copy = deep_copy(block)
    class_with_forward(copy)
    assert type(copy) is not Block and isinstance(copy, Block) and type(block) is Block
    x = torch.randn(1, *SHAPE)
    assert torch.equal(copy(x), block(x)) and "forward" not in vars(copy)


def test_hooks_of_layers_are_dropped_except_in_leaves_and_where_they_make_the_weight():
    model = nn.Sequential(Block(), Block(), nn.Conv2d(4, 4, 1))
    for module in (model[0].c, model[1].c, model[1], model[2]):
        module.register_forward_hook(lambda module, inputs, output: output * 2)
    weight = model[2].weight
    del model[2]._parameters["weight"]
    model[2].weight = weight.detach() * 2
    assert hooked(model) == ["0.c", "1", "1.c", "2"]
    drop_hooks(model, leaves=["1"])
    assert hooked(model) == ["1", "1.c", "2"]
