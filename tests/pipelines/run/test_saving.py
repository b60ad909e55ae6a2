"""Networks in memory are saved with their present weights, and come back alone and in their class."""

import copy
import pickle

import pytest
import torch
from networks import block, randomise
from torch import nn

import decomp
from decomp.data.formats import network_file
from decomp.errors import DecompError, FileError, UsageError
from decomp.graph.tracing import trace
from decomp.pipelines.run.saving import attach_record, save
from decomp.surgery.batchnorm import fold_bn

SHAPE = (3, 8, 8)
X = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    """A network whose normalisations are folded, as decomp emits them."""
    network = trace(block())
    folded = fold_bn(network)
    edited = [path for pair in folded for path in pair]
    return network_file.save(network, tmp_path / "made", edited=edited, input_shape=SHAPE, meta={"model": "block"})


def trained(network):
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(value.dtype))
    return network


@pytest.mark.parametrize("copied", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("into", [None, block])
def test_a_network_that_was_trained_on_comes_back_both_ways(folder, tmp_path, into, copied):
    network = trained(copied(decomp.load(folder, into=None if into is None else into())))
    assert save(nn.DataParallel(network), tmp_path / "new") == tmp_path / "new"
    for back in (decomp.load(tmp_path / "new"), decomp.load(tmp_path / "new", into=block())):
        assert torch.equal(back(X), network(X)) and not torch.equal(back(X), decomp.load(folder)(X))
    assert network_file.read_structure(tmp_path / "new")["meta"] == {"model": "block"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_keep_their_precision(folder, tmp_path, dtype):
    network = trained(decomp.load(folder, into=block()).to(dtype))
    save(network, tmp_path / "new")
    for back in (decomp.load(tmp_path / "new"), decomp.load(tmp_path / "new", into=block())):
        assert back.stem.weight.dtype == dtype and torch.equal(back(X.to(dtype)), network(X.to(dtype)))


def test_a_layer_that_was_exchanged_is_saved_as_it_is(folder, tmp_path):
    network = decomp.load(folder, into=block())
    network.head = randomise(nn.Sequential(nn.Linear(128, 7), nn.ReLU(), nn.Linear(7, 2)))
    wanted = network(X)
    save(network.to(memory_format=torch.channels_last), tmp_path / "new")
    for back in (decomp.load(tmp_path / "new"), decomp.load(tmp_path / "new", into=block())):
        assert back.conv1.weight.is_contiguous() and torch.equal(back(X), wanted)
        save(decomp.load(tmp_path / "new").to(memory_format=torch.channels_last), tmp_path / "again")
        assert torch.equal(decomp.load(tmp_path / "again")(X), wanted)


def test_a_part_of_a_bigger_model_is_saved_from_it(tmp_path):
    part = trace(block())
    network_file.save(part, tmp_path / "made", input_shape=SHAPE, part="0")
    whole = nn.Sequential(block(), nn.Linear(4, 3)).eval()
    network = trained(decomp.load(tmp_path / "made", into=whole))
    save(network, tmp_path / "new")
    back = decomp.load(tmp_path / "new", into=whole)
    assert torch.equal(back[0](X), network[0](X)) and torch.equal(back[1].weight, whole[1].weight)


def test_a_traced_network_without_a_record_is_saved(tmp_path):
    network = trace(block())
    save(network, tmp_path / "net")
    assert torch.equal(decomp.load(tmp_path / "net")(X), network(X))


def test_an_earlier_network_is_replaced_and_other_things_are_not(folder, tmp_path):
    network = trained(decomp.load(folder))
    save(network, folder)
    assert torch.equal(decomp.load(folder)(X), network(X))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for place in ("file", "full"):
        with pytest.raises(FileError, match=f"{place}: is there already, and is not a saved network"):
            save(network, tmp_path / place)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save(network, tmp_path / "empty")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for place in ("run", "run/model"):
        with pytest.raises(FileError, match="belongs to a run"):
            save(network, tmp_path / place)


def test_what_cannot_be_saved_is_one_line_with_a_way_out(folder, tmp_path):
    with pytest.raises(UsageError, match=r"decomp.compress or decomp.load returned, got a Block; .*torch.save"):
        save(block(), tmp_path / "net")
    with pytest.raises(UsageError, match="must be a torch.nn.Module, got a dict"):
        save({}, tmp_path / "net")
    network = decomp.load(folder, into=block())
    network.conv1 = type("Own", (nn.Conv2d,), {})(8, 12, 3, padding=1)
    with pytest.raises(DecompError, match=r"conv1: .*torch.nn.*Own; keep it with torch.save\(network, FILE\)"):
        save(network, tmp_path / "net")
    assert not (tmp_path / "net").exists()
    del network.conv1
    with pytest.raises(DecompError, match="conv1: the module of this name is no longer in the network"):
        save(network, tmp_path / "net")


def test_a_save_that_fails_keeps_the_earlier_network(folder, tmp_path, monkeypatch):
    network, before = trained(decomp.load(folder)), decomp.load(folder)(X)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(network_file, "write_json", full)
    with pytest.raises(FileError, match="the disk is full"):
        save(network, folder)
    assert torch.equal(decomp.load(folder)(X), before) and len(list(tmp_path.iterdir())) == 1


def test_the_record_is_on_the_part_that_it_describes():
    whole = nn.Sequential(block(), nn.ReLU())
    assert attach_record(whole, {"part": "0"}) is whole[0]
    assert attach_record(whole, {"part": None}) is whole
    assert attach_record(whole[0], {"part": "0"}) is whole[0]
