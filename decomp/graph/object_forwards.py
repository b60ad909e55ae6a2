"""Forward passes and hooks that a module has as an object, beside the forward pass of its class."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable
from typing import Any

from torch import nn


def has_own_forward(module: nn.Module) -> bool:
    """Whether the object has a forward pass of its own: `module.forward = ...`."""
    return "forward" in vars(module)


def class_with_forward(module: nn.Module) -> None:
    """Give a module whose object has a forward pass of its own a class with this forward pass, in place.

    Tracing follows the forward pass of the class of a network.
    """
    if not has_own_forward(module):
        return
    given: Any = vars(module).pop("forward")
    if isinstance(given, types.MethodType) and given.__self__ is module:
        forward = given.__func__
    else:

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return given(*args, **kwargs)

        parameters = list(inspect.signature(given).parameters.values())
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        own = [p.replace(name="given_self") if p.name == "self" else p for p in parameters]
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        kind = first.kind if any(p.kind is first.kind for p in own) else positional
        forward.__signature__ = inspect.Signature([first.replace(kind=kind), *own])  # type: ignore[attr-defined]
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def drop_hooks(model: nn.Module, leaves: Iterable[str] = ()) -> None:
    """Remove the hooks of the modules of torch.nn, in place: a network that is written as data has none.

    Those that compute the weights of a module stay, and so do those in modules that are left as they are.
    """
    in_leaves = {id(module) for leaf in leaves for module in model.get_submodule(leaf).modules()}
    for module in model.modules():
        plain = type(module).__module__.startswith("torch.nn") and not list(module.children())
        complete = all(name in module._parameters for name in ("weight", "bias") if hasattr(module, name))
        if plain and complete and id(module) not in in_leaves:
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()


def hooked(model: nn.Module) -> list[str]:
    """Paths of the modules with hooks on their forward pass; '' is the network itself."""
    return [path for path, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
