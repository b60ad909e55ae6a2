import sys

import pytest
import torch
from torch import nn

from decomp.errors import TraceError
from decomp.graph.tracing import trace
from decomp.graph.value_checks import passing_answer

SHAPE = (3, 6, 5)


def asserted(x):
    assert not torch.isnan(x).any(), "NaN"
    assert x.abs().max() < 1e6
    return x


def over_lines(x):
    assert (
        x.isfinite().all()
        and (x < 1e6).all()
    )  # fmt: skip
    return x


def raising(x):
    if x.isnan().any():
        raise ValueError("NaN")
    if not (x < 1e6).all():
        print("large")
        raise ValueError("large")
    return x


def deciding(x):
    if x.sum() > 0:
        return x
    return -x


def raising_otherwise(x):
    if x.sum() > 0:
        raise ValueError("positive")
    else:
        x = -x
    return x


class Net(nn.Module):
    def __init__(self, check):
        super().__init__()
        self.conv, self.check = nn.Conv2d(3, 4, 3), check

    def forward(self, x):
        return self.check(self.conv(x)).relu()


@pytest.mark.parametrize("check", [asserted, over_lines, raising])
def test_a_check_of_values_passes_in_the_trace(check):
    module, x = Net(check).eval(), torch.randn(2, *SHAPE)
    traced = trace(module, shape=SHAPE)
    assert torch.equal(traced(x), module(x))
    assert [node.target for node in traced.graph.nodes if node.op.startswith("call")] == ["conv", "relu"]


@pytest.mark.parametrize("check", [deciding, raising_otherwise])
def test_a_condition_that_decides_what_is_computed_is_refused(check):
    with pytest.raises(TraceError, match="control flow"):
        trace(Net(check).eval(), shape=SHAPE)


def test_a_place_without_a_check_has_no_answer():
    assert passing_answer(sys._getframe()) is True  # of this line's own assert
    answer = passing_answer(sys._getframe())
    assert answer is None
