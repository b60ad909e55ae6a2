r"""Output metric: second moments of the output's gradient, which weigh errors of a layer by their effect.

An error e in the responses of a layer changes the network's output by about eᵀFe, with F the second moment of the
gradient of the output at these responses. For class scores the loss is the negative log-likelihood of a label drawn
from the network's own softmax, so F is a block of the Fisher information, and eᵀFe is twice the Kullback–Leibler
divergence to second order (Amari 1998). No labels are needed. For values it is their product with a random direction.

Several outputs add up as in :mod:`decomp.execution.output_change`: the gradient of class scores is divided by √(2B),
that of D values by √(DB), with B the spread of the output. All draws are independent and of mean zero, so that F is the
sum of the outputs' own, and eᵀFe their number times the change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decomp import seeds
from decomp.exact_sum import ExactSum
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output, logits
from decomp.graph.network_graph import NetworkGraph

# Added to the diagonal, relative to its mean: directions without any gradient still count a little.
DAMPING = 0.1


def output_metrics(
    graph: NetworkGraph,
    batches: Iterable[Tensor | int],
    outputs: Outputs,
    seed: int = 0,
    *,
    summed: Callable[[ExactSum], Tensor] = ExactSum.rounded,
) -> dict[str, Tensor]:
    """The output metric of every layer of a network.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
        In evaluation mode; hooks are removed again.
    batches : iterable of torch.Tensor or int
        Images (m, C, H, W) on the network's device; or the number of images of a batch that another holder has.
    outputs : decomp.execution.output_change.Outputs
        Of the network, with their spreads.
    seed : int
        For the labels drawn, or the directions where the output is not class scores.
    summed : callable
        The sum over all holders of images; this one has all by default.

    Returns
    -------
    dict of str to torch.Tensor
        (n, n) for each layer that is fitted, float64, symmetric, positive definite, mean diagonal 1. None for layers
        between which and the images, or the output, there is a step without a gradient, such as a comparison.
    """
    sums: dict[str, ExactSum] = {}
    hooks = []
    for layer in graph.layers:
        if layer.fitted:
            module = graph.module.get_submodule(layer.name)
            hooks.append(module.register_forward_hook(_gather(sums, layer.name)))
    generator = seeds.generator(seed, "output metric")
    try:
        for images in batches:
            if isinstance(images, int):
                for entry in outputs.each:
                    _drawn(entry, (images, *entry.shape), generator)
                continue
            # A leaf that requires a gradient, so that every response has one even if no parameter requires its own.
            leaf = images.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                loss = _loss(outputs, outputs.named(graph.module(leaf), len(leaf)), generator)
                if loss.requires_grad:
                    torch.autograd.grad(loss, leaf, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _damped(total) for name, total in _of_all(sums, graph, summed).items()}


def _of_all(sums: dict[str, ExactSum], graph: NetworkGraph, summed: Callable[[ExactSum], Tensor]) -> dict[str, Tensor]:
    """Sums over all holders of images, of the layers that have a gradient in one of them."""
    device = next(graph.module.parameters()).device
    total = {}
    for layer in graph.layers:
        if not layer.fitted:
            continue
        own, present = sums.get(layer.name), ExactSum((), device)
        present.add(torch.tensor(float(own is not None), device=device))
        if float(summed(present)):
            total[layer.name] = summed(own or ExactSum((layer.out_channels, layer.out_channels), device))
    return total


def _gather(sums: dict[str, ExactSum], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A forward hook that adds the second moment of the gradient at the layer's output to ``sums[name]``."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            rows = gradient.detach().flatten(2).transpose(1, 2).flatten(0, 1) if gradient.dim() == 4 else gradient
            product = rows.T @ rows
            sums.setdefault(name, ExactSum(product.shape, product.device)).add(product)

        # On the output of the layer, before a later node changes it in place.
        if output.requires_grad:
            output.register_hook(add)

    return hook


def _loss(outputs: Outputs, tensors: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Scalar whose gradient's second moment is the metric at the outputs."""
    losses = [_loss_of(entry, tensors[entry.name], generator) for entry in outputs.each]
    if len(losses) == 1:
        return losses[0]  # the metric has no scale
    weights = [(entry.spread * (2 if entry.kind == "scores" else _entries(entry))) ** -0.5 for entry in outputs.each]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses)]).sum()


def _entries(output: Output) -> int:
    return max(math.prod(output.shape), 1)


def _loss_of(output: Output, value: Tensor, generator: torch.Generator) -> Tensor:
    if output.kind == "scores":
        scores = logits(value, output)
        below = scores.detach().double().softmax(1).cumsum(1).cpu() < _drawn(output, scores.shape, generator)
        labels = below.sum(1).clamp_max(scores.shape[1] - 1)
        return F.cross_entropy(scores, labels.to(scores.device), reduction="sum")
    return (value * _drawn(output, value.shape, generator).to(value)).sum()


def _drawn(output: Output, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random numbers for a value of an output."""
    if output.kind == "scores":
        # One number per image for any batch size: torch.multinomial draws others for other batches.
        return torch.rand(shape[0], 1, generator=generator, dtype=torch.float64)
    return torch.randn(tuple(shape), generator=generator)


def _damped(total: Tensor) -> Tensor:
    """Mean diagonal 1 after damping; the identity where there is no gradient at all."""
    total = (total + total.T) / 2
    scale = total.diagonal().mean()
    eye = torch.eye(len(total), dtype=total.dtype, device=total.device)
    if not scale > 0:
        return eye
    return (total / scale + DAMPING * eye) / (1 + DAMPING)
