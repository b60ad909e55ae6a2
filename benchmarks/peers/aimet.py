"""AIMET's spatial SVD, and its channel pruning: L2-magnitude choice, least squares on the original's outputs.

Without `bn` the normalisations are folded into the convolutions first, by AIMET's own function; with it they stay and
their statistics are taken anew at the end. The greedy search scores every layer at nine shares by the negative
cross-entropy on some of the calibration images. The shares that it chooses are then stretched by one factor, found by
bisection, so that the counted cost is met, and the final network is fitted on ten points of every calibration image.
"""

import os
import pickle
from pathlib import Path

import torch
from aimet_torch import batch_norm_fold
from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
from aimet_torch.compress import ModelCompressor
from aimet_torch.defs import ChannelPruningParameters, ModuleCompRatioPair, SpatialSvdParameters
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.search import meet, spread
from benchmarks.peers.subject import AT_A_TIME, once, reestimate_normalisation

SCHEMES = {
    "spatial-svd": (CompressionScheme.spatial_svd, SpatialSvdParameters),
    "channel-pruning": (CompressionScheme.channel_pruning, ChannelPruningParameters),
}
#: Points for the least squares, ten of an image: while shapes are sought, while a greedy search scores, at the end.
SHAPE_SAMPLES, SCORE_SAMPLES, FINAL_SAMPLES = 100, 5_000, 50_000
SCORE_IMAGES = 1_000


def compress(subject, speedup, work, *, scheme, search, bn):
    """Uniform shares, or those of the greedy search, to the budget."""
    os.chdir(work)  # where AIMET leaves its tables
    tool = _Tool(subject, scheme, bn)
    names, seconds = tool.names(), 0.0
    if search == "greedy":
        table = work / f"aimet-{scheme}{'-bn' if bn else ''}.pkl"
        seconds = once(work, table.stem, lambda: tool.score(table))
        chosen = tool.greedy(table, 1 / speedup)
        low, high = 0.05, 8.0

        def shares(factor):
            return {name: min(1.0, part * factor) for name, part in chosen.items()}
    else:
        sizes = [tool.model().get_submodule(name).in_channels for name in names]
        low, high = 0.02, 1.0

        def shares(share):
            return dict(zip(names, spread(sizes, share)))

    budget = subject.macs / speedup
    _, best = meet(lambda x: tool.manual(shares(x), SHAPE_SAMPLES), subject.count, budget, low, high)
    network = tool.manual(shares(best), min(FINAL_SAMPLES, 10 * len(subject.images)))
    if bn:
        reestimate_normalisation(network, subject.images)
    return network, seconds


class _Tool:
    """One scheme of AIMET on one network."""

    def __init__(self, subject, scheme, bn):
        self.subject, self.bn = subject, bn
        self.scheme, self.parameters = SCHEMES[scheme]
        self.batch_shape = (1, *subject.shape)
        self.loader = DataLoader(TensorDataset(subject.images, subject.labels), batch_size=10)

    def model(self):
        network = self.subject.fresh()
        if not self.bn:
            batch_norm_fold.fold_all_batch_norms(network, self.batch_shape)
        return network

    def names(self):
        """Convolutions to treat: all but the first, as AIMET's guide advises, and those of one point, for the SVD."""
        found = [name for name, m in self.model().named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1][1:]
        if self.parameters is SpatialSvdParameters:
            network = self.model()
            found = [name for name in found if max(network.get_submodule(name).kernel_size) > 1]
        return found

    def manual(self, shares, samples):
        """A network with these shares of the layers' costs (SVD) or input channels (pruning)."""
        network = self.model()
        pairs = [ModuleCompRatioPair(network.get_submodule(name), share) for name, share in shares.items() if share < 1]
        if not pairs:
            return network
        mode = self.parameters.ManualModeParams(pairs)
        return self._compress(network, self.parameters.Mode.manual, mode, samples, lambda *_, **__: 0.0)[0].eval()

    def score(self, table):
        """The greedy search's scores of every layer at every share, kept in a file."""
        self._auto(0.5, None)
        (Path("data") / "greedy_selection_eval_scores_dict.pkl").rename(table)

    def greedy(self, table, target):
        """The shares that the greedy search chooses for a target, by layer; 1 where it leaves a layer alone."""
        self._auto(target, str(table))
        with open(Path("data") / "greedy_selection_comp_ratios_list.pkl", "rb") as file:
            return {name: 1.0 if share is None else float(share) for name, share in pickle.load(file)}

    def _auto(self, target, table):
        network = self.model()
        treated = set(self.names())
        ignored = [m for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and name not in treated]
        greedy = GreedySelectionParameters(target_comp_ratio=target, saved_eval_scores_dict=table)
        mode = self.parameters.AutoModeParams(greedy, modules_to_ignore=ignored)
        score = self._score_of if table is None else lambda *_, **__: 0.0
        samples = SCORE_SAMPLES if table is None else SHAPE_SAMPLES
        self._compress(network, self.parameters.Mode.auto, mode, samples, score)

    @torch.no_grad()
    def _score_of(self, network, iterations=None, use_cuda=False):
        images, labels = self.subject.images[:SCORE_IMAGES], self.subject.labels[:SCORE_IMAGES]
        network.eval()
        logits = torch.cat([network(part) for part in images.split(AT_A_TIME)])
        return -functional.cross_entropy(logits, labels).item()

    def _compress(self, network, mode, parameters, samples, score):
        if self.parameters is ChannelPruningParameters:
            made = ChannelPruningParameters(self.loader, samples, True, mode, parameters)
        else:
            made = SpatialSvdParameters(mode, parameters)
        return ModelCompressor.compress_model(
            network, score, None, self.batch_shape, self.scheme, CostMetric.mac, made
        )  # fmt: skip
