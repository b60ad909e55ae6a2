import math

import pytest
import torch
from networks import randomise
from torch import fx, nn
from torch.nn import functional as F

from decomp.graph.functional_layers import functions_to_modules
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.serialise import build_graph, describe_graph
from decomp.graph.tracing import trace

SHAPE = (3, 9, 8)


class Normed(nn.Conv2d):
    """A convolution that goes on with a normalisation and an activation."""

    def __init__(self, *args, norm, **options):
        super().__init__(*args, **options)
        self.norm = norm

    def forward(self, x):
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return F.relu(self.norm(x))


class Same(nn.Conv2d):
    """Padding as in TensorFlow: more at the end, and dependent on the size of the images."""

    def forward(self, x):
        pads = []
        for n, k, s, d in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1]):
            total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
            pads += [total // 2, total - total // 2]
        x = F.pad(x, pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight.reshape(self.weight.size(0), -1)
        weight = F.batch_norm(weight[None], None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Renamed(nn.Conv2d):
    pass


class Kernels(nn.Module):
    """Functions on a scaled parameter and on a buffer, a normalisation, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.randn(6, 6, 3, 3)), nn.Parameter(torch.rand(6))
        self.register_buffer("blur", torch.ones(6, 1, 3, 3) / 9)
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)
        self.up = nn.Parameter(torch.randn(6, 4, 2, 2))

    def forward(self, x):
        x = torch.conv2d(x, self.w * self.scale.view(-1, 1, 1, 1), padding=(1,))
        x = F.batch_norm(x, self.mean, self.var)
        x = F.conv2d(input=x, weight=self.blur, stride=2, padding="valid", groups=6)
        return F.conv_transpose2d(x, self.up, stride=2)


def network(*layers):
    return randomise(nn.Sequential(*layers))


def convs(kind, **options):
    more = (lambda: {"norm": nn.BatchNorm2d(6), **options}) if kind is Normed else (lambda: options)
    return network(kind(3, 6, 3, **more()), nn.ReLU(), kind(6, 6, (2, 3), **more()), nn.Conv2d(6, 4, 1))


@pytest.mark.parametrize(("module", "paths"), [
    (lambda: convs(Normed, padding=1), ["0.conv", "2.conv", "3"]),
    (lambda: convs(Normed, bias=False, stride=2), ["0.conv", "2.conv", "3"]),
    (lambda: convs(Same, stride=(2, 1)), ["0.conv", "2.conv", "3"]),
    (lambda: convs(Same, dilation=2), ["0.conv", "2.conv", "3"]),
    (lambda: convs(Standardised, padding="same"), ["0", "2", "3"]),
    (lambda: convs(Renamed, padding=(0, 2)), ["0", "2", "3"]),
    (lambda: convs(Renamed, padding=1, padding_mode="circular"), ["0.conv", "2.conv", "3"]),
    (lambda: network(nn.Conv2d(3, 6, 1), nn.Sequential(Kernels())), ["0", "1.0.conv", "1.0.conv_1", "1.0.transposed"]),
])  # fmt: skip
def test_layers_called_as_functions_become_modules_with_the_same_outputs(module, paths):
    module, x = module(), torch.randn(2, *SHAPE)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    traced = trace(module, shape=SHAPE)
    graph = NetworkGraph(traced, SHAPE)
    assert [layer.name for layer in graph.layers] == paths and graph.functional_convs == ()
    assert torch.equal(traced(x), module(x))
    assert {type(traced.get_submodule(path)) for path in paths} <= {nn.Conv2d, nn.ConvTranspose2d}
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_what_follows_a_convolution_becomes_a_module_of_its_kind():
    traced = trace(network(nn.Conv2d(3, 6, 1), Kernels()), shape=SHAPE)
    kinds = {name: type(module) for name, module in traced.get_submodule("1").named_children()}
    wanted = {"conv": nn.Conv2d, "norm": nn.BatchNorm2d, "conv_1": nn.Conv2d, "transposed": nn.ConvTranspose2d}
    assert kinds == wanted and not list(traced.get_submodule("1").parameters(recurse=False))


def test_channels_are_followed_through_a_convolution_of_another_class():
    graph = NetworkGraph(trace(convs(Normed, padding=1), shape=SHAPE), SHAPE)
    assert graph.layer("2.conv").input_space.producer == "0.conv"
    assert graph.layer("2.conv").input_space.carriers == ("0.norm",)
    graph = NetworkGraph(trace(convs(Same), shape=SHAPE), SHAPE)
    assert graph.layer("2.conv").input_space.producer == "0.conv"


def test_a_layer_that_is_called_twice_is_one_module():
    shared = Standardised(6, 6, 3, padding=1)
    module, x = network(nn.Conv2d(3, 6, 1), shared, nn.ReLU(), shared), torch.randn(2, *SHAPE)
    traced = trace(module, shape=SHAPE)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2", "1"]
    assert torch.equal(traced(x), module(x))


class Weights(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.make, self.w = weight, nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.make(self.w, x))


@pytest.mark.parametrize("weight", [
    lambda w, x: w * x.mean(), lambda w, x: F.dropout(w, 0.5), lambda w, x: w + torch.rand_like(w),
])  # fmt: skip
def test_a_weight_that_is_no_constant_stays_a_function(weight):
    traced = trace(Weights(weight), shape=SHAPE)
    assert traced.meta["exchanged"] == [] and len(NetworkGraph(traced, SHAPE).functional_convs) == 1


def test_the_network_itself_may_call_functions():
    module, x = Weights(lambda w, x: w.abs()), torch.randn(2, *SHAPE)
    traced = trace(module, shape=SHAPE)
    assert [layer.name for layer in NetworkGraph(traced, SHAPE).layers] == ["conv"]
    assert traced.meta["exchanged"] == [""] and traced.meta["forwards"] == {"": None}
    assert torch.equal(traced(x), module(x))


@pytest.mark.parametrize(("width", "n_axes"), [(5, 2), (8, 4)])
def test_a_linear_function_becomes_a_layer_where_it_works_on_two_axes(width, n_axes):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 8))

        def forward(self, x):
            return F.linear(x if n_axes == 4 else x.mean((1, 2)), F.normalize(self.w))

    module, x = nn.Sequential(nn.Conv2d(3, 4, 1), Head()), torch.randn(2, *SHAPE)
    traced = trace(module, shape=SHAPE)
    assert [node.op for node in traced.graph.nodes].count("call_module") == (2 if n_axes == 2 else 1)
    assert torch.allclose(traced(x), module(x), atol=1e-6)


def test_an_exported_program_has_its_layers_at_the_paths_of_their_weights():
    module = network(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)), nn.ReLU(), nn.Conv2d(6, 4, 1))
    x = torch.randn(2, *SHAPE)
    program = torch.export.export(module.eval(), (x,)).module(check_guards=False)
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    exported = fx.GraphModule(program, graph)
    for node in exported.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    functions_to_modules(exported, SHAPE)
    paths = {name: type(one) for name, one in exported.named_modules() if isinstance(one, (nn.Conv2d, nn.BatchNorm2d))}
    assert paths == {"0.0": nn.Conv2d, "0.1": nn.BatchNorm2d, "2": nn.Conv2d}
    assert torch.allclose(exported(x)[0], module(x), atol=1e-6)


class OnOwnTensors(nn.Module):
    """Convolutions on parameters in lists and attributes; `d` is also a module."""

    def __init__(self, body):
        super().__init__()
        self.body, self.d = body, nn.Conv2d(4, 4, 3, padding=1)
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.several = nn.ParameterList(nn.Parameter(torch.randn(4, 4, 3, 3)) for _ in range(3))
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.randn(4)) for name in "pq"})
        self.plain, self.listed = torch.randn(4, 4, 3, 3), [nn.Parameter(torch.randn(4, 4, 1, 1)) for _ in range(2)]

    def forward(self, x):
        return self.body(self, x.repeat(1, 2, 1, 1)[:, :4])


def strides_and_dilations(net, x):
    x = F.conv2d(x, net.w, stride=1, padding=1).relu()
    return F.conv2d(F.conv2d(x, net.w, None, 2, 1), net.w, padding=2, dilation=2)


def biases(net, x):
    return F.conv2d(F.conv2d(x, net.w, net.biases["p"]), net.w, net.biases["q"])


def in_a_loop(net, x):
    for i, weight in enumerate(net.several):
        x = F.conv2d(x, weight, padding=i)
    return x


def held_plainly(net, x):
    for weight in [net.plain, *net.listed]:
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2).relu()
    return x


def beside_the_module(net, x):
    return F.conv2d(net.d(x), net.d.weight, net.d.bias, stride=2, padding=1) + net.d(x)[:, :, ::2, ::2]


def by_its_forward(net, x):
    return net.d.forward(x)


@pytest.mark.parametrize(("body", "kernels", "held"), [
    (strides_and_dilations, 3, None), (biases, 2, None), (in_a_loop, 3, None), (held_plainly, 3, None),
    (beside_the_module, 2, "d"), (by_its_forward, 1, "d"),
])  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_each_call_on_a_tensor_has_a_convolution_of_its_own(body, kernels, held, nested):
    torch.manual_seed(0)
    module, x = OnOwnTensors(body).eval(), torch.randn(2, *SHAPE)
    module = nn.Sequential(nn.Identity(), module) if nested else module
    traced = trace(module, shape=SHAPE)
    assert not any(node.op == "get_attr" for node in traced.graph.nodes)
    convolutions = [path for path, part in traced.named_modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == kernels and (held is None or ("1.d" if nested else "d") in convolutions)
    again = build_graph(describe_graph(traced), traced.state_dict())
    with torch.no_grad():
        assert torch.equal(traced(x), module(x)) and torch.equal(again(x), module(x))
    if body is by_its_forward:  # the class takes another module there
        assert traced.meta["exchanged"] == convolutions and traced.meta["forwards"][convolutions[0]] is not None
