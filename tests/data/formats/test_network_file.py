"""Network directory: it loads alone and into the original class bit by bit, and broken files are refused by name."""

import copy
import json

import pytest
import torch
from named_networks import INPUT, NETWORKS, make
from networks import CHAIN_INPUT, block, chain, randomise
from plans import halved
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import decomp
from decomp.data.formats import network_file
from decomp.data.formats.json_files import SEAL, write_json
from decomp.errors import DecompError, FileError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery import batchnorm
from decomp.surgery.apply_solution import apply_solution
from decomp.surgery.random_network import random_solution


@pytest.fixture
def saved(tmp_path):
    network = trace(chain())
    folded = batchnorm.fold_bn(network)
    network_file.save(network, tmp_path / "net", edited=[p for pair in folded for p in pair], input_shape=CHAIN_INPUT)
    return network, tmp_path / "net"


def exchange_all(network, graph):
    """Give all layers random ones of half the size; the paths of the modules that were exchanged."""
    solutions = [random_solution(graph, layer, halved(graph)[layer.name]) for layer in graph.layers if layer.fitted]
    return list(dict.fromkeys(path for one in solutions for path in apply_solution(network, graph, one)))


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
    edited = exchange_all(network, graph)
    assert len(edited) == 5
    network_file.save(network, tmp_path / "net", edited=edited, input_shape=INPUT)
    into = decomp.load(tmp_path / "net", into=kind())
    assert type(into) is kind and torch.equal(into(images), network(images))
    assert torch.equal(decomp.load(tmp_path / "net")(images), network(images))
    assert network_file.verify_into_original(tmp_path / "net", kind).into


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
    edited = exchange_all(network, graph)
    for part in ("part", "same"):
        network_file.save(network, tmp_path / "net", edited=edited, input_shape=INPUT, part=part)
        whole = decomp.load(tmp_path / "net", into=Whole())
        assert torch.equal(whole(images), network(images))


class Gained(nn.Conv2d):
    """A convolution of its own class whose forward goes on; with a buffer and constants that no state has."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm = nn.BatchNorm2d(self.out_channels)
        self.register_buffer("shift", torch.randn(1), persistent=False)

    def forward(self, x):
        x = F.conv2d(F.pad(x, (x.shape[3] % 4, 0)), self.weight, None, self.stride, self.padding)
        return self.norm(x + self.shift * torch.tensor([0.5, 2.0]).sum()).relu() * torch.tensor([3.0])


def test_computed_weights_and_layers_called_as_functions_go_into_the_original_class(tmp_path):
    def build():
        torch.manual_seed(0)
        first = parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        return nn.Sequential(first, nn.Sequential(Gained(8, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 1)).eval()

    shape, original = (3, 7, 6), randomise(build())
    network = trace(original, shape=shape)
    folded = [path for pair in batchnorm.fold_bn(network) for path in pair]
    edited = [*network.meta["exchanged"], *folded]
    network.get_submodule("1.0").conv = nn.Sequential(network.get_submodule("1.0.conv"), nn.Conv2d(8, 8, 1))
    network_file.save(network, tmp_path / "a", edited=[*edited, "1.0.conv"], input_shape=shape)
    # Written once more from what was read, as the stages do.
    alone = network_file.load(tmp_path / "a")
    network_file.save(alone, tmp_path / "b", edited=[*edited, "1.0.conv"], input_shape=shape)
    into, x = network_file.load(tmp_path / "b", into=build()), torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(into(x), network(x)) and torch.equal(alone(x), network(x))
    assert type(into) is nn.Sequential and type(into[0]) is nn.Conv2d
    assert network_file.verify_into_original(tmp_path / "b", build).into


def test_a_network_whose_own_forward_calls_layers_as_functions_stands_alone(tmp_path):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.w)

    network = trace(Functional(), shape=(3, 7, 6))
    network_file.save(network, tmp_path / "a", edited=network.meta["exchanged"], input_shape=(3, 7, 6))
    assert [name for name, _ in network_file.load(tmp_path / "a").named_parameters()] == ["conv.weight"]
    with pytest.raises(FileError, match="the forward pass calls layers as functions .*; load it without into="):
        network_file.load(tmp_path / "a", into=Functional())
    said = network_file.verify_into_original(tmp_path / "a", Functional)
    assert said.into is False and said.reason.startswith("the forward pass calls layers as functions")


def test_another_class_is_refused(saved):
    with pytest.raises(FileError, match="does not fit the given model"):
        decomp.load(saved[1], into=block())


def test_going_into_the_original_class_is_verified(saved):
    taken = network_file.verify_into_original(saved[1], chain)
    assert taken.into and taken.words() == "verified, standing alone and in the original class"

    def gone():
        raise DecompError("nets.py", "is not there")

    unknown = network_file.verify_into_original(saved[1], gone)
    assert unknown.into is None
    assert unknown.words() == "stands alone; the original class cannot be built here (nets.py: is not there)"


def hooked(hook):
    module = chain()
    module.register_forward_hook(hook)
    return module


def raises(module, inputs, output):
    raise ValueError("a mistake\nof two lines")


@pytest.mark.parametrize(
    ("original", "reason"),
    [
        (lambda: hooked(lambda m, i, o: o * 2), "with the exchanged modules its outputs are off by 1 of the largest"),
        (lambda: hooked(lambda m, i, o: (o, o)), "with the exchanged modules its outputs are of another form"),
        (lambda: hooked(raises), "ValueError: a mistake of two lines"),
        (block, "does not fit the given model: it has no module 0"),
    ],
)
def test_a_class_that_does_not_take_the_network_is_a_reason_and_no_error(saved, original, reason):
    refused = network_file.verify_into_original(saved[1], original)
    assert refused.into is False and refused.reason.startswith(reason)
    assert refused.words() == f"stands alone; the original class does not take it ({refused.reason})"
    network, same = network_file.in_original_class(saved[1], original())
    assert network is None and same == refused.reason


def test_a_forward_that_reads_the_weight_of_a_layer_that_became_a_chain_is_named(tmp_path):
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

        def forward(self, x):
            return self.b(self.a(x)) * self.b.weight.shape[0]

    network = trace(Asking(), shape=(3, 7, 6))
    network.b = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 5, 3))
    network_file.save(network, tmp_path / "a", edited=["b"], input_shape=(3, 7, 6))
    said = network_file.verify_into_original(tmp_path / "a", Asking)
    assert said.into is False
    assert said.reason == "its forward reads b.weight, and b is a chain of layers now, which has none"


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
            return x * torch.rand(x.shape[2:])

    with pytest.raises(DecompError, match="data cannot name"):
        network_file.save(trace(Mine()), tmp_path / "net", input_shape=(1, 2, 2))
    assert not (tmp_path / "net").exists()
