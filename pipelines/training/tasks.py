"""What fine-tuning trains and validates on: the training images with labels, or the frozen ones without.

Both kinds of task have the same face. ``train`` and ``held_out`` are the indices of the images; ``batches(order,
batch_size, augment_seed)`` yields (images of shape (B, C, H, W), labels or None) of the training ones in an order of
places; ``validate(network, original, device)`` returns the values on the held-out ones by name, ``score`` (higher is
better) among them; ``metric`` names the one that people are told, ``what`` the images, and ``normalised`` says whether
batch normalisations stand in the network while it is trained.
"""

import torch
from torch.nn import functional

from decomp.errors import UsageError
from decomp.execution.outputs import output_divergence

from ...data.formats import network_file
from ...data.formats.frozen_file import FrozenFile
from ...data.sources import open_source
from ..measure.accuracy import check_labels, logits_of
from ..run.loading import open_frozen
from . import loop as training

#: Calibration images up to this size are held in memory; beyond it each is read when its turn comes.
MEMORY_BYTES = 2**30


class LabelledTask:
    """Training images with labels, augmented by the source's policy."""

    metric, what, normalised = "validation_accuracy", "labelled training images", True

    def __init__(self, run, seed):
        asked = run.config("freeze")["asked"]
        shape = network_file.read_structure(run.original_dir)["input_shape"]
        source = open_source(asked["data"], input_shape=tuple(shape), skip_bad=asked.get("skip_bad", False))
        self.split, self.data = source.train, asked["data"]
        if not self.split.has_labels:
            raise UsageError("labels", "the training images must be labelled", got=asked["data"], fix="--labels none")
        self.train, self.held_out = training.hold_out(len(self.split), seed)

    def batches(self, order, batch_size, augment_seed):
        return self.split.batches(self.train[order], batch_size, augment_seed=augment_seed)

    def validate(self, network, original, device):
        right, loss = 0, 0.0
        for images, targets in self.split.batches(self.held_out, 500):
            logits = logits_of(network, images, device)
            check_labels(targets, logits, self.data)
            right += int((logits.argmax(1) == targets).sum())
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
        accuracy, loss = right / len(self.held_out), loss / len(self.held_out)
        # Among equal accuracies the lower loss is the better; it can never outweigh one image.
        score = accuracy - min(loss, 100.0) * 1e-3 / len(self.held_out)
        return {"score": score, "validation_accuracy": accuracy, "validation_loss": loss}


class CalibrationTask:
    """The frozen calibration images, as they are and without labels."""

    metric, what, normalised = "validation_divergence", "calibration images without labels", False

    def __init__(self, run, seed):
        self.path = run.frozen
        frozen, _ = open_frozen(run)
        with frozen:
            self.train, self.held_out = training.hold_out(frozen.n_images, seed)
            n_bytes = 4 * frozen.n_images * torch.Size(frozen.input_shape).numel()
            self.images = frozen.images() if n_bytes <= MEMORY_BYTES else None

    def batches(self, order, batch_size, augment_seed):
        yield from self._read(self.train[order], batch_size)

    def _read(self, indices, batch_size):
        if self.images is not None:
            for part in indices.split(batch_size):
                yield self.images[part], None
            return
        with FrozenFile(self.path) as frozen:
            for part in indices.split(batch_size):
                yield torch.cat([frozen.images(number, number + 1) for number in part.tolist()]), None

    def validate(self, network, original, device):
        total = 0.0
        for images, _ in self._read(self.held_out, 100):
            logits = logits_of(network, images, device)
            wanted = logits_of(original, images, device)
            total += float(output_divergence(wanted, logits).sum())
        value = total / len(self.held_out)
        return {"score": -value, "validation_divergence": value}
