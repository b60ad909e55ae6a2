"""Batch normalisations come back where the original had them; outputs stay, also when folded again and saved."""

import pytest
import torch
from networks import Block, block, randomise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import decomp
from decomp.errors import UsageError

X = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    return decomp.compress(block(), X, 1.5, n_points=3, quiet=True)[0]


def relative(got, wanted):
    return float((got - wanted).detach().abs().max() / wanted.detach().abs().max())


def names_of_norms(net):
    return [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]


def trained(net, steps=3):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        net.train()(X[:32]).square().mean().backward()
        optimizer.step()
    return net.eval()


def test_the_normalisations_of_the_original_are_back_and_evaluation_gives_the_same(network):
    wanted = network(X)
    again = decomp.trainable(network, DataLoader(TensorDataset(X), batch_size=7))
    assert type(again) is Block and names_of_norms(again) == ["bn1", "bn2"] == names_of_norms(block())
    assert relative(again(X), wanted) < 1e-5 and not again.training
    assert names_of_norms(network) == [] and torch.equal(network(X), wanted)
    assert relative(decomp.folded(again)(X), wanted) < 1e-5 and names_of_norms(decomp.folded(again)) == []
    # Batch statistics on all images are the running ones: training mode says nearly the same.
    assert relative(again.train()(X), wanted) < 1e-2


def test_a_trained_network_is_saved_folded_or_not(network, tmp_path):
    again = trained(decomp.trainable(nn.DataParallel(network), X))
    wanted = again(X)
    assert relative(wanted, network(X)) > 1e-3
    for name, net in {"with": again, "folded": decomp.folded(again)}.items():
        decomp.save(net, tmp_path / name)
        for back in (decomp.load(tmp_path / name), decomp.load(tmp_path / name, into=block())):
            assert relative(back(X), wanted) < 1e-5
            assert names_of_norms(back) == ([] if name == "folded" else ["bn1", "bn2"])
            assert relative(decomp.folded(back)(X), wanted) < 1e-5
            more = decomp.trainable(back, X)
            assert names_of_norms(more) == ["bn1", "bn2"] and relative(more(X), wanted) < 1e-5
    kept = decomp.trainable(again, X)  # what is there is left as it is trained
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_traced_network_and_a_part_get_theirs_too(tmp_path):
    network, _ = decomp.compress(nn.Sequential(block(), nn.ReLU()), X, 1.5, module="0", n_points=3, quiet=True)
    again = decomp.trainable(network, X)
    assert names_of_norms(again) == ["0.bn1", "0.bn2"] and relative(again(X), network(X)) < 1e-5
    decomp.save(network, tmp_path / "net")
    alone = decomp.load(tmp_path / "net")
    assert names_of_norms(decomp.trainable(alone, X)) == ["bn1", "bn2"]
    assert relative(decomp.trainable(alone, X)(X), alone(X)) < 1e-5


def test_mistakes_are_one_line_each(network):
    with pytest.raises(UsageError, match="got a Block"):
        decomp.trainable(block(), X)
    plain = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()))
    without, _ = decomp.compress(plain, X, 1.5, n_points=3, quiet=True)
    with pytest.raises(UsageError, match="has no batch normalisations to put back.*train it as it is"):
        decomp.trainable(without, X)
    assert torch.equal(decomp.folded(without)(X), without(X))
    with pytest.raises(UsageError, match="images: there must be at least 16, got 15"):
        decomp.trainable(network, X[:15])
    with pytest.raises(UsageError, match=r"must be in float32 to be trained, got float16; give network.float\(\)"):
        decomp.trainable(decomp.folded(network).half(), X)
