from collections import OrderedDict

import pytest
import torch
from named_networks import INPUT, NETWORKS, make
from torch import nn

from decomp.modules.replace import linear, set_module, set_modules, with_parameters


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


def test_several_modules_are_exchanged_in_one_pass():
    root, new = Holder(), {path: nn.Tanh() for path in ("one", "chain.1.b", "named.x")}
    root.again = [root.one, root.parts[0]]
    set_modules(root, new)
    assert all(root.get_submodule(path) is module for path, module in new.items())
    assert root.again == [new["one"], root.parts[0]] and type(root.parts[0]) is type(root.chain[1].a) is nn.ReLU


@pytest.mark.parametrize("path", ["nowhere.0", "chain.5", "parts.-1", "named.y", "two"])
def test_a_path_that_is_not_there_is_refused(path):
    root = Holder()
    before = [name for name, _ in root.named_modules()]
    with pytest.raises(AttributeError):
        set_module(root, path, nn.Tanh())
    assert [name for name, _ in root.named_modules()] == before


@pytest.mark.parametrize("kind", NETWORKS)
def test_names_are_no_places_and_one_module_is_exchanged_wherever_it_is(kind):
    images = torch.randn(2, *INPUT)
    for path in [name for name, part in kind().named_modules() if isinstance(part, nn.Conv2d)]:
        network, expected = make(kind), make(kind)
        new = nn.Conv2d(*network.get_submodule(path).weight.shape[1::-1], 3, padding=1)
        set_module(network, path, new)
        assert network.get_submodule(path) is new
        # The forward pass runs the new one, and all others are as they were.
        with torch.no_grad():
            expected.get_submodule(path).weight.copy_(new.weight)
            expected.get_submodule(path).bias.copy_(new.bias)
            assert torch.equal(network(images), expected(images))


def test_a_module_that_holds_the_old_one_can_take_its_place():
    root, old = Holder(), nn.ReLU()
    root.one, root.again = old, old
    new = nn.Sequential(old, nn.Tanh())
    set_module(root, "one", new)
    assert root.one is new and root.again is new and new[0] is old


def test_values_beside_modules_keep_their_identity():
    root = Holder()
    root.sizes, root.table = (1, (2, 3)), {"a": [nn.Tanh(), (root.one, 1)]}
    root.table["self"] = root.table
    sizes, table, tanh, new = root.sizes, root.table, root.table["a"][0], nn.Sigmoid()
    set_module(root, "one", new)
    assert root.sizes is sizes and root.table is table and table["a"][0] is tanh and table["a"][1] == (new, 1)


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
