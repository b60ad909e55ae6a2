"""Network directory: it loads alone and into the original class bit by bit, and broken files are refused by name."""

import copy
import json

import pytest
import torch
from named_networks import INPUT, NETWORKS, make
from networks import CHAIN_INPUT, block, chain
from plans import halved
from safetensors.torch import load_file, save_file
from torch import nn

import decomp
from decomp.data.formats import network_file
from decomp.data.formats.json_files import SEAL, write_json
from decomp.errors import DecompError, FileError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery import batchnorm
from decomp.surgery.random_network import put_random_layers


@pytest.fixture
def saved(tmp_path):
    network = trace(chain())
    folded = batchnorm.fold_bn(network)
    network_file.save(network, tmp_path / "net", edited=[p for pair in folded for p in pair], input_shape=CHAIN_INPUT)
    return network, tmp_path / "net"


def test_networks_load_alone_and_into_the_original_class_bit_for_bit(saved):
    network, path = saved
    x = torch.randn(3, *CHAIN_INPUT)
    alone = decomp.load(path)
    assert torch.equal(alone(x), network(x)) and not alone.training
    original = chain()
    before = {k: v.clone() for k, v in original.state_dict().items()}
    into = decomp.load(path, into=original)
    assert type(into) is type(original) and torch.equal(into(x), network(x))
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())
    alone.load_state_dict(load_file(str(path / "weights.safetensors")))


@pytest.mark.parametrize("kind", NETWORKS)
def test_edits_go_by_name_into_any_container_of_the_original_class(kind, tmp_path):
    network, images = trace(make(kind)), torch.randn(2, *INPUT)
    graph = NetworkGraph(copy.deepcopy(network), INPUT)
    edited = put_random_layers(network, graph, halved(graph))
    assert len(edited) == 5
    network_file.save(network, tmp_path / "net", edited=edited, input_shape=INPUT)
    into = decomp.load(tmp_path / "net", into=kind())
    assert type(into) is kind and torch.equal(into(images), network(images))
    assert torch.equal(decomp.load(tmp_path / "net")(images), network(images))
    assert "verified, standing alone and in" in network_file.verify_into_original(tmp_path / "net", kind)


def test_a_part_shares_its_exchanged_modules_with_the_whole(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = make(NETWORKS[0])
            self.same, self.again = self.part, [self.part.low]

        def forward(self, x):
            return self.part.head(self.same.high(self.again[0](x)).mean((2, 3)))

    network, images = trace(make(NETWORKS[0])), torch.randn(2, *INPUT)
    graph = NetworkGraph(copy.deepcopy(network), INPUT)
    edited = put_random_layers(network, graph, halved(graph))
    for part in ("part", "same"):
        network_file.save(network, tmp_path / "net", edited=edited, input_shape=INPUT, part=part)
        whole = decomp.load(tmp_path / "net", into=Whole())
        assert torch.equal(whole(images), network(images))


def test_another_class_is_refused(saved):
    with pytest.raises(FileError, match="does not fit the given model"):
        decomp.load(saved[1], into=block())


def test_going_into_the_original_class_is_verified(saved):
    assert "verified" in network_file.verify_into_original(saved[1], chain)

    def gone():
        raise DecompError("nets.py", "is not there")

    assert "stands alone" in network_file.verify_into_original(saved[1], gone)

    def other_forward():
        module = chain()
        module.register_forward_hook(lambda m, i, o: o * 2)
        return module

    with pytest.raises(DecompError, match="other outputs"):
        network_file.verify_into_original(saved[1], other_forward)


def spoil_weights(path):
    state = load_file(str(path / "weights.safetensors"))
    save_file({k: v + 1 for k, v in state.items()}, str(path / "weights.safetensors"))


def spoil_structure(change):
    def spoil(path):
        data = json.loads((path / "structure.json").read_text())
        change(data)
        del data[SEAL]
        write_json(path / "structure.json", data, seal=True)

    return spoil


def truncate(name):
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-40])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_weights, "does not match"),
        (truncate("weights.safetensors"), "does not match"),
        (truncate("structure.json"), r"structure\.json: the file must be JSON|cut short"),
        (lambda path: (path / "weights.safetensors").unlink(), "is missing"),
        (lambda path: (path / "structure.json").unlink(), "not an emitted network"),
        (spoil_structure(lambda d: d.update(format_version=99)), "up to format 1, got format 99"),
        (spoil_structure(lambda d: d.update(format="other")), "decomp-model"),
        (spoil_structure(lambda d: d["graph"]["nodes"].pop(2)), "structure is broken"),
        (spoil_structure(lambda d: d.pop("graph")), r"structure is broken \(no graph\)"),
    ],
)
def test_broken_files_are_named(saved, spoil, words):
    spoil(saved[1])
    with pytest.raises(FileError, match=words) as caught:
        decomp.load(saved[1])
    assert "\n" not in str(caught.value)


def test_a_network_that_data_cannot_name_is_refused_before_anything_is_written(tmp_path):
    class Mine(nn.Module):
        def forward(self, x):
            return torch.special.expit(x)

    with pytest.raises(DecompError, match="data cannot name"):
        network_file.save(trace(Mine()), tmp_path / "net", input_shape=(1, 2, 2))
    assert not (tmp_path / "net").exists()
