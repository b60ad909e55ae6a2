"""Fidelity against the same quantities worked out by hand, for any batch size."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from decomp.pipelines.measure.fidelity import compare

CPU = torch.device("cpu")


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
    found = compare(original, network, frozen, first=3, batch_size=batch_size, device=CPU)
    x = frozen.values[3:]
    with torch.no_grad():
        expected, got = (net(x).double().numpy() for net in (original, network))
    p, q = log_softmax(expected, axis=1), log_softmax(got, axis=1)
    assert found["images"] == 10
    assert found["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-6)
    assert found["agreement"] == (expected.argmax(1) == got.argmax(1)).mean()
    assert 0 < found["agreement"] < 1  # both answers occur
    if batch_size == 100:  # the mean is that of a batch
        variance = np.square(expected - expected.mean(0)).sum()
        assert found["relative"] == pytest.approx(np.square(got - expected).sum() / variance, rel=1e-9)
    assert f"KL divergence {found['kl']:.4f}" in found["words"] and "on 10 held-out" in found["words"]


def test_equal_networks_differ_by_nothing():
    found = compare(linear(0), linear(0), Images(6), 0, 5, CPU)
    assert found["relative"] == 0 and found["agreement"] == 1 and found["kl"] == pytest.approx(0, abs=1e-12)


def test_feature_maps_have_neither_divergence_nor_classes():
    class Map(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x

    found = compare(Map(1.0), Map(1.5), Images(2, 3, 3), 0, 13, CPU)
    values = Images(2, 3, 3).values.double()
    variance = (values - values.mean(0)).square().sum()
    assert found["relative"] == pytest.approx((0.25 * values.square().sum() / variance).item(), rel=1e-6)
    assert set(found) == {"images", "relative", "words"}
