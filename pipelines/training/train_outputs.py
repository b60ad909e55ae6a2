"""Files beside the weights of a training in a run: epochs.csv, the on/off map of filters, TensorBoard events."""

from __future__ import annotations

import csv
from pathlib import Path

from ...data.formats.atomic import commit
from . import tensorboard
from .loop import Training
from .outputs import write_metrics
from .repr_hooks import ReprHooks, on_off_rows
from .tensorboard import EventWriter

EPOCHS, FILTERS, EVENTS = "epochs.csv", "filters.csv", "events"


class TrainingFiles:
    """Hook for ``after_save`` that writes what is known after an epoch.

    Parameters
    ----------
    folder : path
    scheme : ReprHooks, optional
        Its on/off map is written too.
    events : EventWriter, optional
    """

    def __init__(self, folder: str | Path, scheme: ReprHooks | None = None, events: EventWriter | None = None) -> None:
        self.folder, self.scheme, self.events = Path(folder), scheme, events

    def __call__(self, training: Training) -> None:
        write_metrics(self.folder / EPOCHS, training.history)
        if self.scheme is not None:
            write_on_off_map(self.folder / FILTERS, self.scheme)
        if self.events is not None:
            self.events(training)

    def close(self) -> None:
        """Finish the files."""
        if self.events is not None:
            self.events.close()


def training_files(folder: Path, scheme: ReprHooks | None) -> TrainingFiles:
    """The files of a training in a folder, with TensorBoard events where it is installed."""
    events = None
    if tensorboard.available():
        events = tensorboard.EventWriter(folder / EVENTS, None if scheme is None else scheme.values)
    return TrainingFiles(folder, scheme, events)


def write_on_off_map(path: str | Path, hooks: ReprHooks) -> None:
    """Write the on/off map as CSV; see :func:`decomp.pipelines.training.repr_hooks.on_off_rows`."""
    rows = on_off_rows(hooks.scheme.filters, hooks.scheme.events)
    with commit(Path(path)) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
