import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decomp.data import given
from decomp.data.models import LoadedModel
from decomp.errors import DecompError, TraceError
from decomp.pipelines.console.options import FreezeOptions
from decomp.pipelines.decomposition.first_passes import outputs_of
from decomp.pipelines.decomposition.prepare import prepare

SHAPE = (3, 6, 6)


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.a, self.b, self.bn = body, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.bn.running_mean.normal_()
        self.register_buffer("calls", torch.zeros(()))
        self.count = 0

    def forward(self, x):
        return self.bn(self.b(self.body(self, x)))


def prepared(module, leaves=()):
    torch.manual_seed(0)
    source = given.source_of(torch.randn(8, *SHAPE), 8)
    options = FreezeOptions(model="net", data="memory", leaves=tuple(leaves))
    return source, prepare(LoadedModel(module.eval(), "net", SHAPE, "0" * 64, "random"), source, options)


def buffer(net, x):
    net.calls += 1
    return net.a(x) * net.calls


def attribute(net, x):
    net.count += 1
    return net.a(x) * net.count


@pytest.mark.parametrize(("body", "words"), [
    (lambda net, x: net.a(x + torch.randn_like(x)), r"draws random numbers \(of torch\)"),
    (lambda net, x: net.a(x) * torch.rand(4, 1, 1), r"draws random numbers \(of torch\)"),
    (lambda net, x: F.dropout(net.a(x)), r"draws random numbers \(of torch\).*F.dropout\(x, p, self.training\)"),
    (lambda net, x: net.a(x) * random.random(), r"draws random numbers \(of Python\)"),
    (lambda net, x: net.a(x) * float(np.random.rand()), r"draws random numbers \(of numpy\)"),
    (buffer, "changes its buffer calls, got a difference of .* change it only where self.training is true"),
    (attribute, "keeps something from one call to the next, got a difference"),
])  # fmt: skip
def test_a_network_that_does_not_repeat_its_outputs_is_refused_with_the_reason(body, words):
    with pytest.raises(DecompError, match=f"^net: must give the same outputs for the same images, but forward {words}"):
        prepared(Net(body))


def test_the_way_out_of_random_numbers_works():
    module = Net(lambda net, x: F.dropout(net.a(x), 0.5, net.training))
    source, (network, folded, _) = prepared(module)
    x = source.train.images([0, 1])
    assert folded == [("b", "bn")]
    torch.testing.assert_close(network(x), module(x))


class Holder(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.inner = Net(body)

    def forward(self, x):
        return self.inner(x).relu()


def other_dilation(net, x):
    net.a.dilation = net.a.padding = (2, 2)
    first = net.a(x)
    net.a.dilation = net.a.padding = (1, 1)
    return first + net.a(x)


def test_a_forward_pass_that_its_trace_does_not_give_is_refused_and_the_module_to_leave_alone_is_named():
    with pytest.raises(
        TraceError, match="they differ from inner.a on, got .*; leave inner as it is .--leaf inner., or"
    ):
        prepared(Holder(other_dilation))
    source, (network, _, _) = prepared(nn.Sequential(nn.Conv2d(3, 3, 1), Holder(other_dilation)), leaves=["1.inner"])
    assert "1.inner" in dict(network.named_modules())
    with pytest.raises(TraceError, match="they differ from a on, got .*; let forward call each module as it was made"):
        prepared(Net(other_dilation))


@pytest.mark.parametrize("before", [False, True])
def test_a_hook_that_changes_what_a_layer_gives_is_named_and_leaving_the_layer_alone_helps(before):
    module = Net(lambda net, x: net.a(x))
    if before:
        module.b.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
    else:
        module.b.register_forward_hook(lambda layer, inputs, output: output * 2)
    said = (
        "differ from b on .b has a hook .*; compute in forward what the hook does, and remove the hook, or leave b as"
    )
    with pytest.raises(TraceError, match=said):
        prepared(module)
    source, (network, folded, _) = prepared(module, leaves=["b"])
    x = source.train.images([0, 1])
    assert folded == [] and torch.equal(network(x), module(x))


def test_a_hook_that_only_looks_on_is_no_obstacle():
    module, seen = Net(lambda net, x: net.a(x)), []
    module.b.register_forward_hook(lambda layer, inputs, output: seen.append(tuple(output.shape)))
    assert prepared(module)[1][1] == [("b", "bn")] and (8, 4, 6, 6) in seen


def test_a_network_that_changes_its_images_gets_a_copy_of_them():
    module = Net(lambda net, x: net.a(x.sub_(0.5).div_(2)))
    source, (network, _, _) = prepared(module)
    x = source.train.images([0, 1])
    kept = x.clone()
    got, wanted = outputs_of(network, x, "net"), outputs_of(module, x, "net")
    torch.testing.assert_close(got, wanted)
    assert torch.equal(x, kept)


def test_automatic_mixed_precision_is_passed_over():
    def mixed(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.a(x)

    module = Net(mixed)
    source, (network, folded, _) = prepared(module)
    x = source.train.images([0, 1])
    wanted = module.bn(module.b(module.a(x)))
    assert network.meta["autocast"] and folded == [("b", "bn")]
    torch.testing.assert_close(network(x), wanted)
    torch.testing.assert_close(outputs_of(module, x, "net")["output"], wanted)
