import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from decomp.graph import operations
from decomp.graph.operations import argument, axes_of, describe, is_channelwise, is_reduction

MODULES = {
    nn.LPPool2d: lambda: nn.LPPool2d(2, 2), nn.Upsample: lambda: nn.Upsample(scale_factor=2),
    nn.UpsamplingNearest2d: lambda: nn.UpsamplingNearest2d(scale_factor=2),
    nn.UpsamplingBilinear2d: lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    nn.ConstantPad2d: lambda: nn.ConstantPad2d(1, 2.0),
}  # fmt: skip
WITH_A_SIZE = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)  # fmt: skip
FUNCTION_ARGUMENTS = {
    F.max_pool2d: (2,), F.avg_pool2d: (2,), F.lp_pool2d: (2.0, 2), F.adaptive_avg_pool2d: (2,),
    F.adaptive_max_pool2d: (2,), F.interpolate: (8,), F.upsample: (8,), F.dropout: (0.5, False),
    F.dropout2d: (0.5, False), torch.clamp: (0.1,), operator.pow: (2,),
}  # fmt: skip


def treats_channels_alike_and_by_themselves(function):
    """Permuting or dropping channels before the call is the same as after it."""
    x, keep = torch.rand(2, 6, 4, 4) + 0.1, torch.tensor([4, 0, 3])
    return torch.equal(function(x.clone())[:, keep], function(x[:, keep].clone()))


@pytest.mark.parametrize("kind", operations.CHANNELWISE_MODULES, ids=lambda kind: kind.__name__)
def test_channelwise_modules_treat_every_channel_alike_and_by_itself(kind):
    module = MODULES[kind]() if kind in MODULES else kind(2) if kind in WITH_A_SIZE else kind()
    assert treats_channels_alike_and_by_themselves(module.eval())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", sorted(operations.CHANNELWISE_FUNCTIONS, key=str), ids=lambda f: f.__name__)
def test_channelwise_functions_treat_every_channel_alike_and_by_itself(function):
    assert treats_channels_alike_and_by_themselves(lambda x: function(x, *FUNCTION_ARGUMENTS.get(function, ())))


@pytest.mark.parametrize("name", sorted(operations.CHANNELWISE_METHODS))
def test_channelwise_methods_treat_every_channel_alike_and_by_itself(name):
    arguments = {"clamp": (0.2,), "clamp_": (0.2,), "pow": (2,)}.get(name, ())
    assert treats_channels_alike_and_by_themselves(lambda x: getattr(x, name)(*arguments))


@pytest.mark.parametrize(
    "function", [f for f in operations.UNITING if callable(f)], ids=lambda function: function.__name__
)
def test_uniting_functions_meet_two_tensors_entry_by_entry(function):
    x, y, keep = torch.rand(2, 6, 3, 3), torch.rand(2, 6, 3, 3) + 1, torch.tensor([5, 1])
    assert torch.equal(function(x.clone(), y)[:, keep], function(x[:, keep].clone(), y[:, keep]))


@pytest.mark.parametrize("kind", operations.NO_OP_MODULES)
def test_no_op_modules_do_nothing_in_evaluation(kind):
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(kind().eval()(x), x)


def node_of(function):
    """The last call of a traced function."""
    return list(fx.symbolic_trace(function).graph.nodes)[-2]


def test_arguments_are_found_by_place_and_by_name():
    assert argument(node_of(lambda x: torch.chunk(x, 3, 1)), 1, "chunks") == 3
    assert argument(node_of(lambda x: torch.chunk(x, chunks=3)), 1, "chunks") == 3
    assert argument(node_of(lambda x: torch.chunk(x, 3)), 2, "dim", 0) == 0


@pytest.mark.parametrize(
    ("value", "axes"),
    [(1, {1}), (-1, {3}), ((2, -1), {2, 3}), ([0], {0}), (None, None), ((1, None), None), ("N", None)],
)
def test_axes_are_counted_from_the_front(value, axes):
    assert axes_of(value, 4) == axes


def test_nodes_are_described_by_the_name_of_the_call():
    graph = fx.symbolic_trace(nn.Sequential(nn.ReLU())).graph
    assert [describe(node) for node in graph.nodes] == ["'input'", "0", "the network's output"]
    assert describe(node_of(lambda x: F.softmax(x, 1))) == "'softmax'"
    assert describe(node_of(lambda x: x.permute(0, 1))) == "'permute'"


def test_reductions_and_channelwise_calls_are_recognised():
    assert is_reduction(node_of(lambda x: x.mean(1))) and is_reduction(node_of(lambda x: torch.amax(x, 1)))
    assert not is_reduction(node_of(lambda x: x.softmax(1)))
    assert is_channelwise(node_of(lambda x: x.relu())) and is_channelwise(node_of(lambda x: F.gelu(x)))
    assert not is_channelwise(node_of(lambda x: x.softmax(1))) and not is_channelwise(
        node_of(lambda x: F.softmax(x, 1))
    )
    module = nn.Sequential(nn.ReLU())
    call = list(fx.symbolic_trace(module).graph.nodes)[1]
    assert is_channelwise(call, module[0]) and not is_channelwise(call, nn.Softmax(1))
