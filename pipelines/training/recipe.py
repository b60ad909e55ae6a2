"""Training recipe: epochs, optimizers, learning rates and schedules, validated when made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from decomp.errors import UsageError, near_miss

SCHEDULES = ("cosine", "constant", "milestones")
OPTIMIZERS = ("sgd", "adam")
#: Groups of all parameters that no group of the recipe takes: those of two dimensions and more, and the others.
WEIGHTS, BIASES = "weights", "biases"


@dataclass(frozen=True)
class UpdateRule:
    """Optimizer, learning rate and schedule of one group of parameters; see :class:`Recipe` for the fields.

    Raises
    ------
    UsageError
        A value is out of range; the error names it, and the group unless it is a default one.
    """

    group: str
    epochs: int
    learning_rate: float
    optimizer: str
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: str
    warmup_epochs: float
    milestones: tuple[int, ...]
    gamma: float | tuple[float, ...]

    def __post_init__(self) -> None:
        prefix = "" if self.group in (WEIGHTS, BIASES) else f"group {self.group}: "
        for name, value, possible in (
            ("schedule", self.schedule, SCHEDULES),
            ("optimizer", self.optimizer, OPTIMIZERS),
        ):
            if value not in possible:
                rule = "must be one of " + ", ".join(possible)
                raise UsageError(prefix + name, rule, got=value, fix=near_miss(str(value), possible))
        for name, rule, holds in (*self._ranges(), *self._milestone_rules()):
            if not holds:
                raise UsageError(prefix + name, rule, got=getattr(self, name.replace(" ", "_")))

    @property
    def gammas(self) -> tuple[float, ...]:
        """The factor of each milestone."""
        return self.gamma if isinstance(self.gamma, tuple) else (self.gamma,) * len(self.milestones)

    def _ranges(self) -> Iterator[tuple[str, str, bool]]:
        factors = self.gamma if isinstance(self.gamma, tuple) else (self.gamma,)
        yield "learning rate", "must be a positive number", 0 < self.learning_rate < math.inf
        yield "warmup epochs", "must not be negative", 0 <= self.warmup_epochs < math.inf
        yield "momentum", "must be in 0..1 (1 excluded)", 0 <= self.momentum < 1
        yield "weight decay", "must not be negative", 0 <= self.weight_decay < math.inf
        yield "gamma", "must not be negative", all(0 <= factor < math.inf for factor in factors)

    def _milestone_rules(self) -> Iterator[tuple[str, str, bool]]:
        at = self.milestones
        if self.schedule != "milestones":
            yield "milestones", f"have no effect with the schedule {self.schedule} and must be left out", not at
            return
        increasing = bool(at) and all(earlier < later for earlier, later in zip((0, *at), (*at, self.epochs)))
        rule = f"must be increasing whole numbers between 0 and {self.epochs}, both excluded"
        yield "milestones", rule, increasing and all(isinstance(epoch, int) for epoch in at)
        rule = f"must be one factor or one for each of the {len(at)} milestones"
        yield "gamma", rule, len(self.gammas) == len(at)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained with settings of their own.

    Parameters
    ----------
    name : str
        Names the group in the history, in checkpoints and for hooks.
    parameters : tuple of str or callable
        Names of parameters as ``named_parameters`` gives them, with ``*`` and ``?`` as in file names; or
        ``parameters(name, parameter)`` that returns True for those in the group.
    optimizer, learning_rate, momentum, nesterov, weight_decay, schedule, warmup_epochs, milestones, gamma : optional
        As in :class:`Recipe`; the recipe's own where None. Weight decay acts on all parameters of the group.
    """

    name: str
    parameters: tuple[str, ...] | Callable[[str, Any], bool]
    optimizer: str | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    warmup_epochs: float | None = None
    milestones: tuple[int, ...] | None = None
    gamma: float | tuple[float, ...] | None = None

    def changes(self) -> dict[str, Any]:
        """The settings that are not the recipe's, by name."""
        own = {name: value for name, value in vars(self).items() if name not in ("name", "parameters")}
        changes = {name: value for name, value in own.items() if value is not None}
        if self.schedule not in (None, "milestones"):
            changes.setdefault("milestones", ())  # the recipe's belong to the recipe's schedule
        return changes


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training besides the data, the network, the loss and the hooks.

    Parameters
    ----------
    epochs : int
        Passes over the training images, at least 1.
    learning_rate : float
        Peak learning rate, > 0.
    batch_size : int
        Images per step, at least 1.
    schedule : {'cosine', 'constant', 'milestones'}
        See :func:`decomp.pipelines.training.schedules.learning_rate_at`.
    warmup_epochs : float
        Epochs (also a fraction) during which the rate rises linearly to `learning_rate`.
    momentum, nesterov, weight_decay :
        As in ``torch.optim.SGD``; momentum 0 is plain SGD, for which `nesterov` has no effect. Weight decay acts on
        parameters of two dimensions and more, not on biases and batch normalisations. A scheme that decays by hand
        sets it to 0 and adds to the gradients in a hook.
    clip_norm : float, optional
        The gradient of all parameters together is scaled down to at most this Euclidean norm.
    seed : int
        Determines the order of images, augmentation and dropout, separately in each epoch.
    optimizer : {'sgd', 'adam'}
        Adam has PyTorch's moments (0.9, 0.999); `momentum` and `nesterov` have no effect on it.
    milestones : tuple of int
        Epochs, counted from 0, at whose start the rate is multiplied by `gamma`; for the schedule 'milestones' alone.
    gamma : float or tuple of float
        One factor for all milestones or one for each.
    groups : tuple of ParameterGroup
        Parameters with settings of their own. All others follow the recipe, in the groups 'weights' and 'biases'.

    Raises
    ------
    UsageError
        A value is out of range; the error names it, and the group it belongs to.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 128
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    seed: int = 0
    optimizer: str = "sgd"
    milestones: tuple[int, ...] = ()
    gamma: float | tuple[float, ...] = 0.1
    groups: tuple[ParameterGroup, ...] = ()

    def __post_init__(self) -> None:
        for name, rule, holds in (
            ("epochs", "must be at least 1", self.epochs >= 1),
            ("batch size", "must be at least 1", self.batch_size >= 1),
            ("clip norm", "must be positive", self.clip_norm is None or self.clip_norm > 0),
        ):
            if not holds:
                raise UsageError(name, rule, got=getattr(self, name.replace(" ", "_")))
        names = [WEIGHTS, BIASES]
        for group in self.groups:
            if not group.name or group.name in names:
                raise UsageError("parameter group", f"must have a name other than {', '.join(names)}", got=group.name)
            names.append(group.name)
        self.rules()

    def rules(self) -> dict[str, UpdateRule]:
        """The update rule of every group by its name, 'weights' and 'biases' first."""
        shared = {field.name: getattr(self, field.name) for field in fields(UpdateRule) if field.name != "group"}
        weights = UpdateRule(group=WEIGHTS, **shared)
        rules = {WEIGHTS: weights, BIASES: replace(weights, group=BIASES, weight_decay=0.0)}
        for group in self.groups:
            rules[group.name] = replace(weights, group=group.name, **group.changes())
        return rules

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, without the groups: which parameters are in them depends on the network."""
        return {name: value for name, value in vars(self).items() if name != "groups"}
