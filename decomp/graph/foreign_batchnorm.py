"""Batch normalisations under other names: libraries have classes of their own, often with the activation inside.

Followed into, such a class ends in functions on its own tensors, which can be neither folded nor narrowed. What it
computes is what ``torch.nn.BatchNorm2d`` and then its submodules compute, so these are put in its place.
"""

import copy
from collections import OrderedDict

import torch
from torch import nn

from decomp.modules.replace import set_module

NORM = "norm"
_TENSORS = {"weight", "bias", "running_mean", "running_var"}
_SAME = 1e-5


def replace_foreign_batchnorms(model, leaves=()):
    """Put plain modules in the place of all other batch normalisations of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    leaves : iterable of str
        Paths of modules that are left as they are, with all that is in them.

    Returns
    -------
    list of str
        Paths of the modules that were exchanged.
    """
    within = tuple(f"{leaf}." for leaf in leaves)
    made, exchanged = {}, []
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not path or path in leaves or path.startswith(within):
            continue
        if id(module) not in made:
            made[id(module)] = as_batchnorm(module)
        if made[id(module)] is not None:
            set_module(model, path, made[id(module)])
            exchanged.append(path)
    return exchanged


def as_batchnorm(module):
    """What computes the same as a batch normalisation of another class, or None.

    Returns
    -------
    torch.nn.BatchNorm2d, torch.nn.Sequential or None
        A sequence where the class has submodules: the normalisation, named `NORM`, then these in their order. That
        the outputs are the same is tried on random numbers: what a class does besides can be known in no other way.
    """
    if not _may_be_other(module) or NORM in module._modules:
        return None
    norm = _with_tensors_of(module)
    children = OrderedDict(copy.deepcopy(module).named_children())
    candidate = nn.Sequential(OrderedDict({NORM: norm, **children})) if children else norm
    candidate.eval()
    mean = module.running_mean
    x = torch.randn(2, len(mean), 3, 3, generator=torch.Generator().manual_seed(0)).to(mean)
    # Deviations of the size that is met there: far from the mean an activation could hide everything.
    x = mean[:, None, None] + x * module.running_var.sqrt()[:, None, None]
    try:
        with torch.no_grad():
            wanted, got = copy.deepcopy(module).eval()(x.clone()), candidate(x.clone())
        same = got.shape == wanted.shape and (got - wanted).abs().max() <= _SAME * wanted.abs().max()
    except Exception:  # it takes other inputs, or has conditions of its own: not what is looked for
        return None
    return candidate if same else None


def _may_be_other(module):
    own = {**module._parameters, **module._buffers}
    found = {name for name, tensor in own.items() if tensor is not None}
    if type(module) is nn.BatchNorm2d or isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return False
    if not {"running_mean", "running_var"} <= found or found - _TENSORS - {"num_batches_tracked"}:
        return False
    shapes = {tuple(own[name].shape) for name in found & _TENSORS}
    return len(shapes) == 1 and len(next(iter(shapes))) == 1 and isinstance(getattr(module, "eps", None), float)


def _with_tensors_of(module):
    weight, bias, mean = getattr(module, "weight", None), getattr(module, "bias", None), module.running_mean
    norm = nn.BatchNorm2d(len(mean), eps=module.eps, device=mean.device, dtype=mean.dtype)
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(module.running_var)
        if weight is not None:
            norm.weight.copy_(weight)
        if bias is not None:
            norm.bias.copy_(bias)
    return norm
