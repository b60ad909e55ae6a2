import pytest
import torch
from channel_maps import follow, map_of
from torch import nn

from decomp.modules.select import Select
from decomp.modules.zeros import Zeros

ALL = [0, 1, 2, 3]


def uses(body):
    return {use.path: use for use in follow(body).map.uses}


@pytest.mark.parametrize(
    "carrier", [nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.PReLU()]
)
def test_carriers_pass_every_channel_on(carrier):
    found = follow(carrier)
    assert found.reads == ALL and found.united == ALL and found.frozen == []
    roles = {use.path: use.role for use in found.map.uses}
    assert roles.get("body") == (None if isinstance(carrier, nn.PReLU) and carrier.num_parameters == 1 else "carrier")


def test_a_convolution_writes_new_channels():
    found = follow(nn.Conv2d(4, 6, 3))
    assert found.reads == [None] * 6 and found.united == ALL and found.frozen == []
    assert uses(nn.ConvTranspose2d(4, 6, 3))["body"].role == "layer"


def test_groups_bind_their_inputs_and_outputs():
    found = follow(nn.Conv2d(4, 6, 1, groups=2))
    assert found.united == [0, 0, 2, 2] and found.reads == [0, 0, 0, 2, 2, 2]
    assert [words for words, _ in found.map.events] == ["groups of body"]
    # As many inputs as groups, and two outputs of each: not depthwise.
    assert follow(nn.Conv2d(4, 8, 1, groups=4)).reads == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_convolution_of_one_channel_is_not_depthwise():
    assert {use.path: use.role for use in map_of(nn.Sequential(nn.Conv2d(1, 1, 1)), (1, 4, 4)).uses} == {"0": "layer"}


def test_a_module_called_twice_unites_what_it_reads_and_what_it_writes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.between = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.shared(self.between(self.shared(x)))

    found = map_of(Twice(), (3, 4, 4))
    first, between, second = found.uses
    assert found.roots[first.reads].tolist() == found.roots[second.reads].tolist()
    assert found.roots[first.writes].tolist() == found.roots[second.writes].tolist()
    assert found.roots[between.writes].tolist() == found.roots[first.reads].tolist()
    assert [words for words, _ in found.events] == ["shared is called several times"]


def test_a_selection_copies_channels_that_must_stay():
    found = follow(Select.of(torch.tensor([3, 1]), 4))
    assert found.reads == [None, None] and found.united == ALL
    assert set(found.frozen) == {"is read by the selection body"}
    use = uses(Select.of(torch.tensor([3, 1]), 4))["body"]
    assert use.role == "layer" and len(use.writes) == 2


class OwnConv(nn.Conv2d):
    pass


class OwnLinear(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (OwnConv(4, 4, 1), "goes through body (OwnConv)"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(30, 7), nn.Flatten(1)), "body.1 (Linear on more than two axes)"),
        (nn.Sequential(nn.Flatten(1), OwnLinear(120, 7)), "goes through body.1 (OwnLinear)"),
        (nn.GroupNorm(2, 4), "goes through body (GroupNorm)"),
    ],
)
def test_other_classes_freeze_the_channels_with_the_reason(module, reason):
    (said,) = follow(module, leaves=("body.1",) if isinstance(module, nn.Sequential) else ("body",)).frozen
    assert said.endswith(reason)


def test_zeros_write_new_channels_that_can_be_fewer():
    found = follow(Zeros(6))
    assert found.reads == [None] * 6 and found.united == ALL and found.frozen == []
    assert uses(Zeros(6))["body"].role == "carrier"
