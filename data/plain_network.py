"""Plain copies of networks as people hold them: without wrappers, in float32 on the CPU; what has none is refused."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.swa_utils import AveragedModel

from decomp.errors import UsageError
from decomp.modules.copies import computed_tensors

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_QUANTISED = ("torch.ao.nn.quantized", "torch.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def plain_copy(module: nn.Module, name: str) -> nn.Module:
    """A copy in float32, on the CPU, contiguous in memory and in evaluation mode, in which no module is wrapped.

    Parameters
    ----------
    module : torch.nn.Module
        It is not changed.
    name : str
        Of the network, for messages.

    Raises
    ------
    UsageError
        A TorchScript module, that of an exported program, a lazy module that has seen no batch, a quantised one, or
        weights without values.

    Notes
    -----
    Tensors that the network has computed and keeps, such as the weights of ``torch.nn.utils.weight_norm``, are copied
    without their history, which torch does not copy.
    """
    module = unwrapped(module)
    for path, part in module.named_modules():
        _refuse(part, f"{name}, {path}" if path else name)
    copies = computed_tensors(module)
    # The inner ones first, so that the copy of a wrapper finds the copy of what it holds.
    for wrapper in reversed([part for part in module.modules() if _inner(part) is not None]):
        copies[id(wrapper)] = copy.deepcopy(unwrapped(wrapper), copies)
    plain = copy.deepcopy(module, copies).cpu().float().eval()
    return plain.to(memory_format=torch.contiguous_format)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network itself, out of any number of wrappers: DataParallel, torch.compile, AveragedModel."""
    while (inside := _inner(module)) is not None:
        module = inside
    return module


def shared_tensors(module: nn.Module) -> list[str]:
    """Parameters that belong to several modules, as ``"b.weight and c.weight"``; each gets its own in a result."""
    found: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for name, value in part.named_parameters(recurse=False):
            found.setdefault(id(value), []).append(f"{path}.{name}" if path else name)
    return [" and ".join(names) for names in found.values() if len(names) > 1]


def _inner(module: nn.Module) -> nn.Module | None:
    """The module in a wrapper; None for other modules."""
    if "_orig_mod" in module._modules:  # torch.compile
        return module._modules["_orig_mod"]
    return module.module if isinstance(module, _WRAPPERS) else None


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type of most of a network's weights; float32 where it has none."""
    count: Counter[torch.dtype] = Counter()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            count[tensor.dtype] += tensor.numel()
    return count.most_common(1)[0][0] if count else torch.float32


def _refuse(module: nn.Module, name: str) -> None:
    """Refuse a module whose weights cannot be treated."""
    if isinstance(module, torch.jit.ScriptModule):
        fix = "give the module that torch.jit.script or torch.jit.trace was called with"
        raise UsageError(name, "is a TorchScript module, whose layers cannot be exchanged", fix=fix)
    if isinstance(module, fx.GraphModule) and any(isinstance(node.target, OpOverload) for node in module.graph.nodes):
        fix = "give the exported program itself, without .module(), or its file FILE.pt2"
        raise UsageError(name, "is the module of an exported program, which has operations in place of layers", fix=fix)
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        fix = "call the network once on a batch of images first"
        raise UsageError(name, f"is a {type(module).__name__} that has seen no batch yet", fix=fix)
    if type(module).__module__.startswith(_QUANTISED):
        fix = "compress the network in floating point, and quantise the result"
        raise UsageError(name, "is quantised, and its weights cannot be fitted", fix=fix)
    if any(tensor.is_meta for tensor in module.parameters(recurse=False)):
        fix = "load its weights before it is given"
        raise UsageError(name, "has weights without values (they are on the device meta)", fix=fix)
