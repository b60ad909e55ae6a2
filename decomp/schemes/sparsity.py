"""Sparse training of network slimming: a penalty on the scale factors of batch normalisations.

Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan, C. Zhang, "Learning Efficient Convolutional Networks through Network
Slimming", ICCV 2017: the loss becomes loss + λ·Σ|γ| (equation 1) over the scale factors γ of all channels that can be
removed. By the sign rule, λ·sign(γ) is added to the gradient, and small γ oscillate around 0 by about
η·λ / (1 − μ), with the learning rate η and the momentum μ. By the proximal step, γ is moved towards 0 by
η·λ / (1 − μ) after each step and stays at 0 once it is reached (soft threshold).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from decomp.criteria.scale_factors import BATCHNORMS, ScaleFactors, scaled_channels
from decomp.errors import UsageError
from decomp.graph.foreign_batchnorm import NORM
from decomp.graph.tracing import trace

#: Scale factors at the beginning (Liu et al. 2017, section 4.3).
START = 0.5


class ScalePenalty:
    """λ·Σ|γ| over the scale factors of a network that is trained, to be called from a training loop.

    Parameters
    ----------
    network : torch.nn.Module
        A copy is traced to find the scale factors whose channels can be removed.
    input_shape : sequence of int
        (C, H, W) of one image.
    strength : float
        λ.
    leaves : iterable of str
        As for :func:`decomp.graph.tracing.trace`.

    Attributes
    ----------
    factors : tuple of ScaleFactors
        Those that are penalised.
    left_out : dict of str to str
        The other batch normalisations with scale factors, with the reason as the end of a sentence.

    Raises
    ------
    UsageError
        λ is not positive, or the network has no such scale factor.
    TraceError
        The network cannot be traced.
    """

    def __init__(
        self, network: nn.Module, input_shape: Sequence[int], strength: float, *, leaves: Iterable[str] = ()
    ) -> None:
        if not 0 < strength < float("inf"):
            raise UsageError("sparsity", "must be a positive number", got=strength)
        self.strength = strength
        found = scaled_channels(trace(network, leaves=leaves, shape=input_shape), input_shape)
        modules = dict(network.named_modules())
        self.factors: tuple[ScaleFactors, ...] = ()
        self.left_out = dict(found.left_out)
        self._scales: list[nn.Parameter] = []
        for factors in found.factors:
            scale = _scale_of(modules, factors.path)
            if scale is None:
                self.left_out[factors.path] = "is no parameter of the network itself"
                continue
            self.factors += (factors,)
            self._scales.append(scale)
        if not self._scales:
            why = "; ".join(f"{path} {reason}" for path, reason in list(self.left_out.items())[:2])
            rule = "needs batch normalisations whose channels can be removed"
            fix = "train without it, and prune by another criterion, such as l1"
            raise UsageError("sparsity", rule, got=why or "a network without batch normalisations", fix=fix)

    @property
    def n_channels(self) -> int:
        """Number of scale factors that are penalised."""
        return sum(scale.numel() for scale in self._scales)

    def values(self) -> torch.Tensor:
        """The penalised scale factors, concatenated, on the CPU."""
        return torch.cat([scale.detach().cpu().flatten() for scale in self._scales])

    def add_gradients(self) -> None:
        """Add λ·sign(γ) to the gradients, with sign(0) = 0; after gradients were unscaled and before they are used."""
        for scale in self._scales:
            if scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=self.strength)

    @torch.no_grad()
    def shrink(self, step: float) -> None:
        """Move each γ by λ·step towards 0, but not past it: the proximal step of λ·|γ|, after that of the optimizer.

        Parameters
        ----------
        step : float
            Learning rate of the step; with momentum μ divided by 1 − μ, so that λ weighs against the loss as it does
            in the gradient.
        """
        for scale in self._scales:
            scale.copy_(torch.nn.functional.softshrink(scale, self.strength * step))


def start_scales(network: nn.Module, value: float = START) -> int:
    """Set the scale factors of batch normalisations that are untrained, all of them 1, to another value, in place.

    Returns
    -------
    int
        Number of batch normalisations that were set.
    """
    count = 0
    for module in network.modules():
        if isinstance(module, BATCHNORMS) and module.affine and bool((module.weight == 1).all()):
            nn.init.constant_(module.weight, value)
            count += 1
    return count


def _scale_of(modules: dict[str, nn.Module], path: str) -> nn.Parameter | None:
    """The scale factors in the network itself of a normalisation of its traced copy."""
    inner = f".{NORM}"  # a normalisation of another class, with what it has inside
    own = path.removesuffix(inner) if path not in modules and path.endswith(inner) else path
    scale = getattr(modules.get(own), "weight", None)
    return scale if isinstance(scale, nn.Parameter) and scale.requires_grad else None
