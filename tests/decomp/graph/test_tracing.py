import pytest
import torch
from networks import chain, randomise
from torch import fx, nn
from torch.nn import functional as F

from decomp.data.formats import network_file
from decomp.errors import TraceError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn


def test_control_flow_is_refused_with_its_place():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            if x.sum() > 0:
                return self.conv(x)
            return x

    with pytest.raises(
        TraceError, match=r"net: the forward pass cannot be traced at test_tracing\.py:\d+: symbolically traced"
    ):
        trace(Dynamic(), "net")


def test_tracing_leaves_the_model_alone():
    model = chain().train()
    traced = trace(model)
    assert model.training and not traced.training
    traced.get_submodule("0").weight.data.zero_()
    assert model[0].weight.abs().sum() > 0


def test_inputs_with_defaults_take_them():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x, mask=None, *, scale=2.0):
            x = self.conv(x)
            return x * scale if mask is None else x * mask

    network, x = trace(Masked()), torch.randn(2, 3, 8, 8)
    assert [node.op for node in network.graph.nodes].count("placeholder") == 1
    with torch.no_grad():
        assert torch.equal(network(x), network.conv(x) * 2)


def test_a_convolution_that_is_called_by_name_is_treated_like_others():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.bn = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.bn(input=self.conv2(input=F.relu(self.conv1(input=x))))

    module, x = randomise(Named()), torch.randn(3, 3, 12, 12)
    traced = trace(module)
    assert all(len(node.args) == 1 and not node.kwargs for node in traced.graph.nodes if node.op == "call_module")
    assert fold_bn(traced) == [("conv2", "bn")]
    layers = NetworkGraph(traced, (3, 12, 12)).layers
    assert [layer.activation for layer in layers] == ["relu", "identity"] and layers[1].input_space.producer == "conv1"
    assert torch.allclose(traced(x), module(x), atol=1e-5)


def test_a_leaf_is_called_as_it_is():
    module = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(2, 2, 1)))
    targets = [node.target for node in trace(module, leaves=["0"]).graph.nodes if node.op == "call_module"]
    assert targets == ["0", "1.0"]
    for unknown in ("2", ""):
        with pytest.raises(TraceError, match="net: has no module of this name to leave as it is"):
            trace(module, "net", leaves=[unknown])


def test_stochastic_depth_does_nothing_in_evaluation():
    torchvision = pytest.importorskip("torchvision")
    module = nn.Sequential(nn.Conv2d(1, 2, 1), torchvision.ops.StochasticDepth(0.5, "row"), nn.ReLU())
    network = trace(module)
    assert [node.op for node in network.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(network(x), module.eval()(x))


def test_a_model_must_take_one_image_tensor():
    class Pair(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(TraceError, match="pair: the model must take one image tensor, got 2 inputs; treat a part"):
        trace(Pair(), "pair")


def test_a_model_of_several_inputs_names_the_parts_that_take_one_of_them():
    class Pair(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.encoder, self.depth = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 3))
            self.second = self.encoder if shared else self.depth

        def forward(self, x, y):
            return self.encoder(x * 2) - self.second(y)

    for shared, words in ((True, "such as encoder \\("), (False, "such as encoder or depth \\(")):
        with pytest.raises(TraceError, match=words):
            trace(Pair(shared), "pair")
    pair = Pair(False)
    pair.second = nn.Conv2d(3, 4, 3)  # by itself no part: what it becomes could not be put back
    with pytest.raises(TraceError, match="such as encoder \\(option"):
        trace(pair, "pair")


def test_calls_whose_results_are_not_used_are_removed():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            self.b(x)
            return self.a(x)

    network = trace(Unused())
    assert isinstance(network, fx.GraphModule)
    assert [node.target for node in network.graph.nodes if node.op == "call_module"] == ["a"]


def test_a_view_takes_values_with_their_channels_last():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(64, 5)

        def forward(self, x):
            return self.out(self.conv(x).view(x.size(0), -1)).view(torch.int32)

    module, x = Viewed().eval(), torch.randn(2, 3, 6, 6)
    traced = trace(module)
    assert torch.equal(traced(x), module(x))  # another view of the same bits stays one
    laid = traced.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(laid.view(torch.float32), module(x).view(torch.float32))


class Unused(nn.Module):
    """Holds parts that do not contribute to the output: called or not, nested, shared, and free tensors."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.aux = nn.ModuleDict({"deep": nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))})
        self.shared, self.never = nn.Sequential(nn.Linear(4, 4), self.head), nn.Conv2d(3, 9, 1)
        self.scale, self.spare = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(5))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x):
        x = self.conv(x).mean((2, 3)) * self.scale
        unused = self.aux["deep"](x + self.offset), self.shared(x), x + self.spare.sum(), self.count + 1
        return (self.head(x), *unused) if self.training else self.head(x)


def test_what_nobody_uses_is_not_in_the_traced_network_and_the_class_keeps_its_own(tmp_path):
    network, x = Unused().eval(), torch.randn(2, 3, 6, 6)
    traced = trace(network)
    used = ["conv.bias", "conv.weight", "head.bias", "head.weight", "scale"]
    assert sorted(traced.state_dict()) == used and torch.equal(traced(x), network(x))
    network_file.save(traced, tmp_path / "net", input_shape=(3, 6, 6))
    other = Unused().eval()
    into = network_file.load(tmp_path / "net", into=other)
    assert torch.equal(into(x), network(x)) and network_file.verify_into_original(tmp_path / "net", Unused).into
    kept = [name for name in other.state_dict() if name not in used and not name.startswith("shared.1")]
    assert len(kept) == 11 and all(torch.equal(into.state_dict()[n], other.state_dict()[n]) for n in kept)
    assert torch.equal(into.shared[1].weight, network.head.weight)


@pytest.mark.parametrize("part", ["", "conv", "head"])
def test_tensors_are_contiguous_whatever_layout_they_had(part, tmp_path):
    network, x = Unused().eval(), torch.randn(2, 3, 6, 6)
    network.get_submodule(part).to(memory_format=torch.channels_last)
    network.head.weight.data = torch.randn(4, 2).T
    traced = trace(network)
    assert all(value.is_contiguous() for value in traced.state_dict().values())
    assert torch.allclose(traced(x), network(x), atol=1e-6) and not network.head.weight.is_contiguous()
    network_file.save(traced, tmp_path / "net", input_shape=(3, 6, 6), edited=["conv"])
    into = network_file.load(tmp_path / "net", into=network)
    last = into.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert last is (part != "head") and torch.allclose(into(x), network(x), atol=1e-6)


def scaled(net, x):
    x.mul_(net.scale)
    x.add_(1.0)
    return x + x.mean()


def rectified(net, x):
    nn.functional.relu(x, inplace=True)
    return x * 2


def rectified_by_a_module(net, x):
    net.relu(x)
    return x + net.conv(x)


class InPlace(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.conv, self.relu = body, nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return self.body(self, self.conv(x))


@pytest.mark.parametrize("body", [scaled, rectified, rectified_by_a_module])
def test_a_change_in_place_whose_result_nobody_uses_is_kept(body):
    module, x = InPlace(body).eval(), torch.randn(2, 3, 5, 4)
    with torch.no_grad():
        assert torch.equal(trace(module)(x), module(x))


def test_a_view_that_is_changed_in_place_is_refused():
    with pytest.raises(TraceError, match="'mul_' changes a tensor in place, and another view of its memory is"):
        trace(InPlace(lambda net, x: (x[:, 0].mul_(2), x)[1]), "net")


def test_inputs_that_nobody_gives_are_left_out():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, *args, scale=2, **options):
            return self.conv(x) * (scale if not args and not options else 0)

    module, x = Free().eval(), torch.randn(2, 3, 5, 4)
    assert torch.equal(trace(module)(x), module(x))


def test_buffers_without_state_are_in_the_state_of_the_traced_network():
    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("grid", torch.randn(3, 1, 1), persistent=False)

        def forward(self, x):
            return self.conv(x + self.grid)

    assert set(trace(Grid()).state_dict()) == {"conv.weight", "conv.bias", "grid"}


def test_a_network_that_kept_what_it_computed_for_its_last_batch_computes_it_anew():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shape, self.rows = nn.Conv2d(3, 3, 1), None, None

        def forward(self, x):
            if self.shape != x.shape:
                self.rows, self.shape = torch.arange(x.shape[2]).view(-1, 1), x.shape
            return self.conv(x) + self.rows

    module = Cached().eval()
    module(torch.randn(2, 3, 6, 4))
    traced, x = trace(module, shape=(3, 6, 4)), torch.randn(3, 3, 6, 4)
    assert torch.equal(traced(x), module(x)) and torch.arange in {node.target for node in traced.graph.nodes}


def test_a_layer_that_is_asked_for_its_device_can_be_exchanged():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            rows = torch.arange(x.shape[2], device=self.first.weight.device, dtype=self.second.bias.dtype)
            return self.second(self.first(x).relu()) + rows[:, None]

    torch.manual_seed(0)
    model = Position().eval()
    traced, x = trace(model, shape=(3, 6, 6)), torch.randn(2, 3, 6, 6)
    wanted = model(x)
    assert torch.equal(traced(x), wanted)
    assert not any(node.op == "get_attr" for node in traced.graph.nodes)
    traced.first = nn.Sequential(traced.first, nn.Identity())
    assert torch.equal(traced(x), wanted)
