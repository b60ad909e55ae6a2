"""Which channel spaces can be narrowed as a whole, and what that leaves of each layer."""

import torch
from torch import nn

from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.shared_spaces import kept_outputs, members_of, readers_of, whole_spaces
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import shrink


class Branching(nn.Module):
    """Sums, a flatten, and a grouped convolution beside a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.side, self.join, self.after = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(6, 4, 1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.head, self.other = nn.Linear(4 * 16, 5), nn.Linear(4 * 16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(torch.relu(x))
        side = self.side(x)
        y = torch.flatten(torch.relu(self.join(x) + self.after(side + self.grouped(side))), 1)
        return self.head(y) + self.other(y)


def branching():
    torch.manual_seed(0)
    return NetworkGraph(trace(Branching().eval()), (1, 4, 4))


def test_spaces_that_all_readers_are_fitted_for_can_be_narrowed_and_the_others_say_why_not():
    able, reasons = whole_spaces(branching())
    assert {name: space.width for name, space in able.items()} == {"stem": 8, "side": 2, "join": 4}
    assert reasons == {}
    twice = trace(nn.Sequential(nn.Conv2d(1, 4, 3), *[nn.Conv2d(4, 4, 1)] * 2, nn.Conv2d(4, 2, 1)))
    able, reasons = whole_spaces(NetworkGraph(twice, (1, 4, 4)))
    assert {name: space.producers for name, space in able.items()} == {"0": ("0", "1")} and reasons == {}
    large = trace(nn.Sequential(nn.Conv2d(1, 4, 3), *[nn.Conv2d(4, 4, 3, padding=1)] * 2, nn.Conv2d(4, 2, 1)))
    fitting = FittingLimits(100, most_columns=20)
    able, reasons = whole_spaces(NetworkGraph(large, (1, 4, 4), fitting=fitting))
    assert able == {} and list(reasons.values()) == ["is read by 1, which is not fitted"]


def test_a_grouped_convolution_goes_with_its_groups_and_the_others_give_what_they_gave():
    view, x = branching(), torch.randn(2, 1, 4, 4)
    assert readers_of(view, view.spaces["side"]) == ["after"]
    assert members_of(view, view.spaces["side"], "after").tolist() == [[0, 1, 2], [3, 4, 5]]
    seen = []
    for keep in ({}, {"side": [1]}):
        shrink(view.module, view.spaces, keep)
        view.module.grouped.register_forward_hook(lambda module, inputs, output: seen.append(output))
        view.module(x)
    assert view.module.grouped.groups == 1
    assert torch.allclose(seen[0][:, 3:], seen[-1], atol=1e-6)


def test_members_are_the_columns_of_a_reader_that_belong_to_each_channel():
    view = branching()
    able, _ = whole_spaces(view)
    assert members_of(view, able["stem"], "branch").tolist() == [[i] for i in range(8)]
    assert members_of(view, able["stem"], "join").tolist() == [[i] for i in range(8)]
    assert torch.equal(members_of(view, able["join"], "head"), torch.arange(64).view(4, 16))


def test_what_stays_of_each_layer_is_what_shrinking_leaves():
    view = branching()
    keep = {"stem": [0, 2, 5], "join": [1, 3]}
    kept = kept_outputs(view, keep)
    assert {name: places.tolist() for name, places in kept.items()} == {
        "stem": [0, 2, 5], "branch": [0, 2, 5], "join": [1, 3], "after": [1, 3],
    }  # fmt: skip
    shrink(view.module, view.spaces, keep)
    assert all(view.module.get_submodule(name).out_channels == len(places) for name, places in kept.items())
    assert torch.isfinite(view.module(torch.randn(2, 1, 4, 4))).all()
