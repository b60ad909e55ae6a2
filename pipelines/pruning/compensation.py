"""Compensation for dropped channels: their constants or means in the readers' biases, statistics estimated again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from decomp import seeds
from decomp.execution.output_change import Outputs
from decomp.graph.branches import Branch
from decomp.graph.network_graph import NetworkGraph
from decomp.modules.copies import deep_copy
from decomp.surgery.constant_channels import Moved, move_constants
from decomp.surgery.residual_branches import move_constant

from ..console.words import counted, listed
from .choice import Images

#: Images from which constants, means and statistics are taken; more change little.
STATISTICS_IMAGES = 1000
_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)


def compensate(
    network: fx.GraphModule, graph: NetworkGraph, keep: Mapping[str, Sequence[int]], images: Images | None, bias: str
) -> list[Moved]:
    """Let the biases of the readers take over what dropped channels give them, in place, before they are removed.

    Parameters
    ----------
    network : torch.fx.GraphModule
        With all channels.
    graph : decomp.graph.network_graph.NetworkGraph
    keep : mapping of str to sequence of int
    images : Images or None
        Without any, two random ones tell which channels are constant.
    bias : {'constant', 'mean', 'none'}
        The values of constant channels, or also the means of all others, or nothing.

    Returns
    -------
    list of decomp.surgery.constant_channels.Moved
        Of the layers that took over something.
    """
    if bias == "none" or not keep:
        return []
    batches = first(images.batches(), STATISTICS_IMAGES) if images is not None else [_example(network, graph)]
    moved = move_constants(network, graph.spaces, keep, batches, means=bias == "mean")
    return [one for one in moved if one.channels]


def _example(network: fx.GraphModule, graph: NetworkGraph) -> Tensor:
    """Two random images, on the network's device."""
    example = torch.randn(2, *graph.input_shape, generator=seeds.generator(0, "prune", "constants"))
    return example.to(next(network.parameters()).device)


def branch_constants(
    network: fx.GraphModule, graph: NetworkGraph, keep: Mapping[str, Sequence[int]], gone: Sequence[Branch],
    images: Images | None, bias: str,
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Let the shortcuts take over the constants of branches that go, in place, before they are removed.

    Parameters
    ----------
    network, graph, images, bias
        As for :func:`compensate`.
    keep : mapping of str to sequence of int
        Empty for a channel space of each branch.
    gone : sequence of decomp.graph.branches.Branch

    Returns
    -------
    layers : list of str
        Paths of the layers and normalisations that took over a constant.
    words : list of str
        The same in a line, and one about the constants that are lost.
    """
    if bias == "none" or not gone:
        return [], []
    batch = _example(network, graph) if images is None else next(iter(images.batches()))
    found = []
    for branch in gone:
        space = next(name for name in reversed(branch.inner) if not keep.get(name, [0]))
        found.append(move_constant(network, graph, branch, space, batch, means=bias == "mean"))
    layers = [one.layer for one in found if one.layer is not None]
    lines = []
    if layers:
        lines.append(f"constants of removed branches moved into {', '.join(layers)}")
    if inexact := [one.branch for one in found if one.layer is not None and not one.exact]:
        lines.append(f"not exact for {', '.join(inexact)}: zero padding at the borders makes other values")
    lines += [
        f"{one.branch} also gave a constant of at most {one.largest:.2g}, which is lost: no layer ends its shortcut"
        for one in found
        if one.layer is None and one.largest
    ]
    return layers, lines


def words(moved: Sequence[Moved], bias: str) -> list[str]:
    """What was moved, in one line, and a line for each reason why it is not exact."""
    if not moved:
        return []
    what = "means" if bias == "mean" else "constants"
    channels = sum(one.channels for one in moved)
    lines = [f"{what} of dropped channels moved into the biases of {counted(len(moved), 'layer')}: {channels:,} values"]
    reasons: dict[str, list[str]] = {}
    for one in moved if bias == "constant" else ():
        if one.inexact is not None:
            reasons.setdefault(one.inexact, []).append(one.layer)
    for reason, layers in reasons.items():
        lines.append(f"not exact in {listed(layers)}: {reason}")
    return lines


def first(batches: Iterable[Tensor], n: int) -> Iterator[Tensor]:
    """Batches with the first n images."""
    for batch in batches:
        if n <= 0:
            return
        yield batch[:n]
        n -= len(batch)


@torch.no_grad()
def recalibrated(network: fx.GraphModule, batches: Iterable[Tensor]) -> fx.GraphModule:
    """A copy whose batch normalisations have the mean and the variance of their inputs on some images.

    Parameters
    ----------
    network : torch.fx.GraphModule
        With its batch normalisations, in evaluation mode; not changed.
    batches : iterable of torch.Tensor, shape (B, C, H, W)
        On the network's device. The statistics are means over the batches, as in training.
    """
    copy = deep_copy(network).eval()
    momenta = {}
    for path, module in copy.named_modules():
        if isinstance(module, _NORMALISATIONS) and module.running_mean is not None:
            momenta[path] = module.momentum
            module.reset_running_stats()
            module.momentum = None  # a mean over all batches in place of a moving one
            module.train()
    for batch in batches:
        copy(batch)
    for path, momentum in momenta.items():
        norm = copy.get_submodule(path)
        assert isinstance(norm, _NORMALISATIONS)
        norm.momentum = momentum
    return copy.eval()


def choose_statistics(
    original: nn.Module, network: fx.GraphModule, images: Images, outputs: Outputs
) -> tuple[fx.GraphModule, str]:
    """The network with statistics estimated again where that brings its outputs nearer to the original's.

    Parameters
    ----------
    original, network : torch.nn.Module
        On the device of the images.
    images : Images
        Its held-out images judge.
    outputs : decomp.execution.output_change.Outputs

    Returns
    -------
    network : torch.fx.GraphModule
    words : str
        Which one it is, with the change of the outputs of both.
    """
    other = recalibrated(network, first(images.batches(), STATISTICS_IMAGES))
    before, after = (mean_change(original, one, images.held_out(), outputs) for one in (network, other))
    shown = f"change of the outputs on held-out images {before:.3g} before, {after:.3g} after"
    if after < before:
        return other, f"statistics of the batch normalisations estimated again: {shown}"
    return network, f"statistics of the batch normalisations stay those of the training, which are better: {shown}"


@torch.no_grad()
def mean_change(original: nn.Module, network: nn.Module, batches: Iterable[Tensor], outputs: Outputs) -> float:
    """Mean over the images of the change of the outputs, see :mod:`decomp.execution.output_change`."""
    total, n = 0.0, 0
    for batch in batches:
        wanted, got = (outputs.named(module(batch), len(batch)) for module in (original, network))
        total += float(outputs.change(wanted, got).sum())
        n += len(batch)
    return total / max(n, 1)
