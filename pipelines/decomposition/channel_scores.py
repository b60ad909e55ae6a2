"""Scores of the input channels of layers by a criterion, in place of a selector that looks at the fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from decomp.criteria.members import places_in
from decomp.criteria.names import AS_SELECTORS
from decomp.criteria.scores import gather, score
from decomp.graph.channel_spaces import Spaces
from decomp.graph.layer import Layer

from ..measure.devices import to_device
from ..measure.own_loss import loss_of
from ..measure.shares import images_at_a_time
from ..run.outputs import frozen_outputs
from .gather import ProblemGatherer


def channel_scores(gatherer: ProblemGatherer, selector: str, layers: Iterable[str]) -> dict[str, Tensor]:
    """Numbers of the input channels of some layers, on the network before any of them is solved.

    Parameters
    ----------
    gatherer : ProblemGatherer
        Its network is that of the frozen points.
    selector : str
        Where it is no criterion of :data:`decomp.criteria.names.AS_SELECTORS`, there are no scores.
    layers : iterable of str

    Returns
    -------
    dict of str to torch.Tensor
        For each layer, float64, one number per channel of its input space, or of its input where it is sampled.
    """
    if selector not in AS_SELECTORS:
        return {}
    graph, frozen = gatherer.graph, gatherer.frozen
    spaces, chosen = graph.spaces, [graph.layer(name) for name in layers]
    names = list(dict.fromkeys(space.name for layer in chosen for space in spaces.read_by(layer.name)))

    outputs, (channels, height, width) = frozen_outputs(frozen), frozen.meta["input_shape"]
    size = images_at_a_time(outputs, (channels, height, width))

    def batches() -> Iterator[Tensor]:
        for start in range(0, gatherer.n_fit, size):
            yield to_device(frozen.images(start, min(start + size, gatherer.n_fit)), torch.device(gatherer.device))

    loss = loss_of(outputs, frozen.meta["seed"])
    evidence = gather(graph.module, spaces, names, selector, batches(), loss)
    found = score(graph.module, spaces, names, selector, evidence=evidence)
    return {layer.name: _of_inputs(spaces, layer, found) for layer in chosen}


def _of_inputs(spaces: Spaces, layer: Layer, found: dict[str, Tensor]) -> Tensor:
    use = spaces.use(layer.name)
    assert use is not None  # it has an input space
    columns = torch.zeros(len(use.reads), dtype=torch.float64)
    for space in spaces.read_by(layer.name):
        places = torch.from_numpy(places_in(space, spaces.roots_of(use.reads)))
        columns[places >= 0] = found[space.name][places[places >= 0]]
    # Behind a flatten a channel has several columns.
    return columns.view(layer.input_width, -1)[:, 0]
