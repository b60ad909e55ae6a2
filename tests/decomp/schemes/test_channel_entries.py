import copy

import pytest
import torch
from small_graphs import GRAPHS, INPUT, make
from torch import nn

from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.schemes.channel_entries import ChannelEntries, mean_by_channel
from decomp.schemes.droppable_channels import droppable_spaces
from decomp.surgery.narrow_network import shrink


def entries_of(network, shape=INPUT, **options):
    return ChannelEntries(network, droppable_spaces(network, shape, **options)[0])


def drawn(spaces, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(s.width, generator=generator)[: s.width // 2].sort().values.tolist() for s in spaces]


@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "shuffle"])
def test_a_network_with_cleared_channels_equals_the_smaller_network(name):
    network = make(name)
    entries = entries_of(network, coupled=True, first=True)
    channels, x = drawn(entries.spaces), torch.randn(3, *INPUT, generator=torch.Generator().manual_seed(1))
    small = trace(network)
    spaces = NetworkGraph(small, INPUT).spaces
    keep = {
        space.name: [i for i in range(space.width) if i not in gone]
        for space, gone in zip(entries.spaces, channels) if gone
    }  # fmt: skip
    shrink(small, spaces, keep)
    entries.clear(channels)
    with torch.no_grad():
        wanted, got = small(x), network.eval()(x)
    assert keep and (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", ["residual", "dense", "depthwise separable", "viewed", "twice"])
def test_nothing_of_a_cleared_channel_reaches_the_output_in_training_either(name):
    network = make(name).train()
    entries = entries_of(network, coupled=True, first=True)
    channels = drawn(entries.spaces)
    entries.clear(channels)
    other = copy.deepcopy(network)
    theirs = ChannelEntries(other, entries.spaces)
    for path, filters in theirs.places("writers", channels).items():
        theirs.write_filters(path, filters.tolist(), torch.randn(len(filters), theirs.filters(path).shape[1]))
    theirs.reset_normalisations(channels, gain=3.0)
    x = torch.randn(4, *INPUT)
    if any(len(space.writers) > 1 or path in theirs.writers for space in entries.spaces for path, _ in space.readers):
        # Filters that read cleared channels were written anew with weights for them; these are absent too.
        for path, columns in theirs.places("readers", channels).items():
            theirs.write_slice(path, columns, torch.zeros_like(theirs.slices(channels)[path]))
    assert torch.equal(network(x), other(x))


def test_biases_and_shifts_of_cleared_channels_are_gone():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    entries = entries_of(network, (3, 2, 2))
    entries.clear([[1, 2], []])
    assert network[1].bias[[1, 2]].tolist() == [0, 0] == network[2].bias[[1, 2]].tolist()
    assert network[2].weight[[1, 2]].tolist() == [0, 0] and (network[4].weight[:, [1, 2]] == 0).all()
    assert (network[4].weight[:, [0, 3]] != 0).all() and network[1].bias[0] != 0
    entries.reset_normalisations([[1, 2], []], gain=1.0)
    assert network[2].weight[[1, 2]].tolist() == [1, 1] == network[2].running_var[[1, 2]].tolist()


def test_filters_of_a_transposed_convolution_lie_along_its_second_axis():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 5, 3), nn.ReLU(), nn.ConvTranspose2d(5, 2, 1))
    entries = entries_of(network, (3, 4, 4))
    assert entries.filters("1").shape == (5, 36) and entries.fan_in("1") == 45
    assert torch.equal(entries.filters("1")[2], network[1].weight[:, 2].flatten())
    rows = torch.arange(72.0).view(2, 36)
    entries.write_filters("1", [1, 3], rows)
    assert torch.equal(entries.filters("1")[[1, 3]], rows)
    assert torch.equal(entries.slices([[1]])["3"], network[3].weight[[1]])
    held = entries.hold([[1]])
    with torch.no_grad():
        network[1].weight.zero_(), network[3].weight.add_(1)
    held.write_back()
    assert torch.equal(entries.filters("1")[1], rows[0]) and (entries.filters("1")[3] == 0).all()


def test_values_per_filter_are_averaged_over_the_layers_that_write_a_channel():
    (space,) = (s for s in entries_of(make("residual"), coupled=True, first=True).spaces if len(s.writers) == 3)
    values = {"stem": torch.arange(16.0), "b.0": torch.zeros(16), "d.0": 2 * torch.arange(16.0)}
    assert torch.allclose(mean_by_channel(values, space), torch.arange(16.0).double())
