"""Inspection says of every layer what decomposition does with it."""

from inspect import signature

import pytest
import torch
from small_graphs import GRAPHS, INPUT
from small_graphs import make as small_graph
from torch import nn

from decomp.data import models, weights, zoo
from decomp.data.sources import open_source
from decomp.errors import WeightsError
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.decomposition.session import open_run
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.stages import freeze
from decomp.pipelines.stages.inspection import inspect
from tests.pipelines.digit_runs import SHAPE

WITH_CONVOLUTIONS = [f"zoo:{name}" for name in zoo.OWN if not name.startswith("mlp")]


def wide():
    """A linear layer with more columns than are fitted, and one that reads it."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 256, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256 * 64, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


@pytest.fixture
def own_networks(monkeypatch):
    """Networks of the tests under their names, as if the user had given them."""
    real = models.load_model

    def load(name, **options):
        if name == "wide":
            return models.LoadedModel(wide().eval(), name, SHAPE, "0" * 64, "random")
        if name in GRAPHS:
            return models.LoadedModel(small_graph(name), name, INPUT, "0" * 64, "random")
        return real(name, **options)

    monkeypatch.setattr(models, "load_model", load)


def said_by_decompose(run):
    with open_run(run, Resources(torch.device("cpu"))) as session:
        return {layer.name: dict(layer.left_alone) for layer in session.graph.layers}


def said_by_inspect(model, **options):
    return {layer["name"]: layer["left_alone"] for layer in inspect(model, **options).layers}


def test_weights_of_freeze_are_taken_give_the_classes_recorded_with_them_and_stand_in_the_next_command(tmp_path):
    module = zoo.build("c3-32", n_classes=4, input_shape=SHAPE)
    file = str(tmp_path / "w.safetensors")
    weights.write(module.state_dict(), file, input_shape=SHAPE, n_classes=4, preprocessing=None)
    result = inspect("zoo:c3-32", data="digits", weights=file)
    assert result.layers[-1]["out_channels"] == 4 and f"--weights {file}" in result.network["next"]
    assert inspect("zoo:c3-32", data="digits").layers[-1]["out_channels"] != 4
    with pytest.raises(WeightsError, match="w.safetensors"):
        inspect("zoo:vgg-digits", weights=file)


@pytest.mark.usefixtures("own_networks")
@pytest.mark.parametrize("model", ["wide", *GRAPHS, *WITH_CONVOLUTIONS])
@pytest.mark.parametrize("n_images", [30, 150])
def test_inspect_and_decompose_agree_on_every_layer(model, n_images, tmp_path):
    run = tmp_path / "run"
    options = {"weights": "random", "data": "digits", "n_points": 2, "reporter": Reporter(quiet=True)}
    freeze.freeze(run, model=model, n_images=n_images, **options)
    assert said_by_inspect(model, n_images=n_images) == said_by_decompose(run)


@pytest.mark.usefixtures("own_networks")
def test_layers_too_large_for_the_images_are_excluded_and_the_number_is_named():
    found = said_by_inspect("wide", n_images=100)
    assert set(found["5"].values()) == {"16,384 columns a row are more than the 12,000 that are fitted"}
    assert found["7"]["prune"].startswith("its producer 5 is left alone: 16,384 columns")
    few = "\n".join(inspect("viewed", n_images=60).lines())
    assert (
        "left alone: 60 rows of images are too few to choose among 432 columns" in few
        and "with 60 calibration images" in few
    )
    assert "too few" not in "\n".join(inspect("viewed", n_images=1000).lines())


@pytest.mark.usefixtures("own_networks")
def test_inspection_assumes_the_images_that_freeze_takes_by_default_and_the_data_has():
    default = signature(freeze.freeze).parameters["n_images"].default
    assert signature(inspect).parameters["n_images"].default == default
    assert inspect("wide").network["n_images"] == default
    assert inspect("wide", data="digits").network["n_images"] == len(open_source("digits").train) < default


def test_products_of_activations_are_listed_with_their_cost(monkeypatch):
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.heads = torch.nn.Conv2d(1, 6, 3), torch.nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            t = self.conv(x).flatten(2).transpose(1, 2)
            t = self.heads(t, t, t)[0]
            return t @ t.transpose(1, 2)

    loaded = models.LoadedModel(Attention().eval(), "attention", SHAPE, "0" * 64, "random")
    monkeypatch.setattr(models, "load_model", lambda name, **options: loaded)
    found = inspect("attention")
    n, height, width = 6, SHAPE[1] - 2, SHAPE[2] - 2
    conv, product = 9 * n * height * width, n * (height * width) ** 2
    heads = 4 * n * n * height * width + 2 * product
    assert found.network["macs"] == conv + product + heads
    assert found.other == {
        "products of activations": f"{product / 1e6:,.3g} M multiply-accumulates, "
        f"{100 * product / (conv + product + heads):.1f} % of the cost, stay",
        "heads": f"left alone: MultiheadAttention, {100 * heads / (conv + product + heads):.1f} % of the cost",
    }
    assert any("products of activations: " in line and line.endswith("stay") for line in found.lines())
