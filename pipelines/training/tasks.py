"""Images and validation of a fine-tuning; labelled training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from decomp.errors import UsageError
from decomp.execution.output_kinds import Output, logits

from ...data import given
from ..distributed.process_group import own_part, total
from ..distributed.trained_module import places_of
from ..measure.accuracy import check_labels, logits_of
from ..run.conditions import freeze_options
from ..run.directory import RunDirectory
from ..run.images import open_images
from ..run.loading import run_outputs
from .hold_out import hold_out
from .memory import VALIDATED


class TrainingTask(Protocol):
    """Images to train on and to validate on.

    Attributes
    ----------
    metric : str
        Name of the validation value that is reported.
    description : str
        The images in words.
    uses_batchnorm : bool
        Whether batch normalisations are put into the network while it is trained.
    n_train : int
        Number of different images that are trained on.
    train : LongTensor
        Indices of the images; they may repeat.
    n_validation : int
        Number of images that :meth:`validate` judges by.
    at_a_time : int
        Images that are given to a network at a time there; less where memory is short.
    held : int
        Bytes of images that stay in memory.
    notes, warnings : sequence of str
        Lines for the person who asked.
    """

    metric: str
    description: str
    uses_batchnorm: bool
    n_train: int
    train: torch.Tensor
    n_validation: int
    at_a_time: int
    held: int
    notes: Sequence[str]
    warnings: Sequence[str]

    def batches(
        self, order: torch.Tensor, batch_size: int, augment_seed: int, places: slice | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield (images of shape (B, C, H, W), labels or None) of ``train[order]``, at some places of every batch."""

    def validate(self, network: nn.Module, original: nn.Module | None, device: torch.device) -> dict[str, float]:
        """Values on the held-out images by name, among them ``score``, of which more is better."""


class LabelledTask:
    """Training images with labels, augmented by the policy of their source.

    Raises
    ------
    UsageError
        The source of the run has no labels, or the network's output is not class scores.
    """

    metric, description, uses_batchnorm = "validation_accuracy", "labelled training images", True
    at_a_time, held = VALIDATED, 0

    def __init__(self, run: RunDirectory, seed: int) -> None:
        self.scores = self._only_scores(run)
        if freeze_options(run).data == given.NAME:
            rule, got = "the training images must be labelled", f"{given.NAME}, which were kept without labels"
            fix = "--labels none trains towards the original's outputs"
            raise UsageError("--labels train", rule, got=got, fix=fix)
        source = open_images(run)
        self.split, self.data = source.train, source.name
        if not self.split.has_labels:
            ignored = f", whose labels are not class numbers: {source.labels_ignored}" if source.labels_ignored else ""
            rule, fix = "the training images must be labelled", "give --labels none"
            raise UsageError("--labels train", rule, got=f"{self.data}{ignored}", fix=fix)
        self.train, self.held_out = hold_out(len(self.split), seed)
        self.n_train, self.n_validation = len(self.train), len(self.held_out)
        self.notes: Sequence[str] = ()
        self.warnings: Sequence[str] = ()

    @staticmethod
    def _only_scores(run: RunDirectory) -> Output:
        outputs = run_outputs(run)
        if outputs.scores is None:
            rule = "needs a network whose only output is class scores"
            fix = "give --labels none"
            if len(outputs.each) == 1:
                fix += ", or freeze again with --outputs scores if they are class scores after all"
            raise UsageError("--labels train", rule, got=outputs.words(), fix=fix)
        return outputs.scores

    def batches(
        self, order: torch.Tensor, batch_size: int, augment_seed: int, places: slice | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        order, batch_size = places_of(order, batch_size, places)
        return self.split.batches(self.train[order], batch_size, augment_seed=augment_seed)

    def validate(self, network: nn.Module, original: nn.Module | None, device: torch.device) -> dict[str, float]:
        """Accuracy and mean cross-entropy; the original is not needed."""
        n_right, loss = 0, 0.0
        for images, targets in self.split.batches(own_part(self.held_out), self.at_a_time):
            assert targets is not None
            scores = logits_of(network, images, device)
            check_labels(targets, scores, self.data)
            n_right += int((scores.argmax(1) == targets).sum())
            loss += float(functional.cross_entropy(logits(scores, self.scores), targets, reduction="sum"))
        accuracy, loss = total(n_right) / len(self.held_out), total(loss) / len(self.held_out)
        # Among equal accuracies the lower loss is better; it never outweighs one image.
        score = accuracy - min(loss, 100.0) * 1e-3 / len(self.held_out)
        return {"score": score, "validation_accuracy": accuracy, "validation_loss": loss}
