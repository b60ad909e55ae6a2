import pytest
import torch
from small_graphs import GRAPHS, INPUT, make
from torch import nn

from decomp.errors import TraceError
from decomp.schemes.droppable_channels import droppable_spaces


def found(module, shape=INPUT, **options):
    spaces, reasons = droppable_spaces(module, shape, **options)
    return {space.name: space for space in spaces}, reasons


def chain(*between, width=6, pixels=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *between, nn.Conv2d(8, width, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(width * pixels, 2),
    )  # fmt: skip


def test_the_first_convolution_is_left_out_unless_asked_for():
    spaces, reasons = found(chain(), (3, 2, 2))
    assert list(spaces) == ["1"] and reasons == {"0": "reads the image"}
    spaces, reasons = found(chain(), (3, 2, 2), first=True)
    assert list(spaces) == ["0", "1"] and reasons == {}


def test_the_entries_of_a_channel_are_its_filter_its_normalisation_and_its_columns():
    network = nn.Sequential(*chain()[:2], nn.BatchNorm2d(6), *chain()[2:])
    (space,) = found(network, (3, 2, 2))[0].values()
    assert space.writers == (("1", tuple((i,) for i in range(6))),)
    assert space.carriers == (("2", tuple((i,) for i in range(6))),)
    assert space.readers == (("5", tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(6))),)


def test_ends_of_residual_branches_are_left_out_or_taken_as_a_whole():
    spaces, reasons = found(make("residual"))
    assert list(spaces) == ["a.0", "c.0"]
    assert reasons == {
        "stem": "reads the image", "b.0": "shares its channels with stem, which reads the image",
        "d.0": "shares its channels with stem, which reads the image",
    }  # fmt: skip
    assert found(make("residual"), first=True)[1]["b.0"] == "shares its channels with stem"
    spaces, reasons = found(make("residual"), coupled=True, first=True)
    (stream,) = [space for space in spaces.values() if len(space.writers) > 1]
    assert [path for path, _ in stream.writers] == ["stem", "b.0", "d.0"]
    assert [path for path, _ in stream.carriers] == ["b.1", "d.1"]
    assert [path for path, _ in stream.readers] == ["a.0", "c.0", "head"]


def test_depthwise_and_grouped_convolutions_and_gates_are_left_out_with_the_reason():
    spaces, reasons = found(make("depthwise separable"))
    assert reasons["depthwise.0"] == "is a depthwise convolution" == reasons["own.0"]
    assert [path for path, _ in spaces["expand.0"].carriers] == ["expand.1", "depthwise.0", "depthwise.1"]
    spaces, reasons = found(make("grouped"), coupled=True)
    assert "groups of b.0" in reasons["a.0"] and "groups of b.0" in reasons["b.0"]
    assert found(make("squeeze-excite"), coupled=True)[1]["a.0"] == (
        "shares its channels with excite, which is no convolution"
    )


def test_a_concatenation_is_read_at_the_columns_of_each_part():
    spaces, _ = found(make("dense"))
    (eight, *_), width = spaces.values(), 16
    assert dict(eight.readers)["c"] == tuple((width + i,) for i in range(8))
    assert dict(eight.carriers)["b"] == tuple((width + i,) for i in range(8))


def test_the_network_s_output_and_what_the_trace_cannot_follow_stay():
    spaces, reasons = found(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1)))
    assert spaces == {} and "softmax" in reasons["1"].lower() or "goes through 2" in reasons["1"]
    assert reasons["3"] == "is not dropped: its output is the network's output"


def test_weights_that_are_shared_or_computed_stay():
    tied = chain(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    tied[2].weight = tied[1].weight
    assert "another module's too" in found(tied, (3, 2, 2))[1]["1"]
    normed = chain(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)))
    assert "whose weight is computed" in found(normed, (3, 2, 2))[1]["1"]


@pytest.mark.parametrize("name", GRAPHS)
def test_all_convolutions_of_the_small_graphs_are_taken_or_have_a_reason(name):
    network = make(name)
    spaces, reasons = found(network, coupled=True)
    convolutions = {
        path for path, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    }
    taken = {path for space in spaces.values() for path, _ in space.writers}
    assert taken | set(reasons) == convolutions and not taken & set(reasons)


def test_images_that_the_network_does_not_take_are_refused():
    with pytest.raises(TraceError, match="does not run at input size 1x2x2"):
        droppable_spaces(chain(), (1, 2, 2))
