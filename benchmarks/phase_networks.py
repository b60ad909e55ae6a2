"""Networks of the benchmark of time by phase that torchvision does not have, of their published shapes."""

import torch
from torch import nn
from torch.nn import functional as F

from decomp.data.zoo import inverted_residuals
from decomp.data.zoo_parts import initialised

POOL = "pool"

#: EfficientNet-B0 (Tan and Le 2019, table 1) as (expansion, kernel, channels, blocks, stride).
STAGES = (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)  # fmt: skip


def efficientnet_lite0():
    """EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation and with ReLU6."""
    network = inverted_residuals(STAGES, stem=32, head=1280)(1000, (3, 224, 224))
    network[0].stride = (2, 2)
    return network


class TextDetector(nn.Module):
    """A text detector on VGG-16 with batch normalisation, of the shape of CRAFT (Baek et al. 2019, figure 2).

    Five stages of the backbone, a dilated convolution behind them, four steps upwards that join the maps of the stages,
    and a head that gives two maps of a half of the image's size.
    """

    def __init__(self):
        super().__init__()
        stages = ((64, 64, POOL, 128, 128), (POOL, 256, 256), (256, POOL, 512, 512), (512, POOL, 512, 512))
        self.stages, n_in = nn.ModuleList(), 3
        for stage in stages:
            layers = []
            for width in stage:
                layers += [nn.MaxPool2d(2)] if width == POOL else _conv(n_in, width, 3)
                n_in = n_in if width == POOL else width
            self.stages.append(nn.Sequential(*layers))
        self.last = nn.Sequential(
            nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
        )
        steps = ((1024 + 512, 512, 256), (256 + 512, 256, 128), (128 + 256, 128, 64), (64 + 128, 64, 32))
        self.steps = nn.ModuleList(nn.Sequential(*_conv(a, b, 1), *_conv(b, c, 3)) for a, b, c in steps)
        self.head = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1),
        )  # fmt: skip

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.last(x)
        for number, (step, beside) in enumerate(zip(self.steps, reversed(maps))):
            if number:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = step(torch.cat([x, beside], 1))
        return self.head(x)


def _conv(n_in, n_out, kernel):
    return [nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2), nn.BatchNorm2d(n_out), nn.ReLU()]


def text_detector():
    """A new :class:`TextDetector`, whose maps keep their size from layer to layer."""
    return initialised(TextDetector())
