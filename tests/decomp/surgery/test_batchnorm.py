"""Normalisations that stand behind layers during a training: exact before it, exact after it."""

import torch
from torch import nn

from decomp.surgery import batchnorm as refold


def network():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(4, 3, (3, 1), padding=(1, 0), bias=False), nn.Conv2d(3, 6, (1, 3), padding=(0, 1)))
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), chain, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 3)]
    return nn.Sequential(*layers).eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [3 + 2 * torch.randn(16, 2, 5, 5, generator=generator) for _ in range(4)]


def test_only_convolutions_and_the_ends_of_chains_are_taken():
    assert refold.last_convolutions(network(), ["0", "1", "2", "5"]) == ["0", "2.1"]


def test_the_network_computes_what_it_did_in_evaluation_and_nearly_so_in_training():
    net, images = network(), batches()
    wanted = [net(x) for x in images]
    paths = refold.last_convolutions(net, ["0", "2"])
    refold.insert_behind(net, paths, images)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 2
    assert not any(m.num_batches_tracked for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    for x, y in zip(images, wanted):
        torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-5)
    # The statistics are those of all batches together: on these as one batch training mode says the same.
    together = torch.cat(images)
    torch.testing.assert_close(net.train()(together), torch.cat(wanted), rtol=1e-3, atol=1e-3)


def test_what_was_trained_is_folded_into_plain_convolutions():
    net, images = network(), batches()
    before = dict(net.state_dict())
    paths = refold.last_convolutions(net, ["0", "2"])
    refold.insert_behind(net, paths, images)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for x in images:
        optimizer.zero_grad()
        net.train()(x).square().mean().backward()
        optimizer.step()
    trained = net.eval()(images[0])
    refold.fold_inserted(net, paths)
    assert {name: tuple(v.shape) for name, v in net.state_dict().items()} == {
        name: tuple(v.shape) for name, v in before.items()
    }
    torch.testing.assert_close(net(images[0]), trained, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(images[0]), network()(images[0]), atol=1e-3)


def test_a_dead_channel_stays_finite():
    net = network()
    with torch.no_grad():
        net[0].weight[1].zero_()
    wanted = net(batches()[0])
    refold.insert_behind(net, ["0"], batches())
    torch.testing.assert_close(net(batches()[0]), wanted, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(net.train()(batches()[0])).all()
