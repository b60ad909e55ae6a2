"""Exported tasks: ordinary files, checked, smaller where channels are unused."""

import copy
import json

import pytest
import torch

from decomp.errors import DecompError
from decomp.pipelines.continual import exports
from decomp.pipelines.continual.exports import export_task


def test_a_state_dict_and_a_program_hold_the_task(learned, tmp_path):
    files, sizes = export_task(learned.store, "sides", ("state-dict", "torchscript"), tmp_path)
    network, images = learned.store.network("sides"), torch.randn(3, 1, 6, 6)
    assert [file.path for file in files] == [str(tmp_path / "sides.pth"), str(tmp_path / "sides.pt")]
    extra = {"decomp.json": ""}
    program = torch.jit.load(files[1].path, _extra_files=extra)
    with torch.no_grad():
        assert (program(images) - network(images)).abs().max() < 1e-5
    assert json.loads(extra["decomp.json"])["task"] == "sides"
    assert sizes.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_unused_channels_are_not_in_the_files(learned, tmp_path, monkeypatch):
    network = learned.store.network("sides")
    with torch.no_grad():
        network.get_submodule("4").weight[:, :2] = 0
    monkeypatch.setattr(type(learned.store), "network", lambda self, name: network)
    files, sizes = export_task(learned.store, "sides", ("state-dict",), tmp_path)
    assert torch.load(files[0].path, weights_only=True)["0.weight"].shape == (2, 1, 3, 3)
    assert sizes.parameters - sizes.parameters_compact == 2 * (9 + 2 + 6 * 9)
    assert sizes.macs_compact < sizes.macs and files[0].difference < 1e-5


def test_a_file_with_other_outputs_is_not_kept(learned, tmp_path, monkeypatch):
    def broken(network, input_shape):
        network = copy.deepcopy(network)
        with torch.no_grad():
            network.get_submodule("8").bias.add_(torch.tensor([1.0, 0.0]))
        return network

    monkeypatch.setattr(exports, "compact", broken)
    with pytest.raises(DecompError, match="sides.pth: the written file must give the network's outputs to 0.0001"):
        export_task(learned.store, "sides", ("state-dict",), tmp_path)
    assert list(tmp_path.iterdir()) == []
