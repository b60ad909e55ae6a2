"""torch.export programs become networks of layers that compute the same; what cannot be followed is one line."""

import pytest
import torch
from networks import block, randomise
from torch import nn

import decomp
from decomp.cost.count import cost
from decomp.data.exported_program import as_network, input_shape, read
from decomp.data.models import load_model
from decomp.errors import FileError, TraceError
from decomp.graph.tracing import trace

FREE = ({0: torch.export.Dim("batch")},)


def program(net, shape=(3, 8, 8), free=True, batch=2):
    return torch.export.export(net.eval(), (torch.zeros(batch, *shape),), dynamic_shapes=FREE if free else None)


class Mixed(nn.Module):
    """Grouped, transposed and strided layers, an interpolation, a constant, and an output in a dict."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(8)
        self.deep, self.up = nn.Conv2d(8, 8, (3, 1), padding="same", groups=4), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, x):
        y = self.drop(nn.functional.hardswish(self.norm(self.first(x))) * self.scale)
        y = torch.cat([self.deep(y), nn.functional.max_pool2d(y, 3, 1, 1)], 1)[:, 4:12]
        maps = nn.functional.interpolate(self.up(y), scale_factor=2, mode="nearest")
        return {"maps": maps, "mean": (maps.mean((2, 3)), y.flatten(1).sum(1, keepdim=True))}


@pytest.mark.parametrize(("make", "free"), [(block, True), (Mixed, True), (Mixed, False)])
def test_the_layers_of_a_program_compute_what_it_computes(make, free):
    net, x = randomise(make()), torch.randn(5, 3, 8, 8)
    network = as_network(program(net, free=free), "net")
    wanted, got = torch.utils._pytree.tree_flatten(net(x)), torch.utils._pytree.tree_flatten(network(x))
    assert wanted[1] == got[1] and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted[0], got[0]))
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.Linear)
    layers = {name: type(m) for name, m in net.named_modules() if isinstance(m, kinds)}
    assert {name: type(m) for name, m in network.named_modules() if isinstance(m, kinds)} == layers
    assert cost(trace(network), (3, 8, 8)).macs == cost(trace(net), (3, 8, 8)).macs


def test_core_operations_are_read_too():
    lowered = program(block()).run_decompositions()
    x = torch.randn(3, 3, 8, 8)
    network = as_network(lowered, "net")
    assert torch.allclose(network(x), block()(x), atol=1e-5)
    assert isinstance(network.get_submodule("conv1"), nn.Conv2d) and isinstance(
        network.get_submodule("bn1"), nn.BatchNorm2d
    )


def test_a_program_is_compressed_from_python_and_by_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network, report = decomp.compress(program(block()), x, 1.5, n_points=3, quiet=True)
    own, wanted = decomp.compress(block(), x, 1.5, n_points=3, quiet=True)
    assert report.macs_after == wanted.macs_after and torch.allclose(network(x), own(x), atol=1e-3)
    torch.export.save(program(block()), "net.pt2")
    loaded = load_model("net.pt2")
    assert loaded.input_shape == (3, 8, 8) and loaded.weights_name == "as in the program"
    assert torch.allclose(loaded.module(x), block()(x), atol=1e-5)


def test_what_cannot_be_followed_is_one_line(tmp_path):
    with pytest.raises(TraceError, match=r"batches of 2 images only; export it with dynamic_shapes="):
        as_network(program(block(), free=False), "net")
    training = torch.export.export(block().train(), (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(TraceError, match=r"in training mode.*call model.eval\(\)"):
        as_network(training, "net")
    flat = torch.export.export(nn.Linear(4, 2), (torch.zeros(2, 4),))
    assert input_shape(flat) is None
    with pytest.raises(TraceError, match="must take one batch of images"):
        as_network(flat, "net")
    (tmp_path / "net.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match="cannot be read as a torch.export program"):
        read(tmp_path / "net.pt2")
    with pytest.raises(FileError, match="there is no such file"):
        load_model(str(tmp_path / "missing.pt2"))
