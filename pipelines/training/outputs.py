"""Files of a fine-tuning: last and best network, metrics.csv."""

import copy
import csv
from pathlib import Path

from decomp.surgery import batchnorm as refold

from ...data.formats import network_file
from ...data.formats.atomic import commit
from . import loop as training


def metrics_file(run):
    """A line an epoch: losses, validation values, learning rate, seconds."""
    return run.finetune_dir / "metrics.csv"


def events_dir(run):
    """The same for ``tensorboard --logdir``, where TensorBoard is installed."""
    return run.finetune_dir / "events"


def checkpoint_file(run):
    """Where an unfinished fine-tuning goes on; gone once it is finished."""
    return run.finetune_dir / "checkpoint.pt"


class NetworkWriter:
    """Writes what follows from the checkpoint: the last network, the best one, the metrics."""

    def __init__(self, run, network_digest, network, normalised):
        self.run, self.network_digest, self.normalised = run, network_digest, normalised
        # Weights are put into a copy for writing: the network in training is laid out for speed.
        self.like_trained = copy.deepcopy(network).cpu()
        self.structure = network_file.read_structure(run.model_dir)
        self.best_written = None

    def __call__(self, state):
        self._write("last", state.epoch, training.copy_state(state.module))
        if self.best_written != state.best_epoch:
            self._write("best", state.best_epoch, state.best_state)
            self.best_written = state.best_epoch
        write_metrics(metrics_file(self.run), state.history)

    def _write(self, name, epoch, weights):
        plain = copy.deepcopy(self.like_trained)
        plain.load_state_dict(weights)
        refold.fold(plain, self.normalised)
        network_file.save(
            plain,
            self.run.finetune_dir / name,
            edited=[edit["module"] for edit in self.structure["edits"]],
            input_shape=self.structure["input_shape"],
            leaves=network_file.leaves(self.structure),
            meta={**self.structure["meta"], "finetune": {"epoch": epoch, "network": self.network_digest}},
        )


def write_metrics(path, history):
    """The history as CSV, written whole: one line an epoch, what is not there left empty."""
    names = list(dict.fromkeys(name for line in history for name in line if name != "score"))
    with commit(Path(path)) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(history)
