"""What a network costs, counted by running it."""

import torch
import torch.nn.functional as F
from torch import nn

from decomp.cost import count as cost
from decomp.cost import models
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace


class FromImages(nn.Conv2d):
    """A convolution whose weights are computed from the images."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True) * x.mean()
        return self._conv_forward(x, weight, self.bias)


def test_convolutions_that_no_module_makes_are_counted_once():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), FromImages(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 16, 5)).eval()
    first, second, last = 4 * 3 * 9 * 36, 6 * 2 * 9 * 16, 96 * 5
    whole = cost.cost(module, (3, 8, 8))
    assert whole.per_layer == {"0": first, "1": second, "3": last}
    traced = trace(module)
    counted = cost.cost(traced, (3, 8, 8))
    assert counted.per_layer == {"0": first, cost.FUNCTIONAL: second, "3": last}
    assert counted.macs == whole.macs
    view = NetworkGraph(traced, (3, 8, 8))
    assert len(view.functional_convs) == 1
    macs = models.MacsCost(view, counted.per_layer)
    assert macs.rest == second and macs.total == counted.macs
    with torch.no_grad():
        assert torch.equal(traced(torch.ones(1, 3, 8, 8)), module(torch.ones(1, 3, 8, 8)))


def test_counting_leaves_no_hook_and_the_mode_as_it_was():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    cost.cost(module, (1, 5, 5))
    assert module.training and not module[0]._forward_hooks and not module[0]._forward_pre_hooks
    assert F.conv2d(torch.ones(1, 1, 3, 3), module[0].weight).shape == (1, 2, 1, 1)


def test_a_total_of_another_network_changes_the_target_and_not_the_rest():
    module = trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval())
    view, counted = NetworkGraph(module, (1, 8, 8)), cost.cost(module, (1, 8, 8))
    for whole, own in ((models.MacsCost(view, counted.per_layer, 10_000), models.MacsCost(view, counted.per_layer)),
                       (models.ParamsCost(view, 10_000), models.ParamsCost(view))):  # fmt: skip
        assert whole.total == 10_000 and own.total < 10_000 and whole.rest == own.rest


class Sequence(nn.Module):
    """The columns of a map as steps of a sequence."""

    def __init__(self, layer, inputs=1):
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x):
        return self.layer(*[x.flatten(1, 2).transpose(1, 2)] * self.inputs)


def test_recurrent_and_bilinear_layers_are_counted_by_their_sums_at_each_step():
    lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
    gru, projected = nn.GRU(6, 5, batch_first=True), nn.LSTM(6, 5, proj_size=2, batch_first=True)
    bilinear = nn.Bilinear(6, 6, 3)
    # Four gates of an LSTM and three of a GRU; the second layer reads both directions of the first.
    assert cost.cost(Sequence(lstm).eval(), (2, 3, 7)).per_layer == {"layer": 7 * 2 * 4 * 5 * ((6 + 5) + (10 + 5))}
    assert cost.cost(Sequence(gru).eval(), (2, 3, 7)).per_layer == {"layer": 7 * 3 * 5 * (6 + 5)}
    assert cost.cost(Sequence(projected).eval(), (2, 3, 7)).per_layer == {"layer": 7 * (4 * 5 * (6 + 2) + 5 * 2)}
    assert cost.cost(Sequence(bilinear, 2).eval(), (2, 3, 7)).per_layer == {"layer": 7 * 3 * 6 * 6}


def test_transposed_convolutions_that_no_module_makes_are_counted_as_the_module_is():
    class ToTwice(nn.ConvTranspose2d):
        def forward(self, x):
            return super().forward(x, output_size=(2 * x.shape[2], 2 * x.shape[3]))

    plain = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), nn.ReLU())
    own = nn.Sequential(ToTwice(4, 6, 3, stride=2, padding=1, groups=2), nn.ReLU())
    expected = 5 * 7 * 4 * 3 * 9
    assert cost.cost(plain, (4, 5, 7)).macs == cost.cost(own, (4, 5, 7)).macs == expected
    traced = trace(own, shape=(4, 5, 7))
    assert cost.cost(traced, (4, 5, 7)).macs == expected
