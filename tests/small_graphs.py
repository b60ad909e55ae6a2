"""Twelve small networks whose graphs are not chains. All take (3, 12, 12)."""

import torch
from networks import randomise
from torch import nn
from torch.nn import functional as F

INPUT = (3, 12, 12)


def conv_bn(c, n, kernel=3, **options):
    options.setdefault("padding", kernel // 2)
    return nn.Sequential(nn.Conv2d(c, n, kernel, bias=False, **options), nn.BatchNorm2d(n))


class Graph(nn.Module):
    """A stem, a body and a linear head on the pooled maps."""

    def __init__(self, width, **parts):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.body(F.relu(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(Graph):
    def __init__(self):
        super().__init__(16, a=conv_bn(16, 20), b=conv_bn(20, 16), c=conv_bn(16, 12), d=conv_bn(12, 16))

    def body(self, x):
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return F.relu(self.d(F.relu(self.c(x))) + x)


class Dense(Graph):
    def __init__(self):
        super().__init__(
            16 + 3 * 8,
            a=nn.Conv2d(16, 8, 3, padding=1),
            b=nn.BatchNorm2d(24),
            c=nn.Conv2d(24, 8, 3, padding=1),
            d=nn.Conv2d(32, 8, 3, padding=1),
        )

    def body(self, x):
        x = torch.cat([x, torch.relu(self.a(x))], 1)
        x = torch.cat([x, torch.relu(self.c(torch.relu(self.b(x))))], 1)
        return torch.cat([x, self.d(x)], dim=1)


class DepthwiseSeparable(Graph):
    def __init__(self):
        super().__init__(
            12,
            expand=conv_bn(16, 32, 1),
            depthwise=conv_bn(32, 32, groups=32, stride=2),
            project=conv_bn(32, 12, 1),
            own=conv_bn(12, 12, groups=12),
            last=conv_bn(12, 12, 1),
        )

    def body(self, x):
        x = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return F.relu(self.last(F.hardswish(self.own(x))))


class Grouped(Graph):
    def __init__(self):
        super().__init__(16, a=conv_bn(16, 24, 1), b=conv_bn(24, 24, groups=4), c=conv_bn(24, 16, 1))

    def body(self, x):
        return F.relu(x + self.c(F.relu(self.b(F.relu(self.a(x))))))


class SqueezeExcite(Graph):
    def __init__(self):
        super().__init__(24, a=conv_bn(16, 24), squeeze=nn.Conv2d(24, 6, 1), excite=nn.Linear(6, 24), b=conv_bn(24, 24))

    def body(self, x):
        x = F.relu(self.a(x))
        b, c, _, _ = x.size()
        gate = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        gate = torch.sigmoid(self.excite(gate.flatten(1))).view(b, c, 1, 1)
        return self.b(x * gate.expand_as(x))


class Shuffle(Graph):
    def __init__(self):
        super().__init__(24, a=conv_bn(16, 24, groups=2), b=conv_bn(24, 24, groups=4), c=conv_bn(24, 24))

    def body(self, x):
        x = F.relu(self.a(x))
        b, c, h, w = x.shape
        x = x.view(b, 4, c // 4, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.c(F.relu(self.b(x)))


class Chunk(Graph):
    def __init__(self):
        super().__init__(24, a=conv_bn(16, 24), b=conv_bn(12, 12))

    def body(self, x):
        left, right = F.relu(self.a(x)).chunk(2, dim=1)
        return torch.cat([left, F.relu(self.b(right))], dim=1)


class Dilated(Graph):
    def __init__(self):
        super().__init__(16, a=conv_bn(16, 20, dilation=2, padding=2), b=conv_bn(20, 16, dilation=2, padding=2))

    def body(self, x):
        return self.b(F.relu(self.a(x)))


class Twice(Graph):
    def __init__(self):
        super().__init__(16, shared=nn.Conv2d(16, 16, 3, padding=1), other=nn.Conv2d(16, 16, 3, padding=1))

    def body(self, x):
        return self.other(F.relu(self.shared(F.relu(self.shared(x)))))


class Viewed(Graph):
    def __init__(self):
        super().__init__(10, a=nn.Conv2d(16, 12, 3, stride=2, padding=1), b=nn.Linear(12 * 36, 10))

    def forward(self, x):
        x = torch.sigmoid(self.a(F.relu(self.stem(x))))
        return self.head(F.relu(self.b(x.view(x.size(0), -1))))


class Oblong(Graph):
    def __init__(self):
        super().__init__(
            12,
            a=nn.Conv2d(16, 14, (1, 7), padding="same", padding_mode="reflect"),
            b=nn.Conv2d(14, 12, (7, 1), padding="same", padding_mode="reflect"),
            p=nn.PReLU(14),
        )

    def body(self, x):
        return self.b(self.p(self.a(x)))


class UNet(Graph):
    def __init__(self):
        super().__init__(
            8,
            down=conv_bn(16, 24),
            middle=conv_bn(24, 24),
            up=nn.ConvTranspose2d(24, 12, 2, stride=2),
            join=conv_bn(28, 16),
            last=nn.Conv2d(16, 8, 1),
        )

    def body(self, x):
        y = F.relu(self.middle(F.relu(self.down(F.max_pool2d(x, 2)))))
        y = torch.cat([self.up(y), x], dim=1)
        return self.last(F.relu(self.join(y)))


GRAPHS = {
    "residual": Residual, "dense": Dense, "depthwise separable": DepthwiseSeparable, "grouped": Grouped,
    "squeeze-excite": SqueezeExcite, "shuffle": Shuffle, "chunk": Chunk, "dilated": Dilated, "twice": Twice,
    "viewed": Viewed, "oblong": Oblong, "u-net": UNet,
}  # fmt: skip


def make(name, seed=0):
    """One of the networks with random weights and normalisation statistics."""
    return randomise(GRAPHS[name](), seed)
