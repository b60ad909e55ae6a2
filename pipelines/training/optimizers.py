"""Optimizers of a training: one per kind, with the named parameter groups of the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from decomp.errors import UsageError, near_miss

from .recipe import BIASES, WEIGHTS, ParameterGroup, Recipe, UpdateRule
from .schedules import learning_rate_at

#: Optimizers by kind, each with one entry of ``param_groups`` per group, which has the group's name under "name".
Optimizers = dict[str, Optimizer]


def group_parameters(module: nn.Module, recipe: Recipe) -> dict[str, list[str]]:
    """Names of the trainable parameters in each group that has any, in the order of the module.

    Raises
    ------
    UsageError
        Nothing is trainable, a group of the recipe has no trainable parameter, or two have the same one.
    """
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise UsageError("network", "must have a trainable parameter")
    groups: dict[str, list[str]] = {name: [] for name in recipe.rules()}
    for name, parameter in parameters.items():
        owners = [group.name for group in recipe.groups if _contains(group, name, parameter)]
        if len(owners) > 1:
            raise UsageError(f"parameter {name}", "must be in one group", got=" and ".join(owners))
        default = WEIGHTS if parameter.dim() >= 2 else BIASES
        groups[owners[0] if owners else default].append(name)
    for group in recipe.groups:
        if not groups[group.name]:
            given = () if callable(group.parameters) else group.parameters
            fix = next(filter(None, (near_miss(pattern, list(parameters)) for pattern in given)), None)
            rule = "must have a trainable parameter of the network"
            raise UsageError(f"group {group.name}", rule, got=", ".join(given) or None, fix=fix)
    return {name: members for name, members in groups.items() if members}


def make_optimizers(module: nn.Module, recipe: Recipe) -> Optimizers:
    """Optimizers by kind for all trainable parameters of a module, in the groups of :func:`group_parameters`."""
    parameters, rules = dict(module.named_parameters()), recipe.rules()
    param_groups: dict[str, list[dict[str, Any]]] = {}
    for name, members in group_parameters(module, recipe).items():
        settings = {"params": [parameters[member] for member in members], "name": name, **_settings(rules[name])}
        param_groups.setdefault(rules[name].optimizer, []).append(settings)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    return {kind: kinds[kind](groups) for kind, groups in param_groups.items()}


def named_groups(optimizers: Optimizers) -> Iterator[dict[str, Any]]:
    """The entries of ``param_groups`` of all optimizers."""
    for optimizer in optimizers.values():
        yield from optimizer.param_groups


def set_learning_rates(optimizers: Optimizers, rules: dict[str, UpdateRule], step: float, steps_per_epoch: int) -> None:
    """Give each group the rate of its schedule for a step, counted from 0 over the whole training."""
    for group in named_groups(optimizers):
        group["lr"] = learning_rate_at(rules[group["name"]], step, steps_per_epoch)


def buffers_of(optimizers: Optimizers, parameter: nn.Parameter) -> list[torch.Tensor]:
    """What optimizers remember of a parameter element by element (momentum, Adam's two moments), to change in place.

    Returns
    -------
    list of torch.Tensor
        Each of the parameter's shape; empty before its first step and for plain SGD.
    """
    states: Iterable[dict[str, Any]] = (
        optimizer.state[parameter] for optimizer in optimizers.values() if parameter in optimizer.state
    )
    values = (value for state in states for key, value in state.items() if key != "step")
    return [value for value in values if isinstance(value, torch.Tensor) and value.shape == parameter.shape]


def _contains(group: ParameterGroup, name: str, parameter: nn.Parameter) -> bool:
    if callable(group.parameters):
        return bool(group.parameters(name, parameter))
    return any(fnmatchcase(name, pattern) for pattern in group.parameters)


def _settings(rule: UpdateRule) -> dict[str, Any]:
    settings: dict[str, Any] = {"lr": rule.learning_rate, "weight_decay": rule.weight_decay}
    if rule.optimizer == "sgd":
        settings |= {"momentum": rule.momentum, "nesterov": rule.nesterov and rule.momentum > 0}
    return settings
