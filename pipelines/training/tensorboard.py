"""TensorBoard's events of a training, where TensorBoard is installed."""

import importlib.util
import shutil
from pathlib import Path

INSTALL = 'pip install "decomp[tensorboard]"'


def available():
    """Whether events can be written here."""
    return importlib.util.find_spec("tensorboard") is not None


class EventWriter:
    """A hook of :mod:`decomp.pipelines.training.loop` that writes each epoch's values once it is saved.

    Parameters
    ----------
    folder : path
        What an earlier process left in it is replaced: the history of a resumed training is whole, and is written anew.
    """

    def __init__(self, folder):
        self.folder, self.writer, self.written = Path(folder), None, 0

    def __call__(self, state):
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(self.folder, ignore_errors=True)
            self.writer = SummaryWriter(str(self.folder))
        for line in state.history[self.written :]:
            for name, value in line.items():
                if name not in ("epoch", "score") and value is not None:
                    self.writer.add_scalar(name.replace("validation_", "validation/"), value, line["epoch"])
        self.written = len(state.history)
        self.writer.flush()

    def close(self):
        """Finish the file."""
        if self.writer is not None:
            self.writer.close()
