"""Residual branches are found where an addition alone reads them beside a shortcut."""

import torch
from small_graphs import INPUT, make
from torch import nn

from decomp.graph.branches import reason_to_stay, residual_branches, without_branches
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace


def graph_of(network, shape=INPUT):
    return NetworkGraph(trace(network.eval()), shape)


def test_the_layers_of_a_branch_and_its_inner_spaces_are_found():
    first, second = residual_branches(graph_of(make("residual")))
    assert (first.name, first.inner, first.layers) == ("b.1", ("a.0",), ("a.0", "a.1", "b.0", "b.1"))
    assert (second.name, second.inner, second.layers) == ("d.1", ("c.0",), ("c.0", "c.1", "d.0", "d.1"))


def test_a_choice_that_empties_an_inner_space_takes_the_branch_with_it():
    graph = graph_of(make("residual"))
    branches = residual_branches(graph)
    left, gone = without_branches({"a.0": [], "c.0": [1, 3]}, branches, graph)
    assert left == {"c.0": [1, 3]} and [branch.name for branch in gone] == ["b.1"]
    assert without_branches({"a.0": [0], "c.0": [1, 3]}, branches, graph)[1] == []


class Read(nn.Module):
    """A branch whose inner or last value something else reads, too; or whose weights another layer has."""

    def __init__(self, how):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.how = how
        if how == "shared":
            self.c.weight = self.a.weight

    def forward(self, x):
        x = torch.relu(self.stem(x))
        inner = torch.relu(self.a(x))
        last = self.b(inner + x if self.how == "skipping" else inner)
        if self.how == "gated":
            last = last * torch.sigmoid(self.d(x))
        total = x + last
        beside = {"inner": inner, "last": last}.get(self.how, total)
        return self.c(total) + beside.mean((2, 3), keepdim=True)


def names(how):
    return [branch.name for branch in residual_branches(graph_of(Read(how), (3, 4, 4)))]


def test_a_branch_that_something_else_reads_or_that_goes_round_its_inner_space_is_none():
    assert names("alone") == ["b"]
    assert names("inner") == names("last") == names("shared") == names("skipping") == []
    assert names("gated") == []  # b gives its bias without inner channels, and the gate still depends on the image


def test_the_reason_for_which_a_module_is_in_no_branch_that_can_go_is_told():
    graph = graph_of(Read("inner"), (3, 4, 4))
    assert reason_to_stay(graph, "nothing") == "is no module of this network"
    assert reason_to_stay(graph, "stem").startswith("is not added to a shortcut")
    assert reason_to_stay(graph, "b").startswith("shares its branch with others")
    assert reason_to_stay(graph, "c") == "is added to a value of another shape"
