"""Networks by name: what is built, with which weights, and what a wrong name says."""

import subprocess
import sys
import types
import urllib.error

import pytest
import safetensors.torch
import torch
from torch import nn

from decomp.data import models, zoo
from decomp.data.models import load_model, parse_input_size
from decomp.data.weights import digest_state_dict
from decomp.errors import FileError, NumericalError, UsageError, WeightsError


class Small(nn.Module):
    def __init__(self, n_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, n_classes)

    def forward(self, x):
        return self.head(self.drop(self.conv(x).mean((2, 3))))


@pytest.fixture
def small_zoo(monkeypatch, tmp_path):
    """A zoo of two networks: one comes with weights, the other without."""
    torch.manual_seed(5)
    shipped = Small()
    safetensors.torch.save_file(shipped.state_dict(), tmp_path / "small.safetensors")

    def entry(weights):
        return types.SimpleNamespace(
            build=lambda n_classes, input_shape: Small(n_classes),
            input_shape=(1, 28, 28),
            n_classes=10,
            dataset="digits",
            weights=weights,
        )

    entries = {"small": entry(tmp_path / "small.safetensors"), "untrained": entry(None)}
    monkeypatch.setattr(zoo, "NETWORKS", entries)
    return shipped.eval()


@pytest.fixture
def here(monkeypatch, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_zoo_network_comes_with_its_shipped_weights(small_zoo):
    loaded = load_model("zoo:small")
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(loaded.module(x), small_zoo(x))  # equal twice over: dropout must be off
    assert loaded.input_shape == (1, 28, 28)
    assert loaded.weights_name == "shipped with zoo:small"
    assert loaded.weights_digest == digest_state_dict(small_zoo.state_dict())


def test_random_weights_are_asked_for_and_follow_the_seed_alone(small_zoo):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = load_model("zoo:untrained", weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)
    assert load_model("zoo:untrained", weights="random").weights_digest == first.weights_digest
    assert load_model("zoo:untrained", weights="random", seed=1).weights_digest != first.weights_digest
    with pytest.raises(UsageError, match="--weights random.*untrained"):
        load_model("zoo:untrained")


def test_weights_of_another_width_are_refused(small_zoo, tmp_path):
    safetensors.torch.save_file(Small(7).state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(WeightsError, match="head.weight is 7x4 where the model has 10x4"):
        load_model("zoo:small", weights=tmp_path / "seven.safetensors")
    seven = load_model("zoo:small", weights=str(tmp_path / "seven.safetensors"), n_classes=7)
    assert seven.module(torch.zeros(1, 1, 8, 8)).shape == (1, 7)
    assert seven.weights_name.endswith("seven.safetensors")


def test_every_entry_of_the_real_zoo_can_be_loaded():
    for name, entry in zoo.OWN.items():
        loaded = load_model(f"zoo:{name}", weights="random")
        assert loaded.input_shape == tuple(entry.input_shape)
        with torch.no_grad():
            assert loaded.module(torch.zeros(1, *loaded.input_shape)).shape == (1, entry.n_classes)
        assert not loaded.module.training


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("zoo:smal", "did you mean zoo:small"),
        ("zoo:zzzzzz", "known: small, untrained"),
        ("torchvision:resnet19", "torchvision:resnet18"),
        ("resnet18", "torchvision:resnet18"),
        ("small", "zoo:small"),
        ("qqqqqq", "write zoo:NAME"),
        ("zoo:", "write zoo:NAME"),
        ("a b:c d", "write zoo:NAME"),
    ],
)
def test_unknown_names_get_a_hint(small_zoo, name, hint):
    with pytest.raises(UsageError) as caught:
        load_model(name)
    assert name in str(caught.value) and hint in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_network_is_not_taken_for_a_name(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"x")
    with pytest.raises(UsageError, match="got a file of another kind; weights go to --weights FILE beside the network"):
        load_model(str(tmp_path / "net.pt"))


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("224", (None, 224, 224)),
        (224, (None, 224, 224)),
        ("28x32", (None, 28, 32)),
        ("3x224x192", (3, 224, 192)),
        ("3×8×9", (3, 8, 9)),
        ((28, 32), (None, 28, 32)),
        (torch.Size([1, 5, 6]), (1, 5, 6)),
    ],
)
def test_input_sizes(size, shape):
    assert parse_input_size(size) == shape


@pytest.mark.parametrize("size", ["", "x", "0", "-3", "3x0x5", "1x2x3x4", "big", "2.5", (), (1, 2, 3, 4)])
def test_input_sizes_that_cannot_be_meant(size):
    with pytest.raises(UsageError, match="--input-size"):
        parse_input_size(size)


def test_channels_come_from_the_first_convolution(small_zoo, here):
    assert load_model("zoo:small", input_size="16x12").input_shape == (1, 16, 12)
    with pytest.raises(UsageError, match="first convolution takes 1 channels, got --input-size 3x16x16"):
        load_model("zoo:small", input_size="3x16x16")
    (here / "flat.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))"
    )
    with pytest.raises(UsageError, match="--input-size Cx8x8"):
        load_model("flat.py:make", input_size="8")
    assert load_model("flat.py:make", input_size="1x8x8").input_shape == (1, 8, 8)
    assert load_model("flat.py:make").input_shape is None


def test_torchvision_needs_weights_said(tmp_path):
    with pytest.raises(UsageError, match="--weights FILE, --weights DEFAULT .*--weights random"):
        load_model("torchvision:squeezenet1_1")
    loaded = load_model("torchvision:squeezenet1_1", weights="random")
    assert (loaded.input_shape, loaded.weights_name) == ((3, 224, 224), "random")
    torch.save({"state_dict": loaded.module.state_dict()}, tmp_path / "w.pth")
    again = load_model("torchvision:squeezenet1_1", weights=tmp_path / "w.pth")
    assert again.weights_digest == loaded.weights_digest
    with pytest.raises(FileError, match="no such weights file"):
        load_model("torchvision:squeezenet1_1", weights="DEFALT")


def test_torchvision_input_shape_is_that_of_its_own_weights():
    name = "torchvision:mobilenet_v3_small"
    assert load_model(name, weights="random", n_classes=5).module.classifier[-1].out_features == 5
    # Inception was evaluated at 342 resized, 299 cropped
    from torchvision.models import get_model_weights

    assert models._crop_size(get_model_weights("inception_v3").DEFAULT) == (299, 299)


@pytest.mark.parametrize("weights", ["DEFAULT", "default", "IMAGENET1K_V1"])
def test_torchvision_without_a_network_is_one_line(monkeypatch, tmp_path, weights):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        FileError, match="cannot be downloaded, got .*Name or service not known.*--weights FILE"
    ) as caught:
        load_model("torchvision:squeezenet1_1", weights=weights)
    assert "\n" not in str(caught.value)


def test_torchvision_own_weights_have_their_own_number_of_classes():
    with pytest.raises(UsageError, match="for 1000 classes, got 10"):
        load_model("torchvision:squeezenet1_1", weights="DEFAULT", n_classes=10)


def test_timm_absent_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm is not installed; pip install 'decomp\[timm\]'"):
        load_model("timm:resnet18", weights="random")


def test_timm_networks_are_created_through_timm(monkeypatch, tmp_path):
    made = []

    def create_model(name, pretrained, num_classes=3):
        made.append((name, pretrained))
        if pretrained:
            raise urllib.error.URLError("no route")
        module = Small(num_classes)
        module.pretrained_cfg = {"input_size": (1, 96, 96)}
        return module

    fake = types.SimpleNamespace(create_model=create_model, list_models=lambda: ["tiny_net", "big_net"])
    monkeypatch.setitem(sys.modules, "timm", fake)
    loaded = load_model("timm:tiny_net", weights="random", n_classes=4)
    assert loaded.input_shape == (1, 96, 96) and loaded.module.head.out_features == 4
    with pytest.raises(UsageError, match="timm:tiny_net"):
        load_model("timm:tinynet", weights="random")
    with pytest.raises(UsageError, match="--weights DEFAULT"):
        load_model("timm:tiny_net")
    with pytest.raises(FileError, match="no route"):
        load_model("timm:tiny_net", weights="DEFAULT")
    assert made == [("tiny_net", False), ("tiny_net", True)]


def test_a_factory_gives_a_network_in_single_precision_and_evaluation_mode(here):
    (here / "mine.py").write_text(
        "from torch import nn\ndef make(): return nn.Conv2d(3, 6, 1).double()\ndef wrong(): return 3"
    )
    with torch.random.fork_rng():
        loaded = load_model("mine.py:make")
    assert loaded.module.weight.dtype == torch.float32 and not loaded.module.training
    assert load_model("mine.py:make", input_size="5").input_shape == (3, 5, 5)
    torch.manual_seed(7)
    assert load_model("mine.py:make").weights_digest == loaded.weights_digest
    with pytest.raises(UsageError, match="must return a torch.nn.Module, got a whole number"):
        load_model("mine.py:wrong")


def test_a_network_or_an_exported_program_may_have_the_name_itself(here):
    (here / "mine.py").write_text(
        "import torch\nnet = torch.nn.DataParallel(torch.nn.Conv2d(3, 6, 1))\n"
        "program = torch.export.export(net.module.eval(), (torch.zeros(2, 3, 5, 5),))"
    )
    loaded, program = load_model("mine.py:net", seed=3), load_model("mine.py:program", seed=3)
    assert type(loaded.module) is torch.nn.Conv2d and not loaded.module.training
    assert load_model("mine.py:net", seed=3).weights_digest == loaded.weights_digest
    x = torch.randn(2, 3, 5, 5)
    assert torch.allclose(program.module(x), loaded.module(x))


def test_nan_in_a_factorys_weights_is_named(here):
    (here / "bad.py").write_text(
        "import torch\ndef make():\n    m = torch.nn.Conv2d(1, 1, 1)\n    m.bias.data.fill_(float('nan'))\n    return m"
    )
    with pytest.raises(NumericalError, match="bad.py:make: bias holds NaN or Inf"):
        load_model("bad.py:make")


def test_importing_models_does_not_import_torchvision_or_timm():
    code = "import decomp.data.models, sys; print([m for m in ('torchvision', 'timm') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_file_without_a_function_is_told_its_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("def small(): ...\ndef large(width=8): ...\n")
    with pytest.raises(UsageError, match="write nets.py:small or nets.py:large"):
        load_model("nets.py")


def test_what_is_known_of_the_input_of_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))\n"
    )
    own = load_model("own.py:build").takes()
    assert (own.shape, own.channels, own.own) == (None, 2, None)
    assert own.runs_on((2, 4, 4)) and not own.runs_on((2, 5, 4)) and not own.runs_on((3, 4, 4))
    zoo = load_model("zoo:vgg-digits").takes()
    assert (zoo.shape, zoo.fixed, zoo.channels, zoo.own.mean) == ((1, 8, 8), True, 1, (0.3052,))
    library = load_model("torchvision:resnet18", weights="random").takes()
    assert (library.shape, library.fixed, library.own) == ((3, 224, 224), False, None)
    assert load_model("torchvision:resnet18", weights="random", input_size=64).takes().fixed


def test_a_factory_may_wrap_its_network_and_the_choice_of_weights_is_told(here):
    (here / "mine.py").write_text(
        "from torch import nn\ndef make(): return nn.DataParallel(nn.Sequential(nn.Conv2d(3, 6, 1)).half())"
    )
    ones, twos = ({"0.weight": torch.full((6, 3, 1, 1), v), "0.bias": torch.full((6,), v)} for v in (1.001, 2.0))
    torch.save({"net": {f"module.{k}": v for k, v in ones.items()}, "ema": twos}, here / "w.pt")
    loaded = load_model("mine.py:make", weights="w.pt")
    assert type(loaded.module) is nn.Sequential and loaded.dtype == torch.float16
    assert torch.equal(loaded.module[0].weight, ones["0.weight"])  # not rounded to half precision
    assert loaded.note == "w.pt: took net, which others fit as well as: --weights w.pt:ema"
    other = load_model("mine.py:make", weights="w.pt:ema")
    assert torch.equal(other.module[0].bias, twos["0.bias"]) and (other.note, other.weights_name) == ("", "w.pt:ema")
    assert load_model("zoo:vgg-digits").dtype == torch.float32
