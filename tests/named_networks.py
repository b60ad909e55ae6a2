"""Networks whose modules have unusual names: slices, digits in any order, several names for one. All take INPUT."""

from collections import OrderedDict

from networks import randomise
from torch import nn

INPUT = (3, 8, 8)
WIDTHS = ((3, 12), (12, 16), (16, 16), (16, 12))


def convolutions():
    return [nn.Conv2d(i, o, 3, padding=1) for i, o in WIDTHS]


def with_activations():
    return [part for conv in convolutions() for part in (conv, nn.ReLU())]


class Head(nn.Module):
    """Runs the parts that a network names, then a linear layer on the pooled maps."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = nn.Linear(12, 5)

    def parts(self):
        raise NotImplementedError

    def forward(self, x):
        for part in self.parts():
            x = part(x)
        return self.head(x.mean((2, 3)))


class Slices(Head):
    """Slices of one Sequential keep its names: 3 to 7 in the second one."""

    def __init__(self):
        trunk = nn.Sequential(*with_activations())
        super().__init__(low=trunk[:3], high=trunk[3:])

    def parts(self):
        return [self.low, self.high]


class NestedSlices(Head):
    """A slice of a slice, in a ModuleList: high.1.5 to high.1.7."""

    def __init__(self):
        trunk = nn.Sequential(*with_activations())
        rest = trunk[2:]
        super().__init__(low=trunk[:2], high=nn.ModuleList([rest[:3], rest[3:]]))

    def parts(self):
        return [self.low, *self.high]


class FromOne(Head):
    """Names 1 to 8, as if they were places that are one too high."""

    def __init__(self):
        super().__init__(trunk=nn.Sequential(OrderedDict((str(i + 1), m) for i, m in enumerate(with_activations()))))

    def parts(self):
        return [self.trunk]


class OutOfOrder(Head):
    """Names 7 to 0."""

    def __init__(self):
        super().__init__(trunk=nn.Sequential(OrderedDict((str(7 - i), m) for i, m in enumerate(with_activations()))))

    def parts(self):
        return [self.trunk]


class DigitKeys(Head):
    """A ModuleDict whose keys are numbers, and one with a leading zero."""

    def __init__(self):
        super().__init__(levels=nn.ModuleDict(zip(("32", "8", "16", "08"), convolutions())))

    def parts(self):
        return [part for level in self.levels.values() for part in (level, nn.functional.relu)]


class TwoNames(Head):
    """Blocks that are put together from the modules of an encoder, which stays there under its own name."""

    def __init__(self):
        encoder = nn.Sequential(*with_activations())
        super().__init__(encoder=encoder, one=nn.Sequential(*encoder[:4]), two=nn.Sequential(*encoder[4:]))

    def parts(self):
        return [self.one, self.two]


class PlainContainers(Head):
    """Modules under names of their own, which the forward pass reads from a list, a dict and a tuple of Python."""

    def __init__(self):
        a, b, c, d = convolutions()
        super().__init__(a=a, b=b, c=c, d=d)
        self.first, self.named, self.pair = [[a]], {"b": b}, (c, d)

    def parts(self):
        order = (self.first[0][0], self.named["b"], *self.pair)
        return [part for conv in order for part in (conv, nn.functional.relu)]


NETWORKS = (Slices, NestedSlices, FromOne, OutOfOrder, DigitKeys, TwoNames, PlainContainers)


def make(kind, seed=0):
    """One of the networks with random weights."""
    return randomise(kind(), seed)
