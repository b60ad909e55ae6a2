"""RePr in the project's training loop: the scheme's calls at the loop's places, and the report of its events."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from decomp.errors import UsageError
from decomp.schemes.repr_settings import ReprSettings
from decomp.schemes.repr_training import RePr

from ..console.reporter import Reporter
from ..measure.intervals import short_share

if TYPE_CHECKING:
    from .loop import Training

#: Names of the scheme's state in a checkpoint, and of its values in TensorBoard.
NAME = "repr"


class ReprHooks:
    """Hooks that call a scheme; see :meth:`decomp.pipelines.training.hooks.Hooks.of`.

    Parameters
    ----------
    scheme : decomp.schemes.repr_training.RePr
        Of the module that is trained.
    accuracy : callable
        ``accuracy(module)`` on the held-out images, to be told before and after each event.
    n_validation : int
        Images that it is counted on.
    reporter : Reporter, optional
    """

    def __init__(
        self, scheme: RePr, accuracy: Callable[[nn.Module], float], n_validation: int = 0,
        reporter: Reporter | None = None,
    ) -> None:  # fmt: skip
        self.scheme, self.accuracy, self.n_validation, self.reporter = scheme, accuracy, n_validation, reporter

    def before_epoch(self, training: Training) -> None:
        # The network before an event is the one that was validated after the last epoch.
        known = training.history[-1].get("validation_accuracy") if training.history else None
        values = [] if known is None else [float(known)]

        def judge() -> float:
            return values.pop() if values else self.accuracy(training.module.eval())

        event = self.scheme.before_epoch(training.epoch, *training.optimizers.values(), judge=judge)
        if event is not None and self.reporter is not None:
            fields = {name: value for name, value in flat(event).items() if name != "event"}
            self.reporter.step(event_words(event, self.n_validation), **fields)

    def after_backward(self, training: Training) -> None:
        self.scheme.after_backward()

    def after_step(self, training: Training) -> None:
        self.scheme.after_step()

    def changed_after(self) -> int:
        events = self.scheme.events
        return int(events[-1]["epoch"]) if events else 0

    def state_dict(self) -> dict[str, Any]:
        return self.scheme.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheme.load_state_dict(state)

    def record(self) -> dict[str, Any]:
        """Settings, filters of each layer, layers that take no part, and events, as plain values."""
        scheme = self.scheme
        return {
            "name": NAME, "settings": scheme.settings.to_json(), "filters": scheme.filters,
            "left_out": scheme.left_out, "events": scheme.events,
        }  # fmt: skip

    def values(self) -> list[tuple[str, float, int]]:
        """(name, value, epoch) of all events so far, for TensorBoard."""
        named = [(event["epoch"], event["event"], flat(event)) for event in self.scheme.events]
        return [
            (f"{NAME}/{kind}/{name}", float(value), epoch)
            for epoch, kind, numbers in named
            for name, value in numbers.items()
            if name not in ("event", "epoch", "cycle")
        ]


def make_scheme(
    module: nn.Module, input_shape: Sequence[int], settings: ReprSettings, options: Mapping[str, str]
) -> RePr:
    """The scheme for a network.

    Parameters
    ----------
    module : torch.nn.Module
    input_shape : sequence of int
        (C, H, W).
    settings : ReprSettings
    options : mapping of str to str
        Option of the command line by the field of the settings, for errors.

    Raises
    ------
    UsageError
        No filter of the network can be dropped.
    TraceError
        The network cannot be traced.
    """
    try:
        return RePr(module, input_shape, **settings.to_json())
    except UsageError as error:
        fix = re.sub(r"(\w+)=True", lambda match: options[match[1]], error.fix or "") or None
        raise UsageError(options.get(error.thing, error.thing), error.rule, error.got, fix) from error


def flat(event: Mapping[str, Any]) -> dict[str, Any]:
    """The single values of an event by name, with the number of filters in place of their list."""
    values = {name: value for name, value in event.items() if isinstance(value, (int, float, str))}
    return {**values, "filters": sum(map(len, event["dropped"].values()))}


def event_words(event: Mapping[str, Any], n_validation: int = 0) -> str:
    """An event in a line: filters by layer, mean overlap and accuracy before and after it."""
    numbers = flat(event)
    layers = ", ".join(f"{path}: {len(filters)}" for path, filters in event["dropped"].items())
    verb = "dropped" if event["event"] == "drop" else "back"
    overlap = f"mean overlap {event['overlap_before']:.3g} → {event['overlap_after']:.3g}"
    words = f"epoch {event['epoch'] + 1}: {numbers['filters']} filters {verb} ({layers}), {overlap}"
    if event["event"] == "restore":
        words += f", largest |cos| {event['max_cosine']:.1e}"
    if "accuracy_after" in event:
        shares = (short_share(event[name], n_validation) for name in ("accuracy_before", "accuracy_after"))
        words += ", validation accuracy " + " → ".join(shares)
    return words


def on_off_rows(filters: Mapping[str, int], events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The on/off map: for each filter that takes part, whether it stayed (1) or was dropped (0) at each drop.

    Parameters
    ----------
    filters : mapping of str to int
        Filters of each layer.
    events : sequence of mapping
        Those of other kinds than 'drop' are passed over.

    Returns
    -------
    list of dict
        ``layer``, ``filter``, and ``epoch N`` for each drop, N counted from 0.
    """
    drops = {f"epoch {event['epoch']}": event["dropped"] for event in events if event["event"] == "drop"}
    return [
        {"layer": path, "filter": i, **{name: int(i not in gone.get(path, ())) for name, gone in drops.items()}}
        for path, width in filters.items()
        for i in range(width)
    ]
