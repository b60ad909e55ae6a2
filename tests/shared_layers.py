"""Small networks whose layers are called several times. All take (6, 12, 12)."""

import torch
from networks import randomise
from torch import nn
from torch.nn import functional as F

INPUT = (6, 12, 12)


class Siamese(nn.Module):
    """One encoder on both halves of the channels; normalisations, a shortcut, operations in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.a, self.b, self.relu = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(True)
        self.out = nn.Linear(12, 5)

    def encode(self, x):
        x = self.relu(self.norm(self.stem(x)))
        return self.relu(self.b(self.relu(self.a(x))) + x)

    def forward(self, x):
        return self.out((self.encode(x[:, :3]) - self.encode(x[:, 3:])).abs().mean((2, 3)))


class Folded(Siamese):
    """The same, with both halves in one batch."""

    def forward(self, x):
        first, second = self.encode(torch.cat((x[:, :3], x[:, 3:]), 0)).chunk(2, 0)
        return self.out((first - second).abs().mean((2, 3)))


class Pyramid(nn.Module):
    """A head shared by three levels of other sizes."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(c, 10, 3, stride=2, padding=1) for c in (6, 10, 10))
        self.tower, self.out = nn.Conv2d(10, 14, 3, padding=1), nn.Conv2d(14, 4, 1)

    def forward(self, x):
        outputs = []
        for level in self.levels:
            x = level(x).relu()
            outputs.append(self.out(self.tower(x).relu()).flatten(2))
        return torch.cat(outputs, 2)


class Recursive(nn.Module):
    """A layer that reads its own output, and a linear layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.again = nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.hidden, self.out = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        for _ in range(3):
            x = self.again(x).relu()
        return self.out(self.hidden(F.leaky_relu(self.hidden(x.mean((2, 3))))).tanh())


SHARED = {"siamese": Siamese, "pyramid": Pyramid, "recursive": Recursive}


def make(name, seed=0):
    """One of the networks with random weights."""
    return randomise({**SHARED, "folded": Folded}[name](), seed)
