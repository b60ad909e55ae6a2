"""Functions that the structure of a network may call, by name: nothing in the list opens a file or runs other code."""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils import rnn
from torch.overrides import get_overridable_functions

from decomp.modules.entries import with_entries

_OPERATORS = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pos", "abs", "pow", "matmul", "getitem", "iadd", "isub",
    "imul", "itruediv", "ifloordiv", "ipow", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "invert",
    "lshift", "rshift", "contains",
)  # fmt: skip
_BUILTINS = ("getattr", "round", "abs", "int", "float", "bool", "len", "max", "min", "sum", "slice")
_MATH = (
    "ceil", "floor", "trunc", "sqrt", "isqrt", "exp", "log", "log2", "log10", "pow", "fabs", "fmod", "copysign", "sin",
    "cos", "tan", "atan", "atan2", "tanh", "prod", "hypot", "gcd",
)  # fmt: skip
# Torch does not count these among the functions that dispatch on their arguments.
_FACTORIES = (
    "arange", "eye", "full", "linspace", "logspace", "ones", "tensor", "tril_indices", "triu_indices", "zeros",
    "full_like", "ones_like", "zeros_like", "_assert", "is_tensor",
)  # fmt: skip
_SEQUENCES = ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence", "pad_sequence")
# Functions that torchvision keeps whole in a trace (torch.fx.wrap); imported only where a network calls one.
_WRAPPED = (
    "torchvision.models.swin_transformer._get_relative_position_bias",
    "torchvision.models.swin_transformer._patch_merging_pad",
    "torchvision.models.swin_transformer.shifted_window_attention",
)
ATTRIBUTES = (
    "shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag", "values", "indices", "is_cuda",
    "requires_grad", "layout",
)  # fmt: skip


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Names of the functions a file may call, and the functions."""
    names: dict[str, Callable[..., Any]] = {f"operator.{name}": getattr(operator, name) for name in _OPERATORS}
    names |= {f"builtins.{name}": getattr(builtins, name) for name in _BUILTINS}
    names |= {f"math.{name}": getattr(math, name) for name in _MATH}
    overridable = get_overridable_functions()
    for space in ("torch", "torch.fft", "torch.linalg", "torch.special"):
        module = importlib.import_module(space)
        allowed = set(overridable.get(module, ()))
        for name in dir(module):
            function = getattr(module, name)
            if not name.startswith("_") and callable(function) and function in allowed:
                names[f"{space}.{name}"] = function
    names |= {f"torch.{name}": getattr(torch, name) for name in _FACTORIES}
    # What torch.meshgrid calls for a list of tensors.
    names["torch._VF.meshgrid"] = torch._C._VariableFunctions.meshgrid  # type: ignore[attr-defined]
    for name in dir(F):
        function = getattr(F, name)
        if not name.startswith("_") and callable(function) and not inspect.isclass(function):
            names[f"torch.nn.functional.{name}"] = function
    names |= {f"torch.nn.utils.rnn.{name}": getattr(rnn, name) for name in _SEQUENCES}
    names["decomp.with_entries"] = with_entries
    return names


@functools.cache
def _names() -> dict[Callable[..., Any], str]:
    """The first name of every allowed function."""
    names: dict[Callable[..., Any], str] = {}
    for name, function in _functions().items():
        names.setdefault(function, name)
    return names


def name_of(function: Any) -> str | None:
    """The name of a function, or None where it is not allowed."""
    full = full_name(function)
    return _names().get(function) or (full if full in _WRAPPED else None)


def function_of(name: str) -> Callable[..., Any] | None:
    """The function of a name, or None where it is not allowed."""
    if name in _WRAPPED:
        module, _, function = name.rpartition(".")
        return getattr(importlib.import_module(module), function)
    return _functions().get(name)


def full_name(function: Any) -> str:
    """Module and name of a function, for messages too."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return f"{module}.{name}" if module else name
