"""Names of the criteria and of the rules for choosing by them. Imports no torch, so that options and help can use them.

A criterion gives a number per channel; the channels with the lowest numbers go first.
"""

from __future__ import annotations

from typing import Final

#: Of one layer's weights (:mod:`decomp.criteria.filters`).
FILTER_CRITERIA: Final = ("l1", "l2", "largest", "overlap", "fpgm")
#: Of all weights that go with a channel: those that write it, scale it and read it (:mod:`decomp.criteria.groups`).
GROUP_CRITERIA: Final = ("group-l1", "group-l2")
#: Of the outputs of convolutions and linear layers on images (:mod:`decomp.criteria.statistics`).
STATISTICS: Final = ("mean-mean", "mean-std", "mean-l1", "mean-l2", "var-l2")
CRITERIA: Final = (*FILTER_CRITERIA, *GROUP_CRITERIA, "random", "bn-scale", *STATISTICS, "taylor")

#: Beside the weights: 'images' (without labels), 'loss' (images, with or without labels, and a gradient),
#: 'batchnorm' (a network whose batch normalisations are modules of their own).
NEEDS: Final = {
    **dict.fromkeys((*FILTER_CRITERIA, *GROUP_CRITERIA, "random")),
    "bn-scale": "batchnorm",
    **dict.fromkeys(STATISTICS, "images"),
    "taylor": "loss",
}

#: Criteria that can choose the input channels of a layer in `decompose`, beside the selectors of
#: :mod:`decomp.solvers.selectors`, whose l1 and random are others. 'bn-scale' reads the network before its batch
#: normalisations were folded.
AS_SELECTORS: Final = tuple(name for name in CRITERIA if name not in ("l1", "random"))

#: Rules that make the numbers of different layers comparable (:func:`decomp.criteria.ranking.normalised`).
NORMALISATIONS: Final = ("none", "mean", "max", "l2")
#: The rule for each criterion where none is asked for. Scale factors that were trained to be sparse are comparable as
#: they are; norms, distances and activations depend on a layer's size. First-order changes of the loss would be
#: comparable for one channel; of many that go at once the late layers, with small changes each, lose too many: on
#: held-out images of zoo:vgg-fashion at 2x the divergence was 1.30 without a rule and 0.12 by the mean.
NORMALISATION_OF: Final = {name: "none" if name in ("bn-scale", "random") else "mean" for name in CRITERIA}
#: Channels ranked among those of all layers, or among those of their own layer.
RANKINGS: Final = ("global", "layer")
