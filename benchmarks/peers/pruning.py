"""Torch-Pruning: channels by magnitude or by a Taylor expansion of the loss."""

import copy
import warnings

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

from benchmarks.peers.search import meet, spread
from benchmarks.peers.subject import AT_A_TIME, reestimate_normalisation

IMPORTANCES = {
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
}
#: No layer loses more than this share of its channels when all are ranked together, or whole layers vanish.
MOST_PRUNED = 0.95


def compress(subject, speedup, work, *, importance, scope, bn, rounds=1, round_to=None):
    """Prune to the budget, in one go or in rounds of equal factors.

    Between rounds the gradients are taken anew and, with `bn`, the normalisations' statistics too. Widths are multiples
    of `round_to`, as runtimes like them that compute channels in blocks.
    """
    network = subject.fresh()
    for turn in range(1, rounds + 1):
        budget = subject.macs / speedup ** (turn / rounds)
        gradients = _gradients(network, subject) if importance == "taylor" else None
        network = _prune(network, subject, budget, importance, scope, gradients, round_to)
        if bn:
            reestimate_normalisation(network, subject.images)
    return network, 0.0


def _gradients(network, subject):
    """Of the mean cross-entropy over the calibration images, by parameter name."""
    network.eval().zero_grad()
    for images, labels in zip(subject.images.split(AT_A_TIME), subject.labels.split(AT_A_TIME)):
        loss = functional.cross_entropy(network(images), labels, reduction="sum") / len(subject.images)
        loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad(set_to_none=True)
    return found


def _prune(network, subject, budget, importance, scope, gradients, round_to):

    def make(share):
        pruned = copy.deepcopy(network)
        if gradients is not None:
            for name, parameter in pruned.named_parameters():
                parameter.grad = gradients[name].clone()
        convs = [m for m in pruned.modules() if isinstance(m, nn.Conv2d)]
        ratios = None
        if scope == "uniform":
            kept = spread([m.out_channels for m in convs], share)
            ratios = {conv: 1 - part for conv, part in zip(convs, kept)}
        classifier = [m for m in pruned.modules() if isinstance(m, nn.Linear)][-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.BasePruner(
                pruned, torch.zeros(1, *subject.shape), importance=IMPORTANCES[importance](),
                global_pruning=scope == "global", pruning_ratio=1 - share, pruning_ratio_dict=ratios,
                max_pruning_ratio=MOST_PRUNED, ignored_layers=[classifier], round_to=round_to,
            ).step()  # fmt: skip
        pruned.zero_grad(set_to_none=True)
        return pruned.eval()

    return meet(make, subject.count, budget, 0.02, 1.0)[0]
