"""Masked demo: sizes of the source note, equality of masked and smaller networks, and its trainings."""

import json

import numpy as np
import pytest
import torch

from decomp.cost.count import cost
from decomp.data import zoo
from decomp.errors import UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.commands.shared import as_json
from decomp.pipelines.recipes.masked import SHAPE, WIDTHS, masked
from decomp.surgery.narrow_network import shrink
from tests.pipelines.digit_runs import Collected


@pytest.mark.parametrize(
    "name, params, macs",
    [("mlp-fashion", (199_210, 45_360), (198_800, 45_200)),
     ("convnet-fashion", (87_114, 21_578), (5_676_160, 523_712))],
)  # fmt: skip
def test_the_networks_have_the_sizes_of_the_note_before_and_after(name, params, macs):
    network = trace(zoo.build(name))
    spaces = NetworkGraph(network, SHAPE).spaces
    before = cost(network, SHAPE)
    shrink(network, spaces, {layer: range(width) for layer, width in WIDTHS[name].items()})
    after = cost(network, SHAPE)
    assert (before.params, after.params) == params and (before.macs, after.macs) == macs
    if name == "convnet-fashion":
        last = network.get_submodule("9")
        assert (last.in_features, last.out_features) == (32 * 7 * 7, 10) == (1568, 10)
        assert [network.get_submodule(i).weight.shape[:2] for i in "036"] == [(8, 1), (16, 8), (32, 16)]


@pytest.fixture
def images(tmp_path):
    """60 images of two classes: bright above or below."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = generator.integers(0, 60, (60, 28, 28, 1))
    pixels[labels == 0, :14] += 150
    pixels[labels == 1, 14:] += 150
    np.savez(tmp_path / "a.npz", images=pixels.astype(np.uint8), labels=labels)
    return f"npz:{tmp_path / 'a.npz'}"


def test_networks_are_pruned_by_their_norms_and_trained_on(images):
    reporter = Collected()
    result = masked(images, epochs=2, reporter=reporter)
    for net, widths in zip(result.networks, WIDTHS.values()):
        assert {layer: len(keep) for layer, keep in net.keep.items()} == widths
        assert all(keep == sorted(set(keep)) for keep in net.keep.values())
        assert net.difference <= 1e-5
        assert net.accuracies["pruned and trained on"] >= 0.8 and set(net.untuned) == {"l1", "random", "largest"}
    lines = "\n".join(result.lines())
    assert "convnet, small from random weights" in lines and "masked and smaller network differ by" in lines
    assert json.loads(as_json(result))["networks"][0]["keep"] == result.networks[0].keep
    again = masked(images, networks=["mlp-fashion"], epochs=2, reporter=reporter)
    assert again.networks[0].accuracies == result.networks[0].accuracies
    assert again.networks[0].keep == result.networks[0].keep
    assert sum("channels from random weights" in line for line in reporter.messages) == 3


def test_the_test_images_are_read_once_for_each_network_when_all_are_trained(images, monkeypatch):
    from decomp.pipelines.recipes import masked as recipe

    file = images.removeprefix("npz:")
    with np.load(file) as source:
        pixels, labels = source["images"], source["labels"]
    np.savez(file, x_train=pixels, y_train=labels, x_test=pixels[:20], y_test=labels[:20])
    calls, fit, accuracy = [], recipe.fit, recipe.accuracy

    def trained(*arguments, **options):
        calls.append("fit")
        return fit(*arguments, **options)

    def measured(network, split, *arguments):
        calls.append(len(split))
        return accuracy(network, split, *arguments)

    monkeypatch.setattr(recipe, "fit", trained)
    monkeypatch.setattr(recipe, "accuracy", measured)
    masked(images, networks=["mlp-fashion"], epochs=1)
    assert calls == ["fit", 60, 60, 60, "fit", "fit", 20, 20, 20]


def test_the_first_layer_keeps_its_largest_filters_and_the_next_looks_at_what_is_left(images):
    from decomp.pipelines.recipes import masked as recipe

    network = trace(zoo.build("convnet-fashion"))
    spaces = NetworkGraph(network, SHAPE).spaces
    keep = recipe._choice(network, spaces, WIDTHS["convnet-fashion"], "l1", 0).keep
    norms = network.get_submodule("0").weight.detach().abs().sum((1, 2, 3))
    assert keep["0"] == sorted(norms.topk(8).indices.tolist())
    norms = network.get_submodule("3").weight.detach()[:, keep["0"]].abs().sum((1, 2, 3))
    assert keep["3"] == sorted(norms.topk(16).indices.tolist())


def test_images_without_labels_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 28, 28, 1), np.uint8))
    with pytest.raises(UsageError, match="the demo needs images with labels, got a source without labels"):
        masked(f"npz:{tmp_path / 'a.npz'}")
    assert torch.is_grad_enabled()
