"""Batch normalisation classes of other libraries, exchanged for torch.nn.BatchNorm2d.

Libraries have classes of their own, often with the activation inside. Tracing into such a class ends in functions on
its own tensors, which can be neither folded nor narrowed. ``torch.nn.BatchNorm2d`` followed by the class's submodules
computes the same, so these are put in its place.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn

from decomp.modules.replace import set_modules

NORM = "norm"
_TENSORS = {"weight", "bias", "running_mean", "running_var"}
_TOLERANCE = 1e-5


def replace_foreign_batchnorms(model: nn.Module, leaves: Iterable[str] = ()) -> list[str]:
    """Exchange all batch normalisations of other classes in a model for torch's own, in place.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    leaves : iterable of str
        Paths of modules that are left as they are, with all that is in them.

    Returns
    -------
    list of str
        Paths of the modules that were exchanged, the first one of a module that has several.
    """
    leaves = tuple(leaves)
    in_leaves = {id(module) for leaf in leaves for module in model.get_submodule(leaf).modules()}
    found = {
        path: replacement
        for path, module in list(model.named_modules())
        if path and id(module) not in in_leaves and (replacement := as_batchnorm(module)) is not None
    }
    set_modules(model, found)
    return list(found)


def as_batchnorm(module: nn.Module) -> nn.BatchNorm2d | nn.Sequential | None:
    """Torch's own modules that compute the same as a batch normalisation of another class.

    Returns
    -------
    torch.nn.BatchNorm2d, torch.nn.Sequential or None
        A sequence where the class has submodules: the normalisation, named `NORM`, then these in their order. None
        where the module is torch's own or no batch normalisation. The outputs are compared on random numbers, as
        nothing else shows that a class computes nothing besides.
    """
    if not _has_batchnorm_tensors(module) or NORM in module._modules:
        return None
    norm = _batchnorm_with_tensors_of(module)
    children = OrderedDict((k, v) for k, v in copy.deepcopy(module)._modules.items() if v is not None)
    candidate = nn.Sequential(OrderedDict({NORM: norm, **children})) if children else norm
    candidate.eval()
    mean, variance = _tensor(module, "running_mean"), _tensor(module, "running_var")
    x = torch.randn(2, len(mean), 3, 3, generator=torch.Generator().manual_seed(0)).to(mean)
    # Deviations of the size that occurs there: far from the mean an activation could hide everything.
    x = mean[:, None, None] + x * variance.sqrt()[:, None, None]
    try:
        with torch.no_grad():
            wanted, got = copy.deepcopy(module).eval()(x.clone()), candidate(x.clone())
        same = got.shape == wanted.shape and (got - wanted).abs().max() <= _TOLERANCE * wanted.abs().max()
    except Exception:  # it takes other inputs, or has conditions of its own: no batch normalisation
        return None
    return candidate if same else None


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    tensor = getattr(module, name)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _has_batchnorm_tensors(module: nn.Module) -> bool:
    """Whether a module of another class than torch's own holds a batch normalisation's tensors, and no others."""
    own = [*module._parameters.items(), *module._buffers.items()]
    found = {name: tensor for name, tensor in own if tensor is not None}
    if type(module) is nn.BatchNorm2d or isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return False
    if not {"running_mean", "running_var"} <= found.keys() or found.keys() - _TENSORS - {"num_batches_tracked"}:
        return False
    shapes = {tuple(tensor.shape) for name, tensor in found.items() if name in _TENSORS}
    return len(shapes) == 1 and len(next(iter(shapes))) == 1 and isinstance(getattr(module, "eps", None), float)


def _batchnorm_with_tensors_of(module: nn.Module) -> nn.BatchNorm2d:
    mean, eps = _tensor(module, "running_mean"), module.eps
    assert isinstance(eps, float)
    norm = nn.BatchNorm2d(len(mean), eps=eps, device=mean.device, dtype=mean.dtype)
    with torch.no_grad():
        for name in sorted(_TENSORS):
            if getattr(module, name, None) is not None:
                _tensor(norm, name).copy_(_tensor(module, name))
    return norm
