import pytest
import torch
from channel_maps import follow

from decomp.graph.size_rules import has_plain_bounds


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x * (1 / x.size(2)),
        lambda x: x * (1 / x.shape[-1]),
        lambda x: x * x.shape[2:][0],
        lambda x: x * x.size()[0],
        lambda x: x.flatten(2).view(x.size(0), x.shape[1], 6, 5),
        lambda x: x.flatten(2).view(x.size(0), x.size(-3), 6, 5),
    ],
)
def test_sizes_other_than_the_channels_may_be_computed_with_and_those_passed_on(body):
    found = follow(body)
    assert found.frozen == [] and found.reads == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x * (1 / x.size(1)),
        lambda x: x * (1 / x.shape[-3]),
        lambda x: x * x.shape[1:][0],
        lambda x: x * x.shape[:2][1],
        lambda x: torch.relu(x) * x.size()[1],
    ],
)
def test_a_number_of_channels_that_is_computed_with_freezes_them(body):
    (reason,) = follow(body).frozen
    assert reason.startswith("has its number of channels read by ")


def test_only_slices_of_numbers_have_plain_bounds():
    assert has_plain_bounds(slice(1, None, 2)) and has_plain_bounds(slice(None))
    assert not has_plain_bounds(1) and not has_plain_bounds(slice(torch.tensor(1), None))
