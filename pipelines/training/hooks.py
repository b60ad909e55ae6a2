"""Hooks of the training loop: callables at fixed places, with a state that checkpoints keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decomp.errors import UsageError, near_miss

if TYPE_CHECKING:
    from .loop import Training

PLACES = ("before_epoch", "after_backward", "after_step", "after_epoch", "after_save")
STATE = ("state_dict", "load_state_dict")


@dataclass(frozen=True)
class Hooks:
    """Callables that get the :class:`~decomp.pipelines.training.loop.Training` at fixed places; each may be None.

    They may change the module's parameters and buffers, gradients and the optimizers in place, but not put other
    parameters in.

    Parameters
    ----------
    before_epoch : callable, optional
        Before each epoch; ``training.epoch`` counts the epochs that are finished. It may end the training there by
        ``training.stopped = True``.
    after_backward : callable, optional
        Sees the gradients before they are clipped and applied.
    after_step : callable, optional
        Sees the new weights.
    after_epoch : callable, optional
        After an epoch's last step, before validation.
    after_save : callable, optional
        For files that follow from the checkpoint. Called when an epoch is recorded and saved, and also when a
        checkpoint was read: the process that wrote it may have been killed before it wrote them.
    state_dict : callable, optional
        Returns all that the callables above remember from one call to the next, as nested dicts and lists of plain
        values and tensors; also the state of a ``torch.Generator`` they draw from, unless each draw derives its own
        from the epoch. Saved with every checkpoint.
    load_state_dict : callable, optional
        Gets the same back, with tensors on the CPU, when a training is resumed.
    changed_after : callable, optional
        Returns how many epochs were finished when the network was last changed otherwise than by steps, such as by
        filters that were dropped: what it could do before tells nothing about whether the training diverges since.
    name : str
        Names the state in the checkpoint; needed for hooks with a state.

    Raises
    ------
    UsageError
        Only one of the two callables of the state is given, or the name is missing.
    """

    before_epoch: Callable[[Training], None] | None = None
    after_backward: Callable[[Training], None] | None = None
    after_step: Callable[[Training], None] | None = None
    after_epoch: Callable[[Training], None] | None = None
    after_save: Callable[[Training], None] | None = None
    state_dict: Callable[[], dict[str, Any]] | None = None
    load_state_dict: Callable[[dict[str, Any]], None] | None = None
    changed_after: Callable[[], int] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if (self.state_dict is None) != (self.load_state_dict is None):
            raise UsageError(f"hooks {self.name}", "must have both of state_dict and load_state_dict or neither")
        if self.state_dict is not None and not self.name:
            raise UsageError("hooks", "must have a name for their state", fix="give name")

    @classmethod
    def of(cls, scheme: object, name: str) -> Hooks:
        """The methods of an object that have the names above, so that none of them is forgotten.

        Raises
        ------
        UsageError
            The object has no such method, or one that is named like a place but is none.
        """
        names = (*PLACES, *STATE, "changed_after")
        methods = {name: getattr(scheme, name) for name in names if hasattr(scheme, name)}
        for attribute in dir(scheme):
            if attribute.startswith(("before_", "after_")) and attribute not in PLACES:
                rule = "must be a place of the training loop: " + ", ".join(PLACES)
                raise UsageError(f"hooks {name}", rule, got=attribute, fix=near_miss(attribute, PLACES))
        if not methods.keys() & set(PLACES):
            raise UsageError(f"hooks {name}", "must have one of the methods " + ", ".join(PLACES))
        return cls(**methods, name=name)


def call_hooks(hooks: Iterable[Hooks], place: str, training: Training) -> None:
    """Call those of the hooks that have something to do at a place, in order."""
    for hook in hooks:
        function = getattr(hook, place)
        if function is not None:
            function(training)


def last_change(hooks: Iterable[Hooks]) -> int:
    """Epochs that were finished when a hook last changed the network otherwise than by steps; 0 where none did."""
    return max((hook.changed_after() for hook in hooks if hook.changed_after is not None), default=0)


def hook_states(hooks: Iterable[Hooks]) -> dict[str, dict[str, Any]]:
    """The state of every hook that has one, by name."""
    return {hook.name: hook.state_dict() for hook in hooks if hook.state_dict is not None}


def load_hook_states(hooks: Iterable[Hooks], states: dict[str, dict[str, Any]]) -> None:
    """Give every hook with a state its own back."""
    for hook in hooks:
        if hook.load_state_dict is not None:
            hook.load_state_dict(states[hook.name])


def state_names(hooks: Iterable[Hooks]) -> list[str]:
    """Sorted names of the hooks with a state.

    Raises
    ------
    UsageError
        Two have the same name.
    """
    names = sorted(hook.name for hook in hooks if hook.state_dict is not None)
    for name, following in zip(names, names[1:]):
        if name == following:
            raise UsageError("hooks", "must have different names for their states", got=f"{name} twice")
    return names
