"""TensorBoard events of a training, where TensorBoard is installed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Training

INSTALL = 'pip install "decomp[tensorboard]"'


def available() -> bool:
    """Whether TensorBoard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class EventWriter:
    """Hook for ``after_save`` that writes each epoch's values.

    Parameters
    ----------
    folder : path
        Events that an earlier process left in it are replaced: the history of a resumed training is complete, and is
        written anew.
    more : callable, optional
        Returns further values so far as (name, value, epoch), in an order that does not change.
    """

    def __init__(self, folder: str | Path, more: Callable[[], list[tuple[str, float, int]]] | None = None) -> None:
        self.folder, self.n_written = Path(folder), 0
        self.more, self.n_more = more, 0
        self.writer: Any = None  # a torch.utils.tensorboard.SummaryWriter, whose import needs TensorBoard

    def __call__(self, training: Training) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(self.folder, ignore_errors=True)
            self.writer = SummaryWriter(str(self.folder))
        for line in training.history[self.n_written :]:
            for name, value in line.items():
                if name not in ("epoch", "score") and value is not None:
                    self.writer.add_scalar(name.replace("validation_", "validation/"), value, line["epoch"])
        self.n_written = len(training.history)
        further = [] if self.more is None else self.more()
        for name, value, epoch in further[self.n_more :]:
            self.writer.add_scalar(name, value, epoch)
        self.n_more = len(further)
        self.writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self.writer is not None:
            self.writer.close()
