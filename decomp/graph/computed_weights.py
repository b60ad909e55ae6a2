"""Weights that a module computes from other parameters, computed once: weight and spectral norms, masks, any other.

In evaluation mode such a weight is a constant. ``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune`` compute
it in a hook before each forward pass, ``torch.nn.utils.parametrize`` whenever it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def fix_computed_weights(model: nn.Module, leaves: Iterable[str] = ()) -> list[str]:
    """Put the weights that modules compute in the place of what they are computed from.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; changed in place.
    leaves : iterable of str
        Paths of modules that are left as they are, with all that is in them.

    Returns
    -------
    list of str
        Paths of the modules whose weights were computed.
    """
    in_leaves = {id(module) for leaf in leaves for module in model.get_submodule(leaf).modules()}
    return [
        path
        for path, module in list(model.named_modules())
        if id(module) not in in_leaves and (_fix_parametrized(module) | _fix_hooked(module))
    ]


def _fix_parametrized(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module):
        return False
    assert isinstance(module.parametrizations, nn.ModuleDict)
    with torch.no_grad():
        computed = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    parameters = {name for name, made in module.parametrizations.items() if list(made.parameters())}
    # Torch's remove_parametrizations changes the class, which the copies of a module share with it.
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in computed.items():
        if name in parameters:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)
    return True


def _fix_hooked(module: nn.Module) -> bool:
    hooks: list[Any] = list(module._forward_pre_hooks.values())
    for hook in hooks:
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
    return any(isinstance(hook, (WeightNorm, SpectralNorm, prune.BasePruningMethod)) for hook in hooks)
