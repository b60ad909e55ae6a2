import pytest
from torch import nn

from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace

STEPS = {"spatial", "channel", "prune"}
SHAPE = (1, 8, 8)


def conv(c, n, kernel=(3, 3), **facts):
    return Layer("layer", "layer", "conv", 0, c, n, kernel, (8, 8), (8, 8), **facts)


def linear(p, n=10, **facts):
    return Layer("layer", "layer", "linear", 0, p, n, (1, 1), (1, 1), (1, 1), **facts)


def test_a_layer_with_more_columns_than_the_limit_loses_every_step():
    limits = FittingLimits(n_images=10**6, most_columns=90)
    reason = "99 columns a row are more than the 90 that are fitted"
    assert limits.excluded_steps(conv(11, 4)) == dict.fromkeys(STEPS, reason)
    assert limits.excluded_steps(linear(99)) == dict.fromkeys(STEPS, reason)
    assert limits.excluded_steps(conv(10, 4)) == limits.excluded_steps(linear(90)) == {}
    assert set(FittingLimits(10**6).excluded_steps(linear(12_001))) == STEPS
    assert FittingLimits(10**6).excluded_steps(linear(12_000)) == {}


@pytest.mark.parametrize(("n_images", "excluded"), [(79, True), (80, False)])
def test_a_linear_layer_is_pruned_only_with_two_rows_for_each_column(n_images, excluded):
    found = FittingLimits(n_images).excluded_steps(linear(40))
    assert found == ({"prune": "79 rows of images are too few to choose among 40 columns"} if excluded else {})
    assert FittingLimits(n_images).excluded_steps(conv(40, 4)) == {}  # has several rows an image


def test_a_layer_that_is_not_fitted_keeps_its_own_reason():
    assert FittingLimits(10).excluded_steps(linear(40, fitted=False)) == {}
    wide = nn.Sequential(nn.Conv2d(1, 40, 1), nn.Conv2d(40, 40, 3, groups=40), nn.Conv2d(40, 40, 3, groups=4))
    layers = NetworkGraph(trace(wide), SHAPE, fitting=FittingLimits(100, most_columns=90)).layers
    assert set(layers[1].left_alone.values()) == {"depthwise convolution"}
    assert set(layers[2].left_alone.values()) == {"grouped (4 groups) convolution"}


def wide():
    """A first linear layer with 16,384 columns, between layers of a usual size."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 256, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256 * 64, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


def test_the_reader_of_an_excluded_layer_cannot_take_its_outputs_away():
    network, limits = trace(wide()), FittingLimits(1000)
    free, graph = NetworkGraph(network, SHAPE), NetworkGraph(network, SHAPE, fitting=limits)
    assert free.layer("7").input_space.producer == "5" and free.layer("5").input_space.producer == "2"
    reason = "16,384 columns a row are more than the 12,000 that are fitted"
    assert graph.layer("5").left_alone == dict.fromkeys(STEPS, reason)
    assert not graph.layer("5").fitted and graph.layer("5").input_space is None
    assert graph.layer("7").left_alone["prune"] == f"its producer 5 is left alone: {reason}"
    assert graph.layer("7").input_space is None and graph.layer("7").fitted
    assert graph.layer("2") == free.layer("2")


def test_a_layer_with_too_few_rows_is_fitted_and_still_loses_outputs():
    graph = NetworkGraph(trace(wide()), SHAPE, fitting=FittingLimits(100, most_columns=20_000))
    assert graph.layer("5").fitted and graph.layer("5").input_space is None
    assert graph.layer("5").left_alone["prune"] == "100 rows of images are too few to choose among 16,384 columns"
    assert graph.layer("7").input_space.producer == "5"


def test_an_excluded_layer_makes_up_for_no_shortcut():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return x + self.conv(x)

    network = trace(Residual())
    assert NetworkGraph(network, SHAPE, fitting=FittingLimits(100, 72)).layer("conv").recovers == "stem"
    assert NetworkGraph(network, SHAPE, fitting=FittingLimits(100, 71)).layer("conv").recovers is None
