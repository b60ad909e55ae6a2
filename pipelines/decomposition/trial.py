"""Trial of a plan: its layers fitted, and the change of the outputs measured on held-out calibration images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from decomp.allocation.choices import LayerPlans
from decomp.solvers.solve_layer import FitSettings
from decomp.time_spent import part

from ..console.options import DecomposeOptions
from ..console.reporter import Reporter
from ..distributed.process_group import from_first
from ..run.calibration import fitted_images
from ..run.outputs import frozen_outputs
from .fit_layer import exchange_layer, fit_layer
from .session import OpenedRun, SurveyedRun

#: Held-out images on which a plan is judged, at most.
MOST_IMAGES = 1_000
#: A plan is better by so many standard errors of the mean difference. With one of them and 100 images, a residual block
#: of ResNet-20 was left out at 4x (0.021 for 0.037 nats in a trial without refinement), and on 5,000 test images the
#: result was further from the original than with all blocks (0.047 for 0.036 nats, accuracy 92.4 for 92.6 %).
SURE = 2.0


class Judge:
    """Changes of the outputs of a network from those of the original, on held-out calibration images.

    Parameters
    ----------
    opened : OpenedRun
    """

    def __init__(self, opened: OpenedRun) -> None:
        self.opened, self.outputs = opened, frozen_outputs(opened.frozen)
        first, last = fitted_images(opened.frozen.n_images), opened.frozen.n_images
        self.places = range(first, min(last, first + MOST_IMAGES))
        size = opened.memory.limits.batch_size
        self._parts = [range(at, min(at + size, self.places.stop)) for at in range(first, self.places.stop, size)]
        original = opened.original.to(opened.device)
        self.wanted = [self._named(original, places) for places in self._parts]

    def changes(self, network: nn.Module) -> Tensor:
        """Change of the outputs for each image, float64; of several processes that of the first one."""
        return from_first(lambda: self._changes(network))

    @torch.no_grad()
    def _changes(self, network: nn.Module) -> Tensor:
        pairs = zip(self.wanted, self._parts)
        return torch.cat([self.outputs.change(wanted, self._named(network, part)).cpu() for wanted, part in pairs])

    @torch.no_grad()
    def _named(self, network: nn.Module, places: range) -> dict[str, Tensor]:
        x = self.opened.frozen.images(places.start, places.stop).to(self.opened.device)
        self.opened.memory.count_passes(len(x))
        return self.outputs.named(network(x), len(x))


@part("trials of plans")
def changes_of_plan(surveyed: SurveyedRun, plans: LayerPlans, options: DecomposeOptions, judge: Judge) -> Tensor:
    """Change of the outputs for each held-out image when the layers have planned sizes.

    The layers are fitted as for the result, but channels are chosen by backward elimination alone. Their refinement is
    part of it: it helps a plan with many small factors more than one with few.

    Parameters
    ----------
    surveyed : SurveyedRun
        Not changed.
    plans : dict of str to LayerPlan
    options : DecomposeOptions
    judge : Judge

    Returns
    -------
    torch.Tensor, shape (N,), float64
    """
    graph = surveyed.graph.copied()
    gatherer = surveyed.gatherer(options, graph)
    settings = FitSettings("backward", options.activation_aware, options.refine)
    for layer in graph.layers:
        if layer.recorded:
            solution, _ = fit_layer(gatherer, layer, plans[layer.name], settings, reported=False)
            exchange_layer(gatherer, solution)
    surveyed.opened.memory.clear()
    return judge.changes(graph.module)


def is_better(one: Tensor, other: Tensor) -> bool:
    """Whether the changes of one plan are surely smaller on the same images, see `SURE`."""
    difference = other - one
    error = float(difference.std(correction=0)) / math.sqrt(max(len(difference) - 1, 1))
    return float(difference.mean()) > SURE * error


def say_change(words: str, changes: Tensor, reporter: Reporter) -> None:
    """One line about a trial."""
    reporter.step(f"{words}: change of the outputs {float(changes.mean()):.3g} on {len(changes)} held-out images")
