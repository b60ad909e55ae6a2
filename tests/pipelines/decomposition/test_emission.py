"""Emission of a network: edits of all stages in one list, plain data beside them, and the class of the original."""

import copy

import pytest
import torch
from networks import block
from torch import nn

from decomp.data.formats import network_file
from decomp.pipelines.decomposition.emission import emit
from decomp.pipelines.decomposition.session import open_run
from decomp.pipelines.measure.resources import Resources
from tests.pipelines.digit_runs import SHAPE

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def test_a_network_is_written_with_the_edits_of_freeze_and_its_own(run, tmp_path):
    with open_run(run, Resources(torch.device("cpu"))) as opened:
        network = copy.deepcopy(opened.graph.module)
        old = network.get_submodule("3")
        network.add_module("3", nn.Sequential(old, nn.Conv2d(16, 16, 1)))
        verified = emit(opened, network, tmp_path / "net", edited=["3", "0"], meta={"macs": 7}, original=None)
        assert verified.into is True
        structure = network_file.read_structure(tmp_path / "net")
        assert [edit["module"] for edit in structure["edits"]] == ["0", "1", "3"]  # 0 and 1 were folded by freeze
        assert structure["meta"]["macs"] == 7 and structure["input_shape"] == list(SHAPE)
        x = torch.randn(2, *SHAPE)
        assert torch.equal(network_file.load(tmp_path / "net")(x), network(x))
        other = emit(opened, network, tmp_path / "net", edited=["3"], meta={}, original=block())
        assert other.into is False and "does not fit the given model" in other.reason
