"""Memory layout of weights: told from their strides, taken over and undone."""

import pytest
import torch
from torch import nn

from decomp.modules.layout import channels_last, lay_out_like, lay_out_plainly

LAST = torch.channels_last


@pytest.mark.parametrize(
    ("weight", "answer"),
    [
        (torch.randn(4, 3, 3, 3), False),
        (torch.randn(4, 3, 3, 3).contiguous(memory_format=LAST), True),
        (torch.randn(4, 3, 1, 1).contiguous(memory_format=LAST), None),
        (torch.randn(4, 1, 3, 3), None),
        (torch.randn(4, 3), None),
    ],
)
def test_a_layout_is_told_where_the_shape_decides_it(weight, answer):
    assert channels_last(weight) is answer


def test_a_new_layer_is_laid_out_like_the_old_one():
    old, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 1)
    chain = nn.Sequential(nn.Conv2d(3, 2, (3, 1)), nn.Conv2d(2, 4, (1, 3)))
    wanted = [conv.weight.clone() for conv in chain]
    for kept in (old, other, nn.ReLU()):
        assert [channels_last(conv.weight) for conv in lay_out_like(chain, kept)] == [False, False]
    assert [channels_last(conv.weight) for conv in lay_out_like(chain, old.to(memory_format=LAST))] == [True, True]
    assert all(torch.equal(conv.weight, weight) for conv, weight in zip(chain, wanted))


def test_plain_tensors_have_the_same_values_and_stay_shared():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(3, 2)).to(memory_format=LAST)
    net[1].weight = net[0].weight
    net[2].weight.data = torch.randn(3, 2).T
    net.register_buffer("table", torch.zeros(1, 4).expand(3, 4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    lay_out_plainly(net)
    assert all(value.is_contiguous() and torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[1].weight is net[0].weight and net.table.stride() == (4, 1)
