from collections import OrderedDict

import pytest
import torch
from torch import nn

from decomp.modules.replace import linear, set_module, with_parameters


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.ReLU()
        self.chain = nn.Sequential(nn.ReLU(), nn.Sequential(OrderedDict(a=nn.ReLU(), b=nn.ReLU())))
        self.parts, self.named = nn.ModuleList([nn.ReLU(), nn.ReLU()]), nn.ModuleDict({"x": nn.ReLU()})


@pytest.mark.parametrize("path", ["one", "chain.0", "chain.1", "chain.1.b", "parts.1", "named.x"])
def test_the_module_at_a_path_is_exchanged_and_no_other(path):
    root, new = Holder(), nn.Tanh()
    before = [name for name, _ in root.named_modules() if not name.startswith(f"{path}.")]
    set_module(root, path, new)
    assert root.get_submodule(path) is new and [name for name, _ in root.named_modules()] == before
    assert sum(isinstance(module, nn.Tanh) for module in root.modules()) == 1


def test_a_path_that_is_not_there_is_refused():
    with pytest.raises(AttributeError):
        set_module(Holder(), "nowhere.0", nn.Tanh())


@pytest.mark.parametrize("bias", [torch.randn(3), None])
def test_a_linear_layer_has_copies_of_the_given_weights(bias):
    weight, x = torch.randn(4, 3).T, torch.randn(2, 4)
    layer = linear(weight, bias)
    wanted = x @ weight.T + (0 if bias is None else bias)
    assert torch.allclose(layer(x), wanted, atol=1e-6) and (layer.bias is None) == (bias is None)
    assert layer.weight.is_contiguous() and (layer.in_features, layer.out_features) == (4, 3)
    weight.zero_()
    assert torch.allclose(layer(x), wanted, atol=1e-6)


def test_parameters_do_not_share_memory_or_gradients():
    source = nn.Conv2d(2, 3, 1)
    module = with_parameters(nn.Conv2d(2, 3, 1, device="meta"), source.weight, source.bias)
    assert torch.equal(module.weight, source.weight) and module.weight.data_ptr() != source.weight.data_ptr()
    assert module.weight.is_leaf and module.weight.requires_grad
