"""Judgement of networks by the change of their outputs on images that no fit has seen, and comparison of two."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..console.reporter import Reporter
from ..distributed.process_group import from_first
from ..run.conditions import freeze_options
from ..run.held_out import HeldOut
from ..run.outputs import frozen_outputs
from .session import OpenedRun

#: Held-out images on which a plan is judged, at most.
MOST_IMAGES = 1_000
#: A plan is better by so many standard errors of the mean difference. With one of them and 100 images, a residual block
#: of ResNet-20 was left out at 4x (0.021 for 0.037 nats in a trial without refinement), and on 5,000 test images the
#: result was further from the original than with all blocks (0.047 for 0.036 nats, accuracy 92.4 for 92.6 %).
SURE = 2.0


class Judge:
    """Changes of the outputs of a network from those of the original, on images that no fit has seen.

    Parameters
    ----------
    opened : OpenedRun
    most : int
        Held-out images, at most.

    Attributes
    ----------
    held_out : HeldOut
        The images; where there are few, with mixtures of them.
    """

    def __init__(self, opened: OpenedRun, most: int = MOST_IMAGES) -> None:
        self.opened, self.outputs = opened, frozen_outputs(opened.frozen)
        self.held_out = HeldOut(opened.frozen, opened.cost.macs, mix=freeze_options(opened.run).mix, most=most)
        original = opened.original.to(opened.device)
        size = opened.memory.limits.batch_size
        self._parts = [(at, min(at + size, len(self.held_out))) for at in range(0, len(self.held_out), size)]
        self.wanted = [self._named(original, *places) for places in self._parts]

    def changes_of_first(self, network: nn.Module) -> Tensor:
        """The changes that the first one of several processes finds; the work is counted."""
        self.opened.memory.count_passes(len(self.held_out))
        return from_first(lambda: self.changes(network))

    @torch.no_grad()
    def changes(self, network: nn.Module) -> Tensor:
        """Change of the outputs for each held-out image, with the mixtures of it: (N,), float64."""
        pairs = zip(self.wanted, self._parts)
        found = [self.outputs.change(wanted, self._named(network, *places)).cpu() for wanted, places in pairs]
        return self.held_out.of_each(torch.cat(found))

    def say(self, words: str, changes: Tensor, reporter: Reporter) -> None:
        """One line about the changes that were found."""
        reporter.step(f"{words}: change of the outputs {float(changes.mean()):.3g} on {self.held_out.words}")

    @torch.no_grad()
    def _named(self, network: nn.Module, start: int, stop: int) -> dict[str, Tensor]:
        x = self.held_out.images(start, stop).to(self.opened.device)
        return self.outputs.named(network(x), len(x))


def is_better(one: Tensor, other: Tensor) -> bool:
    """Whether the changes of one plan are surely smaller on the same images, see `SURE`."""
    difference = other - one
    error = float(difference.std(correction=0)) / math.sqrt(max(len(difference) - 1, 1))
    return float(difference.mean()) > SURE * error
