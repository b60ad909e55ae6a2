"""Plain copies of networks: wrappers are taken off wherever they are, and what cannot be treated is one line."""

import copy

import pytest
import torch
from networks import block
from torch import nn
from torch.nn.utils import weight_norm
from torch.optim.swa_utils import AveragedModel

from decomp.data.plain_network import dtype_of, plain_copy, shared_tensors, unwrapped
from decomp.errors import UsageError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Holder(nn.Module):
    """Holds a network in a list that torch knows of and under a second name."""

    def __init__(self, inner):
        super().__init__()
        self.parts, self.again = nn.ModuleList([inner]), inner

    def forward(self, x):
        return self.parts[0](x) + self.again(x)


WRAPPINGS = {
    "parallel": lambda net: nn.DataParallel(net),
    "compiled": lambda net: torch.compile(net),
    "averaged": lambda net: AveragedModel(net),
    "all of them": lambda net: nn.DataParallel(torch.compile(nn.DataParallel(AveragedModel(net)))),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_around_a_network_are_taken_off(wrapping):
    net = block()
    assert type(unwrapped(WRAPPINGS[wrapping](net))) is type(net)
    plain = plain_copy(WRAPPINGS[wrapping](net), "net")
    assert type(plain) is type(net) and torch.equal(plain(X), net(X))
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in net.named_modules()]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_inside_a_network_are_taken_off_under_all_names(wrapping):
    net = block()
    held = Holder(WRAPPINGS[wrapping](net))
    names = list(held.state_dict())
    plain = plain_copy(held, "net")
    assert type(plain.parts[0]) is type(net) and plain.again is plain.parts[0]
    assert torch.equal(plain(X), net(X) * 2)
    assert list(held.state_dict()) == names and type(held.again) is not type(net)


def test_the_copy_is_in_single_precision_contiguous_and_in_evaluation_mode():
    net = block().double().train().to(memory_format=torch.channels_last)
    before = copy.deepcopy(net.state_dict())
    plain = plain_copy(net, "net")
    assert not plain.training and net.training
    assert plain.stem.weight.is_contiguous() and not net.stem.weight.is_contiguous()
    assert plain.stem.weight.dtype == torch.float32 and torch.equal(plain.stem.weight, before["stem.weight"].float())
    assert all(value.dtype == before[name].dtype for name, value in net.state_dict().items())


def test_a_computed_weight_is_copied_without_its_history():
    with pytest.warns(FutureWarning):
        net = nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    wanted = net(X)
    with pytest.raises(RuntimeError):
        copy.deepcopy(net)
    assert torch.equal(plain_copy(net, "net")(X), wanted)


def test_the_precision_is_that_of_most_weights():
    net = block().half()
    net.bn1.float()
    assert dtype_of(net) == torch.float16 and dtype_of(nn.ReLU()) == torch.float32
    assert dtype_of(block().bfloat16()) == torch.bfloat16


def test_what_cannot_be_treated_is_one_line():
    scripted = nn.Sequential(nn.ReLU(), torch.jit.script(nn.Conv2d(3, 4, 3)))
    exported = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(2, 3, 5, 5),)).module()
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    refused = {
        "net, 1: is a TorchScript module.*give the module that torch.jit.script": scripted,
        "net: is the module of an exported program, .*; give the exported program itself": exported,
        "net, 0: is a LazyConv2d that has seen no batch yet; call the network once": lazy,
        "net, conv1: has weights without values": block(),
    }
    refused["net, conv1: has weights without values"].conv1.to("meta")
    for words, net in refused.items():
        with pytest.raises(UsageError, match=words):
            plain_copy(net, "net")
    lazy(X)
    assert torch.equal(plain_copy(lazy, "net")(X), lazy.eval()(X))


def test_a_parameter_of_two_modules_is_named_and_a_module_under_two_names_is_none():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU())
    net.append(net[0])
    assert shared_tensors(plain_copy(net, "net")) == []
    net[1].weight = net[0].weight
    assert shared_tensors(plain_copy(net, "net")) == ["0.weight and 1.weight"]


def test_a_buffer_that_was_computed_from_a_parameter_is_copied_with_its_values():
    module = nn.Linear(2, 2)
    module.register_buffer("doubled", module.weight * 2)
    copied = plain_copy(module, "net")
    assert torch.equal(copied.doubled, module.weight * 2) and copied.doubled.grad_fn is None
