import pytest
import torch
from torch import nn

from decomp.errors import TraceError
from decomp.graph.tracing import trace
from decomp.graph.ways_out import way_out

SHAPE = (3, 8, 8)


class Asks(nn.Module):
    """Decides by the values of what it is given, which no trace can hold; `inner` runs first."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        x = self.inner(x)
        return x if x.sum() > 0 else -x


def conv(channels=3):
    return nn.Conv2d(channels, 4, 3, padding=1)


def fix_of(model):
    with pytest.raises(TraceError) as error:
        trace(model, shape=SHAPE)
    return error.value.fix


def test_the_module_that_cannot_be_followed_is_left_where_convolutions_remain():
    model = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), Asks(nn.ReLU()), conv(4))
    assert fix_of(model) == "leave 1 as it is (--leaf), or treat 0 alone (option module)"
    assert {str(node.target) for node in trace(model, leaves=["1"]).graph.nodes} >= {"0.0", "1", "2"}
    assert trace(model.get_submodule("0"), shape=SHAPE)(torch.zeros(1, *SHAPE)).shape == (1, 4, 8, 8)


def test_all_modules_that_cannot_be_followed_are_named_at_once():
    model = nn.Sequential(conv(), Asks(nn.ReLU()), Asks(nn.Tanh()))
    assert fix_of(model).startswith("leave 1 and 2 as they are (--leaf), or")
    trace(model, leaves=["1", "2"])


def test_no_module_is_left_that_holds_all_convolutions():
    model = nn.Sequential(Asks(nn.Sequential(conv(), nn.ReLU(), conv(4))))
    assert fix_of(model) == "treat 0.inner alone (option module)"
    assert len(list(trace(model.get_submodule("0.inner"), shape=SHAPE).graph.nodes)) == 5


def test_of_several_parts_that_work_the_one_of_most_parameters_is_advised():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large, self.other = conv(), nn.Sequential(conv(), conv(4)), nn.Conv2d(4, 64, 3)

        def forward(self, x):
            return self.small(x) if x.sum() > 0 else self.large(x)

    assert fix_of(Net()) == "treat large alone (option module)"


def test_without_a_part_that_works_no_name_is_made_up():
    model = Asks(nn.Identity())
    rule = "write forward without it, or put convolutions into a submodule and treat that alone (option module)"
    assert way_out(model, (), SHAPE, []) == rule
    assert way_out(Asks(nn.Sequential(conv())), (), None, []) == rule
    assert way_out(Asks(conv()), (), SHAPE, []) == rule  # a convolution by itself could not be put back
