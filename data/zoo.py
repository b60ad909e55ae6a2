"""Model zoo: small networks of common architectures, some with trained weights.

Every network is built of plain ``torch.nn`` modules, so that ``torch.fx`` can follow its forward pass without custom
leaves, and every one can be built for another number of classes or another input shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decomp.errors import UsageError

from .transforms import Shape

WEIGHTS_DIR = Path(__file__).resolve().parent / "zoo"
POOL = "pool"

#: ``build(n_classes, input_shape)``: a new network.
Build = Callable[[int, Shape], nn.Module]


@dataclass(frozen=True)
class ZooEntry:
    """One network of the zoo.

    Parameters
    ----------
    build : callable
        ``build(n_classes, input_shape)`` with ``input_shape = (C, H, W)`` returns a newly initialised module that
        maps float32 ``(m, C, H, W)`` to logits ``(m, n_classes)``. The initial weights come from torch's generator.
    input_shape : tuple of int
        Default shape ``(C, H, W)`` of the images.
    n_classes : int
        Default number of classes.
    dataset : str
        Name of the image source that the network is trained on, for :func:`decomp.data.sources.open_source`.
    recipe : mapping
        Default options of ``train``: epochs, learning rate and so on.
    name : str
        Key in :data:`NETWORKS`.
    """

    build: Build
    input_shape: Shape
    n_classes: int
    dataset: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def weights(self) -> Path | None:
        """File of the shipped weights (safetensors); None where there are none."""
        path = WEIGHTS_DIR / f"{self.name}.safetensors"
        return path if path.exists() else None


def build(name: str, n_classes: int | None = None, input_shape: Sequence[int] | None = None) -> nn.Module:
    """Build a network of the zoo with new random weights.

    Parameters
    ----------
    name : str
        A key of :data:`NETWORKS`.
    n_classes : int, optional
        Number of outputs. Default: that of the entry.
    input_shape : tuple of int, optional
        ``(C, H, W)``. Default: that of the entry.

    Returns
    -------
    torch.nn.Module
        In training mode, float32.

    Raises
    ------
    UsageError
        The name is unknown, or the images are too small for the network's poolings.
    """
    entry = find(name)
    n_classes = entry.n_classes if n_classes is None else int(n_classes)
    sizes = entry.input_shape if input_shape is None else tuple(int(size) for size in input_shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise UsageError(f"zoo:{name}", "the input shape must be (channels, height, width)", got=sizes)
    module = entry.build(n_classes, sizes)
    # So that its outputs are known to be class scores.
    object.__setattr__(module, "num_classes", n_classes)
    return module


def find(name: str) -> ZooEntry:
    """Return the entry called `name`.

    Raises
    ------
    UsageError
        There is none; lists the known names.
    """
    if name not in NETWORKS:
        raise UsageError("zoo", "the network must be one of " + ", ".join(NETWORKS), got=name)
    return NETWORKS[name]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, CIFAR form with a 1x1 projection where shapes change)."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        if stride == 1 and n_in == n_out:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 (Sandler et al. 2018), beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int):
        super().__init__()
        hidden = n_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(n_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class DenseLayer(nn.Module):
    """BN, ReLU, 3x3 convolution; its new channels are appended to the input's (Huang et al. 2017)."""

    def __init__(self, n_in: int, growth: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(n_in)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(n_in, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], 1)


def _vgg(widths: Sequence[int | str], name: str, dropout: float) -> Build:
    def build(n_classes: int, input_shape: Shape) -> nn.Module:
        channels, height, width = input_shape
        layers: list[nn.Module] = []
        for item in widths:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            else:
                layers += [nn.Conv2d(channels, item, 3, padding=1, bias=False), nn.BatchNorm2d(item), nn.ReLU()]
                channels = item
        _check_size(name, input_shape, height, width)
        layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * height * width, n_classes)]
        return _initialised(nn.Sequential(*layers))

    return build


def three_convolutions(width: int, dropout: float, name: str) -> Build:
    """Three times convolution, normalisation, ReLU and pooling, all of one width, then a linear layer.

    Parameters
    ----------
    width : int
        Filters of each convolution.
    dropout : float
        Before the linear layer.
    name : str
        For messages.
    """
    return _vgg((width, POOL, width, POOL, width, POOL), name, dropout)


def _vgg_tasks(n_classes: int, input_shape: Shape) -> nn.Module:
    """VGG-16 with an eighth of the channels; it pools where the map has two pixels or more in each direction."""
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for size, count in ((8, 2), (16, 2), (32, 3), (64, 3), (64, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, size, 3, padding=1, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
            channels = size
        if min(height, width) > 1:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    hidden = [nn.Linear(channels * height * width, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 128), nn.ReLU()]
    return _initialised(nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Dropout(0.5), nn.Linear(128, n_classes)))


def _resnet20(n_classes: int, input_shape: Shape) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            layers.append(ResidualBlock(channels, width, stride if block == 0 else 1))
            channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)]
    return _initialised(nn.Sequential(*layers))


def _mobilenet(n_classes: int, input_shape: Shape) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    channels = 16
    for expansion, width, repeats, stride in ((1, 16, 1, 1), (4, 24, 2, 2), (4, 40, 3, 2), (4, 64, 2, 1)):
        for block in range(repeats):
            layers.append(InvertedResidual(channels, width, stride if block == 0 else 1, expansion))
            channels = width
    layers += [nn.Conv2d(channels, 192, 1, bias=False), nn.BatchNorm2d(192), nn.ReLU6()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, n_classes)]
    return _initialised(nn.Sequential(*layers))


def _densenet(n_classes: int, input_shape: Shape) -> nn.Module:
    growth, channels = 12, 24
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)]
    height, width = input_shape[1:]
    for block in range(3):
        for _ in range(4):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        if block < 2:
            narrowed = channels // 2
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, narrowed, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels, height, width = narrowed, height // 2, width // 2
    _check_size("densenet-fashion", input_shape, height, width)
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers.append(nn.Linear(channels, n_classes))
    return _initialised(nn.Sequential(*layers))


def _mlp(n_classes: int, input_shape: Shape) -> nn.Module:
    channels, height, width = input_shape
    hidden = [nn.Linear(channels * height * width, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(200, n_classes))


def _convnet(n_classes: int, input_shape: Shape) -> nn.Module:
    channels, height, width = input_shape
    _check_size("convnet-fashion", input_shape, height // 4, width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), n_classes),
    )


def _check_size(name: str, input_shape: Shape, height: int, width: int) -> None:
    if min(height, width) < 1:
        raise UsageError(
            f"zoo:{name}",
            "the images must be large enough for its poolings",
            got=f"{input_shape[1]}x{input_shape[2]} pixels",
            fix="give larger images or another network",
        )


def _initialised(module: nn.Module) -> nn.Module:
    # He et al. 2015 for convolutions followed by ReLU; everything else starts as torch starts it.
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module


def _entries() -> dict[str, ZooEntry]:
    fashion: dict[str, Any] = {"input_shape": (1, 28, 28), "n_classes": 10, "dataset": "fashion-mnist"}
    vgg: tuple[int | str, ...] = (32, 32, POOL, 64, 64, POOL, 128, 128, 128, POOL)
    plain = {"epochs": 15, "learning_rate": 0.05}
    # Of the published RePr trainings: a rate that is still high when filters come back late.
    steady = {"epochs": 100, "learning_rate": 0.01, "schedule": "constant", "warmup_epochs": 0}
    entries = {
        "vgg-fashion": ZooEntry(_vgg(vgg, "vgg-fashion", 0.25), **fashion, recipe={"epochs": 18, "learning_rate": 0.1}),
        "resnet20-fashion": ZooEntry(_resnet20, **fashion, recipe={"epochs": 16, "learning_rate": 0.1}),
        "mobilenet-fashion": ZooEntry(_mobilenet, **fashion, recipe=plain),
        "densenet-fashion": ZooEntry(_densenet, **fashion, recipe={"epochs": 15, "learning_rate": 0.1}),
        "mlp-fashion": ZooEntry(_mlp, **fashion, recipe=plain),
        "convnet-fashion": ZooEntry(_convnet, **fashion, recipe=plain),
        "c3-32": ZooEntry(three_convolutions(32, 0.0, "c3-32"), **fashion, recipe=steady),
        "c3-32-dropout": ZooEntry(three_convolutions(32, 0.5, "c3-32-dropout"), **fashion, recipe=steady),
        "vgg-tasks": ZooEntry(_vgg_tasks, **fashion, recipe=plain),
        "vgg-digits": ZooEntry(
            _vgg((32, 32, POOL, 64, 64, POOL), "vgg-digits", 0.25),
            input_shape=(1, 8, 8),
            n_classes=10,
            dataset="digits",
            recipe={"epochs": 40, "learning_rate": 0.05, "batch_size": 64},
        ),
    }
    return {name: ZooEntry(**{**vars(entry), "name": name}) for name, entry in entries.items()}


#: Every network of the zoo by name (``zoo:NAME`` on the command line).
NETWORKS = _entries()
