import json

import pytest
import torch
from networks import randomise
from torch import nn
from torch.nn import functional as F

from decomp.errors import FileError
from decomp.graph.forwards import FORWARD, build_forward, module_stack
from decomp.graph.tracing import trace

SHAPE = (3, 7, 6)


class Scaled(nn.Conv2d):
    """A convolution of its own class that scales its result by a parameter, and adds a constant."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain, self.norm = nn.Parameter(torch.randn(1)), nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        x = F.conv2d(F.pad(x, (x.shape[3] % 4, 0)), self.weight, self.bias, self.stride, self.padding)
        return self.norm(x * self.gain + torch.tensor([0.5])).relu()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.Parameter(torch.randn(4, 3, 1, 1))

    def forward(self, x, y):
        return F.conv2d(x, self.w) + F.conv2d(y, self.v)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.two = nn.Sequential(Scaled(3, 3, 3, padding=1)), Two()

    def forward(self, x):
        x = self.body(x)
        return self.two(x, self.body(x).relu())


def test_the_calls_of_a_module_come_back_as_a_module_with_the_same_outputs():
    network = randomise(Net())
    traced = trace(network, shape=SHAPE)
    assert traced.meta["exchanged"] == ["body.0", "two"]
    spec = json.loads(json.dumps(traced.meta["forwards"]["body.0"]))
    assert spec["type"] == FORWARD and set(spec["graph"]["modules"]) == {"conv", "norm"}
    module = build_forward(spec, "body.0")
    state = traced.get_submodule("body.0").state_dict()
    assert {"conv.weight", "gain", "norm.running_var"} < set(state)
    assert module.load_state_dict(state, strict=False).missing_keys == ["_tensor_constant0"]
    x = torch.randn(2, *SHAPE)
    assert torch.equal(module(x), network.body(x))


def test_several_inputs_have_no_module_for_their_place():
    assert trace(Net(), shape=SHAPE).meta["forwards"]["two"] is None


def test_nodes_know_the_modules_that_they_are_called_from():
    traced = trace(Net(), shape=SHAPE)
    stacks = {node.target: module_stack(node) for node in traced.graph.nodes}
    assert stacks["body.0.conv"] == ["body", "body.0"] and stacks["two.conv"] == ["two"] and stacks["x"] == []


@pytest.mark.parametrize("spec", [
    {"type": FORWARD}, {"type": FORWARD, "tensors": {}, "graph": {"modules": {}}},
    {"type": FORWARD, "tensors": {}, "graph": {"modules": {}, "tensors": {}, "nodes": [
        {"op": "call_function", "name": "a", "target": "os.system", "args": ["ls"], "kwargs": {}}]}},
])  # fmt: skip
def test_broken_descriptions_and_other_code_are_refused(spec):
    with pytest.raises(FileError, match="^part: "):
        build_forward(spec, "part")
