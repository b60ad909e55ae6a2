"""Constructor arguments of torch.nn modules, read from their instances."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from decomp.errors import DecompError

_TAKES_MORE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_ACTIVATIONS = {F.relu: "relu", F.gelu: "gelu"}


def _activation(layer: Any) -> Any:
    return _ACTIVATIONS.get(layer.activation, layer.activation)


#: Arguments that an instance does not keep under their own names.
_TRANSFORMER: dict[str, Callable[[Any], Any]] = {
    "d_model": lambda m: m.linear1.in_features,
    "nhead": lambda m: m.self_attn.num_heads,
    "dim_feedforward": lambda m: m.linear1.out_features,
    "dropout": lambda m: m.dropout.p,
    "activation": _activation,
    "layer_norm_eps": lambda m: m.norm1.eps,
    "batch_first": lambda m: m.self_attn.batch_first,
    "bias": lambda m: m.linear1.bias is not None,
}
_KEPT_OTHERWISE: dict[type[nn.Module], Mapping[str, Callable[[Any], Any]]] = {
    nn.MultiheadAttention: {
        "bias": lambda m: m.in_proj_bias is not None,
        "add_bias_kv": lambda m: m.bias_k is not None,
    },
    nn.TransformerEncoderLayer: _TRANSFORMER,
    nn.TransformerDecoderLayer: _TRANSFORMER,
    nn.RNN: {"nonlinearity": lambda m: m.nonlinearity},
    nn.AdaptiveLogSoftmaxWithLoss: {"cutoffs": lambda m: m.cutoffs[:-1], "head_bias": lambda m: m.head_bias},
}
#: Arguments of the base class that a class gives itself or does not take.
_GIVEN_BY_CLASS = {nn.LSTM: {"mode"}, nn.GRU: {"mode", "proj_size"}, nn.RNN: {"mode", "proj_size"}}


def arguments_of(module: nn.Module, path: str) -> dict[str, Any]:
    """Arguments from which the class of a module builds one of the same shape.

    Parameters
    ----------
    module : torch.nn.Module
    path : str
        For messages.

    Raises
    ------
    DecompError
        It does not keep an argument without a default.
    """
    kind = type(module)
    otherwise, arguments = _KEPT_OTHERWISE.get(kind, {}), {}
    for name, parameter in _parameters(kind).items():
        if name in otherwise:
            arguments[name] = otherwise[name](module)
        elif hasattr(module, name):
            value = getattr(module, name)
            arguments[name] = value is not None and value is not False if name == "bias" else value
        elif parameter.default is parameter.empty:
            raise DecompError(path, f"{kind.__name__} does not keep its argument '{name}'", fix=leaf_advice(path))
    return arguments


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Parameters of the constructor; where it takes any, also those of the next base class."""
    found: dict[str, inspect.Parameter] = {}
    given = _GIVEN_BY_CLASS.get(kind, set())
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in own:
            if parameter.kind not in _TAKES_MORE and parameter.name not in {"device", "dtype"} | given:
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind in _TAKES_MORE for parameter in own):
            break
    for name in _KEPT_OTHERWISE.get(kind, {}):
        found.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    return found


def require_same(module: nn.Module, build: Callable[[], nn.Module], path: str) -> None:
    """Refuse a module whose description builds another one.

    Parameters
    ----------
    module : torch.nn.Module
    build : callable
        Builds it from its description; called without memory for the weights.
    path : str
        For messages.

    Raises
    ------
    DecompError
    """
    try:
        with torch.device("meta"):
            again = build()
    except Exception as error:
        reason = error.rule if isinstance(error, DecompError) else f"{type(error).__name__}: {error}"
    else:
        shapes = [{k: tuple(v.shape) for k, v in each.state_dict().items()} for each in (module, again)]
        if shapes[0] == shapes[1] and repr(module) == repr(again):
            return
        reason = "another one is built from it"
    rule = f"this {type(module).__name__} does not come back from its arguments ({reason})"
    raise DecompError(path, rule, fix=leaf_advice(path))


def leaf_advice(path: str) -> str:
    """The way out for a module that data cannot describe."""
    return f"leave it as it is with --leaf {path}"
