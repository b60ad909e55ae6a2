"""Batch normalisations of other classes: what is made of them, and what is left as it is."""

import pytest
import torch
from networks import randomise
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import decomp
from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.graph.foreign_batchnorm import as_batchnorm, replace_foreign_batchnorms
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery import batchnorm

SHAPE = (3, 8, 8)


class NormAct(nn.BatchNorm2d):
    """A normalisation with an activation inside, of a class with a forward pass of its own."""

    def __init__(self, width, act=nn.ReLU, eps=1e-2):
        super().__init__(width, eps=eps)
        self.drop, self.act = nn.Identity(), act()

    def forward(self, x):
        torch._assert(x.ndim == 4, "four axes")
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class Shifted(nn.BatchNorm2d):
    """Not what it is called: one more is added."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps) + 1


def frozen(width):
    norm = FrozenBatchNorm2d(width)
    generator = torch.Generator().manual_seed(4)
    for tensor in norm.buffers():
        tensor.copy_(torch.rand(width, generator=generator) + 0.5)
    return norm


def network(norm):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
            self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), norm(12)
            self.head = nn.Conv2d(12, 4, 1)

        def forward(self, x):
            return self.head(self.bn2(self.conv2(self.bn1(self.conv1(x)))))

    return randomise(Network())


def x(seed=1, n=3):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("norm", "activation"),
    [(NormAct, "relu"), (lambda n: NormAct(n, nn.SiLU), "SiLU"), (frozen, "identity"), (nn.SyncBatchNorm, "identity")],
)
def test_other_normalisations_are_folded_and_leave_the_outputs_alone(norm, activation):
    module = network(norm)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    traced = trace(module)
    assert traced.meta["exchanged"] == ["bn1", "bn2"]
    assert len(batchnorm.fold_bn(traced)) == 2
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in traced.modules())
    with torch.no_grad():
        wanted = module(x())
        assert (traced(x()) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    view = NetworkGraph(traced, SHAPE)
    assert all(view.layer(name).input_space is not None for name in ("conv2", "head"))
    assert view.layer("conv1").activation == activation


def test_a_normalisation_before_a_convolution_is_narrowed_with_its_channels():
    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.pool, self.bn = nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), NormAct(8)
            self.conv2 = nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.conv2(self.bn(self.pool(self.conv1(x))))

    traced = trace(randomise(PreActivation()))
    assert batchnorm.fold_bn(traced) == []
    assert NetworkGraph(traced, SHAPE).layer("conv2").input_space.carriers == ("bn.norm",)


def test_what_does_something_else_is_left_as_it_is():
    for norm in (Shifted(4), nn.BatchNorm1d(4), nn.InstanceNorm2d(4, track_running_stats=True), nn.BatchNorm2d(4),
                 nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)):  # fmt: skip
        assert as_batchnorm(norm.eval()) is None
    module = network(Shifted)
    traced = trace(module)
    # Traced into, it is a normalisation called as a function and an addition.
    assert type(traced.get_submodule("bn1.norm")) is nn.BatchNorm2d
    assert torch.allclose(traced(x()), module(x()), atol=1e-6)


def test_a_leaf_keeps_all_that_is_in_it_and_a_shared_module_stays_shared():
    module = network(NormAct)
    assert replace_foreign_batchnorms(module, ["bn1"]) == ["bn2"] and type(module.bn1) is NormAct
    module = network(NormAct)
    module.bn3 = module.bn2
    assert replace_foreign_batchnorms(module) == ["bn1", "bn2"] and module.bn2 is module.bn3
    module = network(NormAct)
    module.copy = nn.Sequential(module.bn1)
    assert replace_foreign_batchnorms(module, ["copy"]) == ["bn2"] and type(module.bn1) is NormAct
    assert replace_foreign_batchnorms(nn.Sequential(nn.Sequential(NormAct(3))), ["0"]) == []


@pytest.mark.parametrize("norm", [NormAct, frozen])
def test_the_weights_go_back_into_the_original_class(norm, tmp_path):
    module = network(norm)
    traced = trace(module)
    edited = [*traced.meta["exchanged"], *(path for pair in batchnorm.fold_bn(traced) for path in pair)]
    network_file.save(traced, tmp_path / "net", edited=edited, input_shape=SHAPE)
    with torch.no_grad():
        wanted = traced(x())
        assert torch.equal(decomp.load(tmp_path / "net")(x()), wanted)
        back = decomp.load(tmp_path / "net", into=network(norm))
        assert torch.allclose(back(x()), wanted, atol=1e-6)
    assert cost(back, SHAPE).macs == cost(module, SHAPE).macs
    assert network_file.verify_into_original(tmp_path / "net", lambda: network(norm)).into


def test_a_class_without_such_a_normalisation_is_refused(tmp_path):
    traced = trace(network(NormAct))
    edited = [*traced.meta["exchanged"], *(path for pair in batchnorm.fold_bn(traced) for path in pair)]
    network_file.save(traced, tmp_path / "net", edited=edited, input_shape=SHAPE)
    with pytest.raises(decomp.errors.FileError, match="does not fit the given model: bn1 is no batch normalisation"):
        decomp.load(tmp_path / "net", into=network(nn.BatchNorm2d))
