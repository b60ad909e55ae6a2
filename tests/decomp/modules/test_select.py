import pytest
import torch

from decomp.graph.tracing import trace
from decomp.modules.select import Select, apart


def test_the_selected_channels_come_out_in_their_order():
    x = torch.arange(2 * 5 * 2).view(2, 5, 2, 1).float()
    assert torch.equal(Select.of(torch.tensor([4, 0, 2]), 5)(x), x[:, [4, 0, 2]])
    assert torch.equal(Select(5, 2)(x), x[:, :2])


def test_the_places_are_an_integer_buffer_and_no_parameter():
    select = Select.of(torch.tensor([1, 3]), 5)
    assert list(select.parameters()) == [] and select.state_dict()["index"].tolist() == [1, 3]
    assert select.index.dtype == torch.int64 and select.half().index.dtype == torch.int64
    assert repr(select) == "Select(2 of 5)"


def test_the_selection_can_be_traced_and_loaded():
    network = trace(torch.nn.Sequential(Select.of(torch.tensor([1, 3]), 5)))
    again = Select(5, 2)
    again.load_state_dict(network.get_submodule("0").state_dict())
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(again(x), network(x)) and torch.equal(again(x), x[:, [1, 3]])


def test_a_selection_of_all_channels_in_their_order_keeps_all():
    assert Select(4, 4).keeps_all
    assert not Select(5, 4).keeps_all and not Select.of(torch.tensor([1, 0, 2]), 3).keeps_all


@pytest.mark.parametrize(("kept", "width", "places"), [(2, 6, [2, 5]), (4, 6, [0, 2, 3, 5]), (6, 6, list(range(6)))])
def test_places_apart_are_at_equal_distances_as_far_as_whole_numbers_are(kept, width, places):
    assert apart(kept, width).tolist() == places and apart(1, width).tolist() == [width - 1]
