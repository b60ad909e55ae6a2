"""Counted cost of a network: multiply-accumulates and parameters of the network as it stands.

One multiply-accumulate is one multiplication and one addition. Counted are convolutions (also transposed), linear,
bilinear and recurrent layers, and products of two activations as in attention, for one image; biases, normalisation,
activations, elementwise products and pooling are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from decomp.cost.products import ATTENTION, ProductCounter

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FUNCTIONAL = "(functional convolutions)"
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Each weight is multiplied once for each position (step of a sequence) of the input.
_ONCE_A_POSITION = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
COUNTED = (*_CONVS, *_TRANSPOSED, nn.Linear, *_ONCE_A_POSITION)


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one image.

    Attributes
    ----------
    macs : int
        Multiply-accumulates of all that is counted.
    params : int
        Number of parameters, each counted once.
    per_layer : dict of str to int
        Multiply-accumulates by module path; of convolutions that belong to no module (weights that are computed in
        the forward pass, such as standardised ones), under `FUNCTIONAL`; of products outside of such modules, under
        `PRODUCTS` and `LINEAR_CALLS` of :mod:`decomp.cost.products`.
    """

    macs: int
    params: int
    per_layer: dict[str, int]


def cost(module: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Count by running one image of zeros through the network with hooks, which are removed again.

    Parameters
    ----------
    module : torch.nn.Module
    input_shape : sequence of int
        (C, H, W).

    Returns
    -------
    Cost
    """
    per_layer: dict[str, int] = {}

    def counter(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            functional.inside -= 1
            products.inside -= 1
            x = inputs[0] if inputs else named["input"]
            per_layer[name] = per_layer.get(name, 0) + module_macs(layer, x, output)

        return hook

    def enter(*_: object) -> None:
        functional.inside += 1
        products.inside += 1

    functional, products = _FunctionalConvolutions(per_layer), ProductCounter(per_layer, module.parameters())
    layers = {name: m for name, m in module.named_modules() if isinstance(m, COUNTED)}
    hooks = [m.register_forward_hook(counter(name), with_kwargs=True) for name, m in layers.items()]
    hooks += [m.register_forward_pre_hook(enter) for m in layers.values()]
    for name, m in module.named_modules():
        hooks += products.scope(name, m) if isinstance(m, ATTENTION) else []
    was_training = module.training
    parameter = next(module.parameters(), torch.zeros(()))
    try:
        with torch.no_grad(), functional, products:
            module.eval()(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return Cost(sum(per_layer.values()), sum(p.numel() for p in module.parameters()), per_layer)


class _FunctionalConvolutions(TorchFunctionMode):
    """Counts convolutions outside of the modules that are counted by hooks."""

    names = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

    def __init__(self, per_layer: dict[str, int]) -> None:
        super().__init__()
        self.per_layer, self.inside = per_layer, 0
        self.functions = {getattr(place, name) for place in (F, torch) for name in self.names}

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function in self.functions and not self.inside:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            # (n, c / groups, ...): each output entry sums up one kernel of all the channels of its group. A transposed
            # one has (c, n / groups, ...): each input entry is spread by one kernel for all the outputs of its group.
            spread = args[0] if args else kwargs["input"]
            over = spread if "transpose" in function.__name__ else output
            macs = over.numel() * weight[0].numel()
            self.per_layer[FUNCTIONAL] = self.per_layer.get(FUNCTIONAL, 0) + macs
        return output


def module_macs(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """Multiply-accumulates of a module of `COUNTED` for input x and output y, all images together."""
    if isinstance(layer, nn.Linear):
        return y.numel() * layer.in_features
    if isinstance(layer, _ONCE_A_POSITION):
        x = x.data if isinstance(x, PackedSequence) else x
        weights = sum(p.numel() for name, p in layer.named_parameters() if name.startswith("weight"))
        return weights * (x.numel() // x.shape[-1])
    assert isinstance(layer, (*_CONVS, *_TRANSPOSED))
    kernel = 1
    for size in layer.kernel_size:
        kernel *= size
    if isinstance(layer, _TRANSPOSED):
        return x.numel() * layer.out_channels // layer.groups * kernel
    return y.numel() * layer.in_channels // layer.groups * kernel
