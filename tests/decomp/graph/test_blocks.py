"""Blocks of a traced network."""

import pytest
import torch
from torch import nn

from decomp.execution.block_refinement import BlockOf
from decomp.graph.blocks import find_blocks
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from tests.small_graphs import INPUT, make


def blocks_of(module, shape, least=1):
    graph = NetworkGraph(trace(module), shape)
    blocks = find_blocks(graph, least)
    # Each reads what the one before it writes, and together they are all nodes between the images and the last value.
    for first, second in zip(blocks, blocks[1:]):
        assert first.target == second.source
    for block in blocks:
        assert block.nodes and block.target in block.nodes and block.source not in block.nodes
    return blocks


def chain():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.MaxPool2d(2), nn.Conv2d(5, 6, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip


def test_a_block_of_a_chain_ends_in_front_of_the_next_layer():
    assert [block.layers for block in blocks_of(chain(), (1, 8, 8))] == [("0",), ("2",), ("4",), ("7",)]
    assert [block.nodes for block in blocks_of(chain(), (1, 8, 8))][:2] == [("_0", "_1"), ("_2", "_3")]


def test_blocks_of_fewer_layers_are_joined_and_the_rest_goes_to_the_last():
    assert [block.layers for block in blocks_of(chain(), (1, 8, 8), 2)] == [("0", "2"), ("4", "7")]
    assert [block.layers for block in blocks_of(chain(), (1, 8, 8), 3)] == [("0", "2", "4", "7")]
    assert [block.layers for block in blocks_of(chain(), (1, 8, 8), 9)] == [("0", "2", "4", "7")]


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Conv2d(1, 4, 1),
            nn.Conv2d(4, 6, 1),
            nn.Conv2d(6, 4, 1),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


def test_a_residual_block_is_never_cut():
    assert [block.layers for block in blocks_of(Shortcut(), (1, 4, 4))] == [("stem",), ("a", "b"), ("head",)]
    (_, middle, _) = blocks_of(Shortcut(), (1, 4, 4))
    assert middle.nodes[-1] == "mean" and middle.source == "stem"


class TwoOutputs(Shortcut):
    def forward(self, x):
        x = self.stem(x)
        return self.a(x), self.head(x.mean((2, 3)))


def test_what_follows_the_last_single_value_belongs_to_no_block():
    assert [block.layers for block in blocks_of(TwoOutputs(), (1, 4, 4))] == [("stem",)]


class Scaled(nn.Module):
    """A parameter is used at two places: it is alive everywhere, and no value that crosses."""

    def __init__(self):
        super().__init__()
        self.scale, self.a, self.b = nn.Parameter(torch.ones(1)), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return (self.b(self.a(x) * self.scale) * self.scale).mean((2, 3))


def test_parameters_that_are_alive_do_not_hinder_a_cut():
    assert [block.layers for block in blocks_of(Scaled(), (1, 4, 4))] == [("a",), ("b",)]


def test_chains_inside_a_block_are_cut_where_one_value_crosses():
    separable = [block.layers for block in blocks_of(make("depthwise separable"), INPUT)]
    assert separable == [
        ("stem",),
        ("expand.0",),
        ("depthwise.0",),
        ("project.0",),
        ("own.0",),
        ("last.0",),
        ("head",),
    ]
    # Each layer's input lives on in the concatenation behind it.
    dense = [block.layers for block in blocks_of(make("dense"), INPUT)]
    assert dense == [("stem",), ("a",), ("c",), ("d",), ("head",)]
    residual = [block.layers for block in blocks_of(make("residual"), INPUT)]
    assert len(residual) < len(sum(residual, ()))


class Counted(nn.Module):
    """Keeps the number of images from the first line to the last, as networks do that flatten by ``view``."""

    def __init__(self, by_shape):
        super().__init__()
        self.a, self.b, self.head, self.by_shape = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3), by_shape

    def forward(self, x):
        n = x.shape[0] if self.by_shape else x.size(0)
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(x.mean((2, 3)).view(n, -1))


@pytest.mark.parametrize("by_shape", [False, True])
def test_the_number_of_images_is_alive_anywhere_without_joining_blocks(by_shape):
    torch.manual_seed(0)
    traced = trace(Counted(by_shape))
    blocks = find_blocks(NetworkGraph(traced, (1, 6, 6)), 1)
    assert [block.layers for block in blocks] == [("a",), ("b",), ("head",)]
    images = value = torch.randn(5, 1, 6, 6)
    for block in blocks:
        value = BlockOf(traced, block, images_at_a_time=3).of_all(value)
    assert torch.equal(value, traced(images))
