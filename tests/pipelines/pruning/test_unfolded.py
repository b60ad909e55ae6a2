"""The original of a run with its batch normalisations, loaded again."""

import pytest
import torch
from networks import block, randomise
from torch import nn

from decomp.data import models
from decomp.data.models import LoadedModel
from decomp.errors import DecompError, FileError, UsageError
from decomp.pipelines.pruning.unfolded import folded_copy, unfolded, unfolded_of_run
from tests.pipelines.digit_runs import NETWORKS, SHAPE, make_run

pytestmark = pytest.mark.usefixtures("known_networks")


def test_the_network_keeps_its_normalisations_and_the_folded_copy_computes_the_same():
    model, images = block(), torch.randn(2, 3, 8, 8)
    found = unfolded(model, "block", (3, 8, 8))
    assert found.normalised == (("conv1", "bn1"), ("conv2", "bn2"))
    assert isinstance(found.network.get_submodule("bn1"), nn.BatchNorm2d)
    folded = folded_copy(found.network)
    assert isinstance(folded.get_submodule("bn1"), nn.Identity)
    assert isinstance(found.network.get_submodule("bn1"), nn.BatchNorm2d)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-5, atol=1e-5)


def test_the_original_of_a_run_comes_back_with_its_normalisations(run):
    found = unfolded_of_run(run)
    images = torch.randn(2, *SHAPE)
    assert torch.equal(found.network(images), randomise(NETWORKS["plain"]())(images))
    assert found.normalised == (("0", "1"),)


def test_other_weights_of_the_name_are_refused(run, monkeypatch):
    network = randomise(NETWORKS["plain"](), 7)
    loaded = LoadedModel(network, "plain", SHAPE, "0" * 64, "random")
    monkeypatch.setattr(models, "load_model", lambda *_, **__: loaded)
    with pytest.raises(DecompError, match="the network plain must be the one that was frozen, which gives other"):
        unfolded_of_run(run)
    loaded.weights_digest = "1" * 64
    with pytest.raises(UsageError, match="was frozen with other weights of plain, of digest 000000000000, got 1111"):
        unfolded_of_run(run)


def test_a_network_that_is_gone_is_one_line(run, monkeypatch):
    def gone(*_, **__):
        raise FileError("net.pth", "the file does not exist")

    monkeypatch.setattr(models, "load_model", gone)
    with pytest.raises(DecompError, match=r"is needed, with its batch normalisations \(net.pth: the file does not"):
        unfolded_of_run(run)


def test_a_network_from_memory_is_taken_from_the_session(tmp_path):
    run = make_run(tmp_path / "run")
    record = run.config("freeze")
    run.update_config("freeze", {**record, "asked": {**record["asked"], "model": "Sequential in memory"}})
    with pytest.raises(UsageError, match="holds Sequential in memory, which only the Python session that froze it"):
        unfolded_of_run(run)
