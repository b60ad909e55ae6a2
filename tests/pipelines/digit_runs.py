"""Small networks of several kinds, frozen on scikit-learn's digits, for the tests of decomposition and later stages."""

import json

import torch
from torch import nn

from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.freeze import freeze

SHAPE = (1, 8, 8)


class Collected(Reporter):
    """A reporter that collects its lines."""

    def __init__(self):
        super().__init__(quiet=True)
        self.messages = []

    def step(self, message, **fields):
        self.messages.append(message)

    def detail(self, message, **fields):
        self.messages.append(message)

    def warn(self, message, **fields):
        self.messages.append(message)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.conv2, self.shortcut = nn.Conv2d(12, 8, 3, padding=1), nn.Identity()
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


def plain():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
        nn.Conv2d(12, 16, (3, 2), stride=(1, 2), padding=(1, 0)), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding="same", dilation=2),
        nn.PReLU(16), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 4 * 2, 10),
    )  # fmt: skip


class Inverted(nn.Module):
    """Two inverted residuals behind a stem; the second is added to its input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
                nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
                nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.blocks[0](torch.relu(self.stem(x)))
        return self.head((x + self.blocks[1](x)).mean((2, 3)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8 + 8 * i, 8, 3, padding=1) for i in range(3))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for conv in self.convs:
            x = torch.cat([x, torch.relu(conv(x))], 1)
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """A bottleneck with a convolution of four groups in the middle."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.conv2, self.conv3 = nn.Conv2d(12, 12, 3, padding=1, groups=4), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return self.head(torch.relu(x).mean((2, 3)))


class Mirrored(nn.Module):
    """One encoder on every image and its mirror image, and a layer at two sizes."""

    def __init__(self):
        super().__init__()
        self.encoder, self.level = Encoder(), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.encoder(x) - self.encoder(x.flip(3))
        parts = [torch.relu(self.level(part)).mean((2, 3)) for part in (x, nn.functional.avg_pool2d(x, 2))]
        return self.head(torch.cat(parts, 1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.conv1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3)
        self.conv2, self.relu = nn.Conv2d(12, 8, 3, padding=2), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        return self.relu(self.conv2(self.relu(self.conv1(x))) + x)


class Upward(nn.Module):
    """Down by a stride and up again by transposed convolutions, one of them beside a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up, self.norm = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.hidden, self.again = nn.ConvTranspose2d(8, 12, 3, padding=1), nn.ConvTranspose2d(12, 10, 2, stride=2)
        self.head = nn.Linear(10, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.up(torch.relu(self.down(x)))) + x)
        return self.head(torch.relu(self.again(torch.relu(self.hidden(x)))).mean((2, 3)))


class Basic(nn.Module):
    """Two convolutions with normalisations, added in place to the input or its projection, and a ReLU in place."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)
        self.relu, self.projection = nn.ReLU(inplace=True), None
        if stride > 1 or n_in != n_out:
            self.projection = nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.projection is None else self.projection(x)
        return self.relu(out)


class Blocks(nn.Module):
    """Three residual blocks, the last one behind a projection of its input."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.a, self.b, self.c = Basic(8, 8), Basic(8, 8), Basic(8, 12, 2)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(self.relu(self.stem(x))))).mean((2, 3)))


NETWORKS = {
    "plain": plain, "residual": Residual, "inverted": Inverted, "dense": Dense, "grouped": Grouped,
    "mirrored": Mirrored, "upward": Upward, "blocks": Blocks,
}  # fmt: skip


def planned(run, **options):
    """plan.json of a run for a speed-up of 2, or with other options."""
    decompose(run, **{"speedup": 2, "plan_only": True, "reporter": Collected(), **options})
    return json.loads(run.plan_json.read_text())


def layer_of(plan, name):
    return next(layer for layer in plan["layers"] if layer["layer"] == name)


def bytes_of(run):
    """Content of all weight files of a run, by their path in it."""
    return {p.relative_to(run.path): p.read_bytes() for p in sorted(run.path.rglob("*.safetensors"))}


def make_run(path, name="plain", **options):
    freeze(path, model=name, data="digits", n_images=options.pop("n_images", 400), reporter=Collected(), **options)
    return RunDirectory.open(path)
