"""The zoo: what the names promise, that torch.fx follows every network, and the shipped weights."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import fx, nn

from decomp.data import zoo
from decomp.data.standard import DEBIAN_FASHION
from decomp.errors import UsageError

HAS_FASHION = (DEBIAN_FASHION / "train-images-idx3-ubyte.gz").exists()
SHIPPED = (
    "vgg-fashion", "resnet20-fashion", "mobilenet-fashion", "efficientnet-lite-fashion", "vgg-digits",
    "vgg-digits-large",
)  # fmt: skip
GOALS = {
    "vgg-fashion": 0.93, "resnet20-fashion": 0.925, "mobilenet-fashion": 0.914, "efficientnet-lite-fashion": 0.92,
    "vgg-digits": 0.97, "vgg-digits-large": 0.97,
}  # fmt: skip


def macs_of(module, input_shape):
    """Multiply-accumulates of convolutions and linear layers, from the shapes that arrive."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        per_output = layer.weight[0].numel()
        total += output.numel() * per_output

    hooks = [
        layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    module.eval()(torch.zeros(1, *input_shape))
    for hook in hooks:
        hook.remove()
    return total


def parameters_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", zoo.OWN)
def test_fx_follows_every_network_down_to_plain_torch_modules(name):
    entry = zoo.NETWORKS[name]
    module = zoo.build(name).eval()
    traced = fx.symbolic_trace(module)
    images = torch.randn(3, *entry.input_shape)
    assert torch.equal(traced(images), module(images))
    called = [traced.get_submodule(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert {type(layer).__module__.split(".")[:2] == ["torch", "nn"] for layer in called} == {True}


@pytest.mark.parametrize("name", zoo.OWN)
def test_every_network_can_be_built_for_other_classes_and_shapes(name):
    module = zoo.build(name, n_classes=7, input_shape=(3, 32, 40)).eval()
    images = torch.randn(2, 3, 32, 40)
    assert module(images).shape == (2, 7)
    # Every image decides its own logits and nothing else.
    changed = images.clone()
    changed[1] += 1
    assert torch.allclose(module(changed)[0], module(images)[0], atol=1e-5)
    assert not torch.allclose(module(changed)[1], module(images)[1])


@pytest.mark.parametrize("name", zoo.OWN)
def test_every_parameter_of_a_fresh_network_learns(name):
    module = zoo.build(name).train()
    entry = zoo.NETWORKS[name]
    nn.functional.cross_entropy(module(torch.randn(8, *entry.input_shape)), torch.arange(8)).backward()
    for path, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, path


def test_sizes_are_those_the_names_stand_for():
    # VGG: three blocks of 3x3 convolutions at 28, 14 and 7 pixels, and one linear layer.
    blocks = [(28, 1, 32), (28, 32, 32), (14, 32, 64), (14, 64, 64), (7, 64, 128), (7, 128, 128), (7, 128, 128)]
    expected = sum(size**2 * 9 * c * n for size, c, n in blocks) + 128 * 3 * 3 * 10
    assert macs_of(zoo.build("vgg-fashion"), (1, 28, 28)) == expected
    assert 36e6 < expected < 37e6
    assert parameters_of(zoo.build("vgg-fashion")) < 1.1e6
    # ResNet-20 as published for CIFAR has 0.27 M parameters and 19 convolutions beside its projections.
    resnet = zoo.build("resnet20-fashion")
    assert 0.26e6 < parameters_of(resnet) < 0.28e6
    assert sum(isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) for layer in resnet.modules()) == 19
    assert [tuple(layer.weight.shape) for layer in zoo.build("mlp-fashion") if isinstance(layer, nn.Linear)] == [
        (200, 784),
        (200, 200),
        (10, 200),
    ]
    # The convolutions of VGG-16 with an eighth of the channels, and two hidden layers.
    tasks = zoo.build("vgg-tasks")
    assert [8 * layer.out_channels for layer in tasks if isinstance(layer, nn.Conv2d)] == [
        64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512,
    ]  # fmt: skip
    assert [layer.out_features for layer in tasks if isinstance(layer, nn.Linear)] == [128, 128, 10]
    convnet = zoo.build("convnet-fashion")
    assert convnet[-1].in_features == 3136
    assert [layer.out_channels for layer in convnet if isinstance(layer, nn.Conv2d)] == [32, 64, 64]


def test_the_kinds_of_networks_have_what_makes_them_of_that_kind():
    mobilenet = zoo.build("mobilenet-fashion")
    assert sum(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in mobilenet.modules()) == 8
    efficient = zoo.build("efficientnet-lite-fashion")
    depthwise = [m for m in efficient.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    assert [m.kernel_size[0] for m in depthwise] == [3, 3, 3, 5, 5, 3, 3, 5, 5, 5, 5, 3]
    assert {type(m) for m in efficient.modules() if "ReLU" in type(m).__name__} == {nn.ReLU6}
    assert not any(isinstance(m, nn.Sigmoid) for m in efficient.modules())  # no squeeze-and-excitation
    assert 0.3e6 < parameters_of(efficient) < 0.6e6
    densenet = fx.symbolic_trace(zoo.build("densenet-fashion"))
    assert sum(node.target is torch.cat for node in densenet.graph.nodes) == 12


def test_mistakes_are_told_in_one_line():
    with pytest.raises(UsageError, match="one of vgg-fashion, .*, got vgg"):
        zoo.build("vgg")
    with pytest.raises(UsageError, match="too small|large enough.*4x4"):
        zoo.build("vgg-fashion", input_shape=(1, 4, 4))
    with pytest.raises(UsageError, match="channels, height, width"):
        zoo.build("vgg-fashion", input_shape=(28, 28))


def test_a_network_is_trained_in_its_own_size_on_its_own_images_and_else_in_theirs():
    assert zoo.shape_for("vgg-digits-large", "digits", (1, 8, 8)) == (1, 32, 32)
    assert zoo.shape_for("vgg-digits-large", "mnist", (1, 28, 28)) == (1, 28, 28)
    assert zoo.shape_for("vgg-digits", "fashion-mnist", (1, 28, 28)) == (1, 28, 28)


@pytest.mark.parametrize("name", zoo.OWN)
def test_only_the_networks_that_say_so_come_with_weights(name):
    assert (zoo.NETWORKS[name].weights is not None) == (name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_fit_and_their_record_is_theirs(name):
    path = zoo.NETWORKS[name].weights
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["accuracy"]["test"] >= GOALS[name]
    assert f"--model zoo:{name}" in record["command"]
    module = zoo.build(name)
    state = load_file(path)
    module.load_state_dict(state)
    assert {value.dtype for key, value in state.items() if "num_batches" not in key} == {torch.float32}
    assert record["parameters"] == parameters_of(module)
    # The recipe that a person gets by default is the one the weights were made with.
    assert {key: record["options"][key] for key in zoo.NETWORKS[name].recipe} == dict(zoo.NETWORKS[name].recipe)


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in zoo.WEIGHTS_DIR.iterdir()) <= 6 * 2**20


@pytest.mark.parametrize("name", ["vgg-digits", "vgg-digits-large"])
def test_the_shipped_digits_networks_measure_what_their_records_say(name):
    from decomp.data.sources import open_source

    source = open_source("digits", input_shape=zoo.NETWORKS[name].input_shape)
    module = zoo.build(name).eval()
    path = zoo.NETWORKS[name].weights
    module.load_state_dict(load_file(path))
    indices = torch.arange(len(source.test))
    with torch.no_grad():
        predicted = module(source.test.images(indices)).argmax(1)
    measured = (predicted == source.test.labels(indices)).float().mean().item()
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert measured == pytest.approx(record["accuracy"]["test"], abs=1.5 / len(indices))


@pytest.mark.fashion
@pytest.mark.skipif(not HAS_FASHION, reason="the images of Debian's package dataset-fashion-mnist are not installed")
@pytest.mark.parametrize("name", [name for name in SHIPPED if name.endswith("-fashion")])
def test_the_shipped_fashion_networks_measure_what_their_records_say(name):
    from decomp.data.sources import open_source

    source = open_source("fashion-mnist")
    module = zoo.build(name).eval()
    path = zoo.NETWORKS[name].weights
    module.load_state_dict(load_file(path))
    # A fifth of the test images, to stay within seconds: three standard errors around the recorded accuracy.
    indices = torch.arange(2000)
    with torch.no_grad():
        predicted = torch.cat([module(images).argmax(1) for images, _ in source.test.batches(indices, 250)])
    measured = (predicted == source.test.labels(indices)).float().mean().item()
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["accuracy"]["test"]
    assert abs(measured - expected) < 3 * (expected * (1 - expected) / len(indices)) ** 0.5


@pytest.mark.parametrize("name", ["c3-32", "c3-32-dropout"])
def test_every_layer_of_the_three_convolutions_contributes_to_the_output(name):
    module = zoo.build(name, input_shape=(3, 32, 32))
    module(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert [part.weight.flatten(1).shape for part in convolutions] == [(32, 27), (32, 288), (32, 288)]
    assert [type(part).__name__ for part in module][-2:] == ["Dropout", "Linear"] and module[-1].in_features == 512
