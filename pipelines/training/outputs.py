"""Files of a fine-tuning in a folder of their own: last and best network, metrics.csv."""

from __future__ import annotations

import copy
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from decomp.surgery import batchnorm

from ...data.formats import network_file
from ...data.formats.atomic import commit
from .loop import Training, copy_state


def metrics_file(folder: Path) -> Path:
    """CSV with one line per epoch: losses, validation values, learning rate, seconds."""
    return folder / "metrics.csv"


def events_dir(folder: Path) -> Path:
    """The same values for ``tensorboard --logdir``, where TensorBoard is installed."""
    return folder / "events"


def checkpoint_file(folder: Path) -> Path:
    """State of an unfinished fine-tuning; removed when it is finished."""
    return folder / "checkpoint.pt"


class NetworkWriter:
    """Hook for ``after_save`` that writes the last network, the best one and the metrics.

    Parameters
    ----------
    folder : Path
        In which they are.
    network_digest : str
        Of the network that is fine-tuned.
    network : torch.fx.GraphModule
        As it is trained.
    source : Path
        Folder of the network that is fine-tuned, for the structure.
    batchnorm_paths : sequence of str
        See :func:`decomp.pipelines.training.batchnorm.insert_batchnorm`; folded in the files.
    own_batchnorms : mapping of str to str
        Paths of the network's own batch normalisations by those of the layers in front of them; also folded in the
        files, beside which the network is written as trained.
    """

    def __init__(
        self, folder: Path, network_digest: str, network: fx.GraphModule, source: Path, *,
        batchnorm_paths: Sequence[str] = (), own_batchnorms: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.folder, self.network_digest = folder, network_digest
        self.batchnorm_paths, self.own_batchnorms = list(batchnorm_paths), dict(own_batchnorms)
        # Weights are put into a copy for writing: the network in training is laid out for speed.
        self.template = copy.deepcopy(network).cpu()
        self.structure = network_file.read_structure(source)
        self.best_written: int | None = None

    def __call__(self, training: Training) -> None:
        self._write("last", training.epoch, copy_state(training.module))
        if self.best_written != training.best_epoch:
            assert training.best_epoch is not None and training.best_state is not None
            self._write("best", training.best_epoch, training.best_state)
            self.best_written = training.best_epoch
        write_metrics(metrics_file(self.folder), training.history)

    def _write(self, name: str, epoch: int, weights: Mapping[str, torch.Tensor]) -> None:
        network = copy.deepcopy(self.template)
        network.load_state_dict(weights)
        unfolded = copy.deepcopy(network).eval() if self.own_batchnorms else None
        batchnorm.fold_inserted(network, self.batchnorm_paths)
        batchnorm.fold_at(network, self.own_batchnorms)
        network_file.save(
            network,
            self.folder / name,
            edited=[edit["module"] for edit in self.structure["edits"]],
            input_shape=self.structure["input_shape"],
            leaves=network_file.leaves(self.structure),
            part=self.structure.get("part"),
            meta={**self.structure["meta"], "finetune": {"epoch": epoch, "network": self.network_digest}},
            unfolded=unfolded,
        )


def write_metrics(path: str | Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the history as CSV: one line per epoch, missing values empty."""
    names = list(dict.fromkeys(name for line in history for name in line if name != "score"))
    with commit(Path(path)) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(history)
