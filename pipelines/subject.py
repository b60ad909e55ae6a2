"""The network of a run that is to become cheaper: its frozen points, its graph, its cost and what is known of it."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from decomp import cost, graph
from decomp.data.frozen import FrozenFile
from decomp.pipelines import survey
from decomp.pipelines.points import open_frozen


@dataclass
class Subject:
    """What a plan is made from.

    Attributes
    ----------
    frozen : FrozenFile
    original : torch.nn.Module
        As frozen.
    view : decomp.graph.NetworkGraph
        Of a traced copy on the device, which will be changed.
    counted : decomp.cost.Cost
    known : decomp.pipelines.survey.Survey or None
        After :meth:`survey`.
    sampler : bool
        Whether layers may read a subset of channels that others need too.
    """

    frozen: FrozenFile
    original: torch.nn.Module
    view: graph.NetworkGraph
    counted: cost.Cost
    known: survey.Survey | None = None
    sampler: bool = True

    @property
    def input_shape(self):
        """(C, H, W)."""
        return tuple(self.frozen.meta["input_shape"])

    def survey(self, run, *, device, batch_size, reporter):
        """Find out, or read from the run, what every size of every layer loses."""
        survey.judge_sizes(self.view, self.frozen)
        self.known = survey.survey(
            run, self.frozen, self.view, device=device, batch_size=batch_size, reporter=reporter
        )  # fmt: skip
        if not self.sampler:
            # Surveyed with samplers, so that both ways share one survey.
            self.view = graph.NetworkGraph(self.view.module, self.input_shape, self.view.name, sampler=False)
            survey.judge_sizes(self.view, self.frozen)
        return self.known


@contextmanager
def opened(run, device, *, sampler=True):
    """The subject of a run, for the length of the block."""
    frozen, original = open_frozen(run)
    with frozen:
        shape, name = tuple(frozen.meta["input_shape"]), frozen.meta["model"]
        network = graph.trace(original, name, frozen.meta.get("leaves") or ())
        view = graph.NetworkGraph(network, shape, name)
        counted = cost.cost(network, shape)
        network.to(device)
        yield Subject(frozen, original, view, counted, sampler=sampler)
