"""Masked demo: two small networks are trained, pruned by the norms of their filters, and trained on.

The networks and sizes are those of a note on L1-norm filter pruning (Li et al., Pruning Filters for Efficient ConvNets,
2017): an MLP of 200 and 200 units to 50 and 100, a ConvNet of 32, 64 and 64 channels to 8, 16 and 32. Beside them, a
network of the small size is trained from random weights for as many epochs as the large and the pruned one together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from decomp import seeds
from decomp.cost.count import Cost, cost
from decomp.criteria.choose import Choice, by_counts, greedily
from decomp.criteria.scores import score
from decomp.errors import UsageError
from decomp.graph.channel_spaces import Spaces
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.masked_layers import put_masks
from decomp.surgery.narrow_network import shrink

from ...data.models import load_model
from ...data.sources import ImageSource, open_source
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..measure.accuracy import accuracy, logits_of
from ..measure.devices import pick_device
from ..measure.intervals import short_share
from ..training.hold_out import hold_out
from ..training.loop import fit
from ..training.recipe import Recipe

DATA, EPOCHS, SHAPE = "digits", 5, (1, 28, 28)
#: Channels that each layer keeps, by network of the zoo.
WIDTHS: Mapping[str, Mapping[str, int]] = {
    "mlp-fashion": {"1": 50, "3": 100},
    "convnet-fashion": {"0": 8, "3": 16, "6": 32},
}
CRITERIA = ("l1", "random", "largest")


@dataclass(frozen=True)
class Pruned:
    """Figures of one network.

    Attributes
    ----------
    name : str
        Of the network in the zoo.
    before, after : Cost
    keep : mapping of str to list of int
        Channels that stay, by layer.
    difference : float
        Largest difference between the outputs of the masked and of the smaller network.
    untuned : mapping of str to float
        Accuracy on the held-out images right after pruning, by criterion.
    accuracies : mapping of str to float
        On the test images (the held-out ones where there are none): 'trained', 'pruned and trained on', 'small from
        random weights'.
    """

    name: str
    before: Cost
    after: Cost
    keep: Mapping[str, list[int]]
    difference: float
    untuned: Mapping[str, float]
    accuracies: Mapping[str, float]

    @property
    def title(self) -> str:
        """The kind of network: the images of the zoo's name are others here."""
        return self.name.removesuffix("-fashion")


@dataclass(frozen=True)
class MaskedResult:
    """Result of the masked demo.

    Attributes
    ----------
    data : str
    networks : tuple of Pruned
    n_held_out, n_measured : int
        Images of the accuracies before and after training on.
    """

    data: str
    networks: tuple[Pruned, ...]
    n_held_out: int
    n_measured: int

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        rows = [("network", "parameters", "multiply-accumulates", "accuracy")]
        for net in self.networks:
            share = {name: short_share(value, self.n_measured) for name, value in net.accuracies.items()}
            for name, size in zip(net.accuracies, (net.before, net.after, net.after)):
                rows.append((f"{net.title}, {name}", f"{size.params:,}", f"{size.macs:,}", share[name]))
        yield text_table(rows)
        for net in self.networks:
            values = ", ".join(f"{name} {short_share(v, self.n_held_out)}" for name, v in net.untuned.items())
            yield f"{net.title} before it is trained on, held-out images: {values}"
            yield f"{net.title}: masked and smaller network differ by {net.difference:.1e} at most"


def masked(
    data: str = DATA,
    *,
    networks: Sequence[str] = tuple(WIDTHS),
    epochs: int = EPOCHS,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> MaskedResult:
    """Train, prune by L1 norms and train on; nothing is written.

    A tenth of the training images is held out; the test images are read once, at the end.

    Parameters
    ----------
    data : str
        A source of images with labels, resized to 28x28 grey pixels. The usual one needs no download and takes less
        than a minute.
    networks : sequence of str
        Keys of :data:`WIDTHS`.
    epochs : int
        Before and again after pruning.
    seed : int
    device : str
    reporter : Reporter, optional

    Returns
    -------
    MaskedResult

    Raises
    ------
    UsageError
        The source has no labels, or an option is out of its range.
    """
    reporter = reporter or Reporter()
    source = open_source(data, input_shape=SHAPE)
    if not source.train.has_labels or source.n_classes is None:
        raise UsageError(data, "the demo needs images with labels", got="a source without labels")
    bench = _Bench(source, epochs, seed, pick_device(device), reporter)
    results = tuple(bench.run(name, WIDTHS[name]) for name in networks)
    n_measured = len(bench.held_out) if source.test is None else len(source.test)
    return MaskedResult(data, results, len(bench.held_out), n_measured)


class _Bench:
    """Images, device and options that all trainings of the demo share."""

    def __init__(self, source: ImageSource, epochs: int, seed: int, device: torch.device, reporter: Reporter) -> None:
        self.source, self.epochs, self.seed, self.device, self.reporter = source, epochs, seed, device, reporter
        self.train, self.held_out = hold_out(len(source.train), seed)

    def run(self, name: str, widths: Mapping[str, int]) -> Pruned:
        """Train a network of the zoo, prune it and train it on."""
        weights = seeds.derive_seed(self.seed, "masked", name)
        loaded = load_model(
            f"zoo:{name}", weights="random", input_size=SHAPE, n_classes=self.source.n_classes, seed=weights
        )
        full = trace(loaded.module, name)
        title = name.removesuffix("-fashion")
        self.reporter.step(f"{title}: {self.epochs} epochs on {self.source.name}")
        self._fit(full, f"{name}-full", self.epochs)
        spaces = NetworkGraph(full, SHAPE, name).spaces
        choices = {criterion: _choice(full, spaces, widths, criterion, self.seed) for criterion in CRITERIA}
        small = {criterion: _smaller(full, spaces, choice) for criterion, choice in choices.items()}
        untuned = {criterion: self._held_out_accuracy(network) for criterion, network in small.items()}
        difference = self._difference(full, spaces, choices["l1"], small["l1"])
        twin = _drawn_anew(small["l1"], weights)
        self.reporter.step(f"{title}: {self.epochs} more epochs with {_words(widths)} channels")
        self._fit(small["l1"], f"{name}-pruned", self.epochs)
        self.reporter.step(f"{title}: {2 * self.epochs} epochs with {_words(widths)} channels from random weights")
        self._fit(twin, f"{name}-small", 2 * self.epochs)
        ends = {"trained": full, "pruned and trained on": small["l1"], "small from random weights": twin}
        return Pruned(
            name, cost(full, SHAPE), cost(small["l1"], SHAPE), choices["l1"].keep, difference, untuned,
            {words: self._accuracy(network) for words, network in ends.items()},
        )  # fmt: skip

    def _fit(self, network: nn.Module, stage: str, epochs: int) -> None:
        few = len(self.train) < 10_000
        recipe = Recipe(
            epochs, 1e-3, batch_size=32 if few else 128, schedule="constant", warmup_epochs=0, optimizer="adam",
            seed=self.seed,
        )  # fmt: skip
        split = self.source.train
        fit(
            network, recipe, stage=f"masked-{stage}", n_images=len(self.train),
            batches=lambda order, size, augment: split.batches(self.train[order], size), loss=_loss, keep_best=False,
            device=self.device, reporter=self.reporter,
        )  # fmt: skip

    def _held_out_accuracy(self, network: nn.Module) -> float:
        return accuracy(network.to(self.device), self.source.train, self.held_out, self.device)

    def _accuracy(self, network: nn.Module) -> float:
        test = self.source.test
        if test is None:
            return self._held_out_accuracy(network)
        return accuracy(network, test, torch.arange(len(test)), self.device)

    def _difference(self, full: fx.GraphModule, spaces: Spaces, choice: Choice, small: nn.Module) -> float:
        with_masks = copy.deepcopy(full)
        put_masks(with_masks, spaces, choice.keep)
        images = self.source.train.images(self.held_out)
        outputs = (logits_of(network, images, self.device) for network in (with_masks, small))
        return float(torch.sub(*outputs).abs().max())


def _choice(network: nn.Module, spaces: Spaces, widths: Mapping[str, int], criterion: str, seed: int) -> Choice:
    """As many channels of each layer as asked for; the scores of a layer know what the layers before it have lost."""
    of = partial(score, network, spaces, criterion=criterion, seed=seed)
    choice = by_counts(of(names=list(widths)), widths)
    return greedily(choice, lambda name, keep: of(names=[name], removed=keep)[name])


def _smaller(network: nn.Module, spaces: Spaces, choice: Choice) -> nn.Module:
    small = copy.deepcopy(network)
    shrink(small, spaces, choice.keep)
    return small


def _drawn_anew(network: nn.Module, seed: int) -> nn.Module:
    """A network of the same shape with new random weights, as its layers draw them."""
    twin = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in twin.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
    return twin


def _loss(module: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
    assert labels is not None
    return functional.cross_entropy(module(images).float(), labels)


def _words(widths: Mapping[str, int]) -> str:
    return ", ".join(map(str, widths.values()))
