"""Memory of a training: how many images are computed at a time, from a limit in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from decomp.execution import footprint

from ..console.reporter import Reporter
from ..distributed.process_group import count, gathered
from ..measure.memory import LIBRARIES, available_memory, memory_of_stage
from . import checkpoints
from .batchnorm import MIN_BATCH_SIZE, NORMALISATIONS

#: Copies of the trained weights: themselves, gradients, two of the optimizer, the best ones, and those that are made
#: while a network is written and read back.
COPIES = 10
#: Copies of the images of a batch while they are read, augmented and mixed.
INPUT_COPIES = 5
#: Images that are validated at a time where memory allows.
VALIDATED = 500


@dataclass(frozen=True)
class TrainingLimits:
    """Images that are computed at a time.

    Attributes
    ----------
    trained : int
        Of a batch, in every process; gradients of the parts of a batch add up.
    validated : int
        Without gradients.
    """

    trained: int
    validated: int = VALIDATED

    def to_json(self) -> dict[str, int]:
        """The limits; rounding depends on them, so that a resumed training continues with the same ones."""
        return {"trained": self.trained, "validated": self.validated}

    def words(self, batch_size: int, statistics: bool) -> str | None:
        """The parts of a batch in words; None where it is whole.

        Parameters
        ----------
        batch_size : int
            Of all processes together.
        statistics : bool
            Whether batch normalisations use the statistics of the images.
        """
        n_parts = parts_of(batch_size, self)
        if n_parts == 1:
            return None
        words = f"memory: each batch of {batch_size} images is computed in {n_parts} parts, whose gradients add up"
        return f"{words}; batch normalisations use the statistics of a part" if statistics else words


def parts_of(batch_size: int, limits: TrainingLimits | None) -> int:
    """Number of parts in which each process computes its share of a batch; the same in all of them."""
    return 1 if limits is None else -(-largest_share(batch_size) // limits.trained)


def largest_share(batch_size: int) -> int:
    """Images of a batch that a process has, at most."""
    return -(-batch_size // count())


def announced_limits(
    network: nn.Module,
    image: Tensor,
    *,
    batch_size: int,
    memory: int | None,
    device: torch.device,
    statistics: bool,
    checkpoint: Path,
    start_over: str,
    reporter: Reporter,
    command: str = "train",
    original: fx.GraphModule | None = None,
    held: int = 0,
) -> TrainingLimits:
    """The limits of a training, or those of the interrupted one that goes on; told where a batch is computed in parts.

    Parameters
    ----------
    network, image, batch_size, memory, device, original, held, command
        As for :func:`training_limits`.
    statistics : bool
        Batch normalisations use the statistics of the images, where there are any.
    checkpoint : Path
    start_over : str
        The way to train anew, for messages.
    reporter : Reporter
    """
    begun = checkpoints.begun_identity(checkpoint, start_over)
    statistics = statistics and any(isinstance(module, NORMALISATIONS) for module in network.modules())
    limits = training_limits(
        network.eval(), image, batch_size=batch_size, memory=memory, device=device, original=original,
        statistics=statistics, held=held, before=begun.get("limits"), command=command,
    )  # fmt: skip
    if words := limits.words(batch_size, statistics):
        reporter.step(words)
    return limits


def training_limits(
    network: nn.Module,
    image: Tensor,
    *,
    batch_size: int,
    memory: int | None,
    device: torch.device,
    original: fx.GraphModule | None = None,
    statistics: bool = False,
    held: int = 0,
    before: Mapping[str, int] | None = None,
    command: str = "train",
) -> TrainingLimits:
    """Images that a training computes at a time within a limit, or a refusal of an amount that is too small.

    Parameters
    ----------
    network : torch.nn.Module
        As it is trained, in evaluation mode, on `device`.
    image : torch.Tensor
        (1, C, H, W), on the CPU.
    batch_size : int
        Of all processes together.
    memory : int or None
        Bytes for each process; None is half of the machine's, divided among its processes, or the least need where that
        is more. On a GPU never more than that has free.
    device : torch.device
    original : torch.fx.GraphModule, optional
        Where its outputs are the targets.
    statistics : bool
        Batch normalisations use the statistics of the images: parts of a batch then have at least `MIN_BATCH_SIZE`
        images, or are the whole batch.
    held : int
        Bytes of images that stay in memory.
    before : mapping, optional
        :meth:`TrainingLimits.to_json` of the training that is resumed.
    command : str
        For the error.

    Returns
    -------
    TrainingLimits
        The same in all processes.

    Raises
    ------
    UsageError
        With the least memory that is enough.
    """
    each, fixed = _needs(network, image.to(device), original, largest_share(batch_size))
    fixed += held
    least_part = largest_share(batch_size)
    least_part = -(-least_part // max(1, batch_size // MIN_BATCH_SIZE)) if statistics else 1
    started = before or {}
    least = fixed + each * max(started.get("trained", least_part), started.get("validated", 1))
    there = memory_of_stage(least, memory, device, command=command, subject="this network and these batches")
    n = min(gathered((there - fixed) // each))
    return TrainingLimits(
        # Not the share of a process: the training may go on in fewer processes, whose shares are larger.
        started.get("trained", max(least_part, min(batch_size, n))),
        started.get("validated", max(1, min(VALIDATED, n))),
    )


def images_within(network: nn.Module, image: Tensor, memory: int | None, device: torch.device) -> int:
    """Images that a limit allows at a time for a network alone, at least one; arguments as above."""
    each, fixed = _needs(network, image.to(device), None, 1)
    return max(1, (available_memory(memory, device) - fixed) // each)


def _needs(network: nn.Module, image: Tensor, original: fx.GraphModule | None, share: int) -> tuple[int, int]:
    """Bytes for each image that is computed, and bytes that are needed anyway."""
    each = footprint.training_bytes(network, image)
    weights = sum(value.nbytes for value in (*network.parameters(), *network.buffers()))
    fixed = LIBRARIES + COPIES * weights + INPUT_COPIES * share * image.nbytes
    if original is not None:
        foot = footprint.measure(original, image)
        each += foot.live + 2 * foot.largest
        fixed += sum(value.nbytes for value in (*original.parameters(), *original.buffers()))
    return each, fixed
