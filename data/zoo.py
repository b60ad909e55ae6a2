"""Model zoo: small networks of common architectures, some with trained weights.

Every network is built of plain ``torch.nn`` modules, so that ``torch.fx`` can follow its forward pass without custom
leaves, and every one can be built for another number of classes or another input shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from decomp.errors import UsageError

from .transforms import Shape
from .zoo_parts import POOL, Build, DenseLayer, InvertedResidual, ResidualBlock, check_size, initialised, vgg
from .zoo_published import PUBLISHED, mlp_bn, preresnet

WEIGHTS_DIR = Path(__file__).resolve().parent / "zoo"


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


def shape_for(name: str, dataset: str, images: Shape) -> Shape:
    """Shape ``(C, H, W)`` in which a network is trained: that of the images, or its own for its own images.

    Parameters
    ----------
    name : str
        A key of :data:`NETWORKS`.
    dataset : str
        Name of the image source.
    images : tuple of int
        Shape of its images.

    Raises
    ------
    UsageError
        The name is unknown.
    """
    entry = find(name)
    return entry.input_shape if entry.dataset == dataset else images


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
    return vgg((width, POOL, width, POOL, width, POOL), name, dropout)


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
    return initialised(nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Dropout(0.5), nn.Linear(128, n_classes)))


def _resnet20(n_classes: int, input_shape: Shape) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            layers.append(ResidualBlock(channels, width, stride if block == 0 else 1))
            channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)]
    return initialised(nn.Sequential(*layers))


def inverted_residuals(stages: Sequence[tuple[int, int, int, int, int]], stem: int, head: int) -> Build:
    """A 3x3 convolution, stages of inverted residuals, a 1x1 convolution and a linear layer.

    Parameters
    ----------
    stages : sequence of tuple
        ``(expansion, kernel, channels, blocks, stride of the first block)``.
    stem, head : int
        Filters of the first and of the last convolution.
    """

    def build(n_classes: int, input_shape: Shape) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(input_shape[0], stem, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(stem), nn.ReLU6()]
        channels = stem
        for expansion, kernel, width, blocks, stride in stages:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, width, stride if block == 0 else 1, expansion, kernel))
                channels = width
        layers += [nn.Conv2d(channels, head, 1, bias=False), nn.BatchNorm2d(head), nn.ReLU6()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, n_classes)]
        return initialised(nn.Sequential(*layers))

    return build


#: MobileNetV2 (Sandler et al. 2018, table 2) for small images: fewer stages, and an expansion of 4.
_MOBILENET = inverted_residuals(
    ((1, 3, 16, 1, 1), (4, 3, 24, 2, 2), (4, 3, 40, 3, 2), (4, 3, 64, 2, 1)), stem=16, head=192
)
#: EfficientNet (Tan and Le 2019, table 1) as its Lite version has it, without squeeze-and-excitation and with ReLU6:
#: kernels of 3x3 and 5x5 pixels in turn. Smaller throughout, for small images.
_EFFICIENTNET_LITE = inverted_residuals(
    (
        (1, 3, 16, 1, 1), (4, 3, 24, 2, 2), (4, 5, 32, 2, 1), (4, 3, 48, 2, 2), (4, 5, 64, 2, 1), (4, 5, 80, 2, 1),
        (4, 3, 96, 1, 1),
    ),
    stem=16,
    head=256,
)  # fmt: skip


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
    check_size("densenet-fashion", input_shape, height, width)
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers.append(nn.Linear(channels, n_classes))
    return initialised(nn.Sequential(*layers))


def _mlp(n_classes: int, input_shape: Shape) -> nn.Module:
    channels, height, width = input_shape
    hidden = [nn.Linear(channels * height * width, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(200, n_classes))


def _convnet(n_classes: int, input_shape: Shape) -> nn.Module:
    channels, height, width = input_shape
    check_size("convnet-fashion", input_shape, height // 4, width // 4)
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


def _entries() -> dict[str, ZooEntry]:
    fashion: dict[str, Any] = {"input_shape": (1, 28, 28), "n_classes": 10, "dataset": "fashion-mnist"}
    widths: tuple[int | str, ...] = (32, 32, POOL, 64, 64, POOL, 128, 128, 128, POOL)
    plain = {"epochs": 15, "learning_rate": 0.05}
    compact = {"epochs": 30, "learning_rate": 0.2, "batch_size": 256}
    slimming = {"epochs": 15, "learning_rate": 0.1, "batch_size": 64, "schedule": "milestones"}
    # Of the published RePr trainings: a rate that is still high when filters come back late.
    steady = {"epochs": 100, "learning_rate": 0.01, "schedule": "constant", "warmup_epochs": 0}
    entries = {
        "vgg-fashion": ZooEntry(
            vgg(widths, "vgg-fashion", 0.25), **fashion, recipe={"epochs": 18, "learning_rate": 0.1}
        ),
        "resnet20-fashion": ZooEntry(_resnet20, **fashion, recipe={"epochs": 16, "learning_rate": 0.1}),
        "mobilenet-fashion": ZooEntry(_MOBILENET, **fashion, recipe=compact),
        "efficientnet-lite-fashion": ZooEntry(_EFFICIENTNET_LITE, **fashion, recipe=compact),
        "densenet-fashion": ZooEntry(_densenet, **fashion, recipe={"epochs": 15, "learning_rate": 0.1}),
        "mlp-fashion": ZooEntry(_mlp, **fashion, recipe=plain),
        "convnet-fashion": ZooEntry(_convnet, **fashion, recipe=plain),
        "c3-32": ZooEntry(three_convolutions(32, 0.0, "c3-32"), **fashion, recipe=steady),
        "c3-32-dropout": ZooEntry(three_convolutions(32, 0.5, "c3-32-dropout"), **fashion, recipe=steady),
        "vgg-tasks": ZooEntry(_vgg_tasks, **fashion, recipe=plain),
        "vgg-bn": ZooEntry(vgg((32, 32, POOL, 64, 64, POOL, 64, 64, POOL), "vgg-bn", 0.0), **fashion, recipe=slimming),
        "preresnet20-fashion": ZooEntry(preresnet(2, "preresnet20-fashion"), **fashion, recipe=slimming),
        "mlp-bn": ZooEntry(mlp_bn, **fashion, recipe=slimming),
        "vgg-digits": ZooEntry(
            vgg((32, 32, POOL, 64, 64, POOL), "vgg-digits", 0.25),
            input_shape=(1, 8, 8),
            n_classes=10,
            dataset="digits",
            recipe={"epochs": 40, "learning_rate": 0.05, "batch_size": 64},
        ),
        # Of the demo: the digits enlarged, so that most of its time is spent on arithmetic.
        "vgg-digits-large": ZooEntry(
            vgg((64, 64, POOL, 64, 64, POOL, POOL), "vgg-digits-large", 0.25),
            input_shape=(1, 32, 32),
            n_classes=10,
            dataset="digits",
            recipe={"epochs": 10, "learning_rate": 0.02, "batch_size": 16},
        ),
    }
    return {name: ZooEntry(**{**vars(entry), "name": name}) for name, entry in entries.items()}


def _published() -> dict[str, ZooEntry]:
    # The training of network slimming on CIFAR-10 (Liu et al. 2017, section 4.2).
    cifar: dict[str, Any] = {"input_shape": (3, 32, 32), "n_classes": 10, "dataset": "cifar10"}
    recipe = {"epochs": 160, "learning_rate": 0.1, "batch_size": 64, "schedule": "milestones", "weight_decay": 1e-4}
    return {name: ZooEntry(build, **cifar, recipe=recipe, name=name) for name, build in PUBLISHED.items()}


#: The zoo's own networks, for small images.
OWN = _entries()
#: Every network of the zoo by name (``zoo:NAME`` on the command line).
NETWORKS = {**OWN, **_published()}
