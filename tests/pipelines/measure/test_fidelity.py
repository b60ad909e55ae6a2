"""Fidelity against the same quantities worked out by hand, for any batch size."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.measure.fidelity import compare, learned_by_heart
from decomp.pipelines.measure.intervals import share_words

CPU = torch.device("cpu")
SCORES = Outputs((Output("output", "scores", (4,), "as asked"),))


class Images:
    """The part of a frozen file that is compared on."""

    n_images = 13

    def __init__(self, *shape):
        self.values = torch.randn(13, *shape, generator=torch.Generator().manual_seed(0))

    def images(self, start, stop):
        return self.values[start:stop]


def linear(seed, n_out=4):
    layer = nn.Linear(6, n_out)
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(seed))
        layer.bias.zero_()
    return layer.eval()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_classifiers_are_compared_by_difference_divergence_and_top_class(batch_size):
    frozen, original, network = Images(6), linear(0), linear(1)
    found = compare(original, network, frozen, first=3, batch_size=batch_size, device=CPU, outputs=SCORES)
    x = frozen.values[3:]
    with torch.no_grad():
        expected, got = (net(x).double().numpy() for net in (original, network))
    p, q = log_softmax(expected, axis=1), log_softmax(got, axis=1)
    assert found["images"] == 10
    assert found["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-6)
    assert found["agreement"] == (expected.argmax(1) == got.argmax(1)).mean()
    assert 0 < found["agreement"] < 1  # both answers occur
    variance = np.square(expected - expected.mean(0)).sum()  # about the mean of all images, in batches of any size
    assert found["relative"] == pytest.approx(np.square(got - expected).sum() / variance, rel=1e-6)
    assert f"KL divergence {found['kl']:.3g}" in found["words"] and "on 10 held-out" in found["words"]
    assert f"same first class on {share_words(found['agreement'], 10)}" in found["words"]


def test_equal_networks_differ_by_nothing():
    found = compare(linear(0), linear(0), Images(6), 0, 5, CPU, SCORES)
    assert found["relative"] == 0 and found["agreement"] == 1 and found["kl"] == pytest.approx(0, abs=1e-12)


class Map(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_feature_maps_have_neither_divergence_nor_classes():
    outputs = Outputs((Output("output", "values", (2, 3, 3)),))
    found = compare(Map(1.0), Map(1.5), Images(2, 3, 3), 0, 13, CPU, outputs)
    values = Images(2, 3, 3).values.double()
    variance = (values - values.mean(0)).square().sum()
    assert found["relative"] == pytest.approx((0.25 * values.square().sum() / variance).item(), rel=1e-6)
    assert set(found) == {"images", "relative", "outputs", "words"}
    assert set(found["outputs"]["output"]) == {"kind", "relative"}
    assert "\n" not in found["words"] and "KL" not in found["words"]


class Two(Map):
    def forward(self, x):
        return {"near": x, "far": [x[:, 0, 0] * self.factor, None]}


def test_each_of_several_outputs_has_a_line_with_its_share():
    outputs = Outputs((Output("near", "values", (2, 3, 3)), Output("far.0", "values", (3,))))
    found = compare(Two(640.0), Two(320.0), Images(2, 3, 3), 3, 4, CPU, outputs)
    y = Images(2, 3, 3).values[3:, 0, 0].double()
    lost = (0.25 * y.square().sum() / (y - y.mean(0)).square().sum()).item()
    assert found["outputs"]["near"]["relative"] == 0
    assert found["outputs"]["far.0"]["relative"] == pytest.approx(lost, rel=1e-6)
    assert found["relative"] == pytest.approx(lost / 2, rel=1e-6)
    first, near, far, *notes = found["words"].split("\n")
    assert first.startswith(f"on 10 held-out calibration images: outputs differ by {50 * lost:.2g} % of their variance")
    assert first.endswith("the mean of 2 outputs")
    assert near == "near: 0 % of their variance" and far == f"far.0: {100 * lost:.2g} % of their variance"
    assert len(notes) == 1 and notes[0].startswith("far.0: rows of 3 numbers are taken as values")


def test_one_image_or_images_that_look_alike_are_weighed_by_the_spread_over_all():
    outputs = Outputs((Output("output", "values", (2, 3, 3), variance=4.0),))
    images = Images(2, 3, 3)
    found = compare(Map(1.0), Map(1.5), images, 12, 4, CPU, outputs)
    expected = 0.25 * images.values[12].double().square().mean().item() / 4
    assert found["images"] == 1 and found["relative"] == pytest.approx(expected, rel=1e-6)
    images.values[:] = images.values[0]
    found = compare(Map(1.0), Map(1.5), images, 5, 4, CPU, outputs)
    assert found["relative"] == pytest.approx(0.25 * images.values[0].double().square().mean().item() / 4, rel=1e-6)


def partly_broken(threshold):
    """The linear network, with other weights for images whose first value is above a threshold."""

    class Partly(nn.Module):
        def forward(self, x):
            return torch.where(x[:, :1] > threshold, linear(1)(x), linear(0)(x) * 1.01)

    return Partly()


def test_fitted_images_are_compared_too_and_a_far_smaller_difference_on_them_is_warned_of():
    frozen = Images(6)
    frozen.values[:10, 0], frozen.values[10:, 0] = -1.0, 1.0
    found = compare(linear(0), partly_broken(0.0), frozen, 10, 4, CPU, SCORES)
    seen = frozen.values[:3]  # as many as are held out
    with torch.no_grad():
        wanted = linear(0)(seen)
        expected = (0.01 * wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert found["fitted"]["images"] == 3 and found["fitted"]["relative"] == pytest.approx(expected.item(), rel=1e-4)
    assert "the 10 fitted images are too few" in found["words"] and "more calibration images" in found["words"]


@pytest.mark.parametrize(
    "unseen, seen, warned", [(0.43, 0.012, True), (0.30, 0.11, False), (0.019, 0.001, False), (0.021, 0.001, True)]
)
def test_only_large_differences_far_above_those_on_fitted_images_are_warned_of(unseen, seen, warned):
    assert bool(learned_by_heart({"relative": unseen, "fitted": {"relative": seen}}, 135)) == warned
    assert learned_by_heart({"relative": unseen}, 0) == []
