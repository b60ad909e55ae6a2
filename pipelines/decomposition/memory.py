"""Memory of a stage: batch sizes and store sizes from a limit in bytes, and the forward work done within them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from decomp.execution import footprint
from decomp.execution.footprint import Footprint
from decomp.execution.replay import Replay
from decomp.execution.sampled_rows import points_of_calls
from decomp.graph.layer import Layer
from decomp.problem.moments import TILE_ROWS

from ..measure.memory import LIBRARIES, MIB, available_disk, memory_of_stage
from ..measure.resources import Resources
from .spill_store import SpillStore

# Copies of all weights: while layers are fitted, and while a network is written and read back to be verified.
COPIES_FITTING, COPIES_WRITING = 3, 6
# Float64 matrices of the size of a layer's K that exist at the peak of its fit, those of both its moments included:
# measured as 14.4 for all steps of a layer at p = 1728, and as 11.5 and 8.2 for its error curves at p = 1728 and 4608,
# small terms included.
SOLVER_MATRICES = 14
# A backward pass stores every value and its gradient, and the copies that convolutions make.
BACKWARD = 3
# Shares of the memory above the least need: for the batch in work (or the layers fitted meanwhile), for stored
# activations, for the rows of a layer.
BATCH_SHARE, STORE_SHARE, ROWS_SHARE = 0.4, 0.3, 0.3


@dataclass(frozen=True)
class MemoryLimits:
    """Batch sizes and sizes of the stores of a stage.

    Attributes
    ----------
    batch_size, backward_batch : int
        Images at a time on a forward pass, and where gradients are needed.
    store_bytes : int
        Bytes of activations stored between layers, in memory and on the disk together.
    store_in_memory, rows_in_memory : int
        Bytes of them, and of a layer's rows, that may lie in memory.
    fit_bytes : int
        Bytes for the fits of layers, several of them at a time where that is enough.
    """

    batch_size: int
    backward_batch: int
    store_bytes: int
    store_in_memory: int
    rows_in_memory: int
    fit_bytes: int

    def to_json(self) -> dict[str, int]:
        """The limits on which the bytes of the result depend; a resumed stage must continue with the same ones."""
        return {"batch_size": self.batch_size, "backward_batch": self.backward_batch, "keep": self.store_bytes}


def problem_bytes(layer: Layer, n_images: int, n_points: int) -> int:
    """Bytes that the fit of a layer takes at its peak: matrices of its inputs, tiles of its rows, its responses."""
    columns = layer.columns
    tiles = 4 * TILE_ROWS * (columns + layer.out_channels) * 4
    responses = 8 * n_images * _points(layer, n_points) * layer.out_channels
    entries = columns * layer.kernel[0] * layer.kernel[1] if layer.depthwise else columns**2
    return SOLVER_MATRICES * 8 * entries + tiles + responses


def row_bytes(layer: Layer, n_points: int) -> int:
    """Bytes of the rows of one image, with the copies made while they are gathered."""
    return 3 * 4 * _points(layer, n_points) * (layer.columns + layer.out_channels)


def _points(layer: Layer, n_points: int) -> int:
    return sum(points_of_calls(n_points, [out_hw for _, out_hw in layer.calls]))


def set_limits(
    module: nn.Module,
    foot: Footprint,
    resources: Resources,
    *,
    folder: str | os.PathLike[str],
    solver: int = 0,
    rows: int = 0,
    before: Mapping[str, int] | None = None,
    command: str = "decompose",
) -> MemoryLimits:
    """Divide the memory of a stage, or refuse an amount that is too small.

    Parameters
    ----------
    module : torch.nn.Module
    foot : decomp.execution.footprint.Footprint
    resources : decomp.pipelines.measure.resources.Resources
        Without a limit of memory: half of the machine's, or the least need where that is more. Where the stage runs on
        a GPU, never more than that has free. Processes of one job on one machine divide its memory and disk where there
        is no limit; an amount is that of each.
    folder : path
        On the disk for spilled values; at most half of its free space is used.
    solver, rows : int
        Bytes that the largest layer problem takes, and the rows of one image; 0 where none is solved.
    before : dict, optional
        :meth:`MemoryLimits.to_json` of the stage's first start.
    command : str
        For the error.

    Returns
    -------
    MemoryLimits

    Raises
    ------
    UsageError
        With the least memory that is enough.
    """
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    image, gradient = foot.live + 2 * foot.largest + rows, BACKWARD * foot.total if solver else 0
    fixed = LIBRARIES + max(COPIES_FITTING * weights + solver, COPIES_WRITING * weights)
    started = before or {}
    least = fixed + max(image * started.get("batch_size", 1), gradient * started.get("backward_batch", 1))
    free = memory_of_stage(least, resources.memory, resources.device, command=command) - fixed
    batch, most = BATCH_SHARE * free, resources.batch_size
    return MemoryLimits(
        started.get("batch_size", max(1, min(most, int(batch // image)))),
        started.get("backward_batch", max(1, min(most, int(batch // gradient) if gradient else 1))),
        started.get("keep", int(max(available_disk(folder), STORE_SHARE * free))),
        int(STORE_SHARE * free), int(ROWS_SHARE * free), int(solver + batch),
    )  # fmt: skip


class StageMemory:
    """Makes the replays and stores of a stage within its limits, and adds up their forward work.

    Parameters
    ----------
    module : torch.fx.GraphModule
        The network at the start of the stage.
    foot : decomp.execution.footprint.Footprint
    limits : MemoryLimits
    folder : path
        For values that do not fit into memory; its owner removes it.
    """

    def __init__(
        self, module: fx.GraphModule, foot: Footprint, limits: MemoryLimits, folder: str | os.PathLike[str]
    ) -> None:
        self.module, self.foot, self.limits, self.folder = module, foot, limits, Path(folder)
        self._replays: list[Replay] = []
        self._stores: list[SpillStore] = []
        self._other_images = 0.0

    def replay(
        self,
        module: fx.GraphModule,
        images: Callable[[int, int], Tensor],
        n_images: int,
        device: torch.device | str,
        share: float = 1.0,
        own: Callable[[int], range] | None = None,
    ) -> Replay:
        """A :class:`decomp.execution.replay.Replay` with this ``share`` of the bytes for stored activations."""
        replay = Replay(
            module, images, n_images, batch_size=self.limits.batch_size, device=device,
            store=self._store(share * self.limits.store_in_memory, share * self.limits.store_bytes),
            work=self.foot.work if module is self.module else None, own=own,
        )  # fmt: skip
        self._replays.append(replay)
        return replay

    def row_store(self) -> SpillStore:
        """A store for the rows of one layer at a time."""
        return self._store(self.limits.rows_in_memory, max(self.limits.store_bytes, self.limits.rows_in_memory))

    def count_passes(self, n_images: float) -> None:
        """Add whole forward passes of so many images that no replay of this object has made."""
        self._other_images += n_images

    def clear(self) -> None:
        """Free all memory and disk; the replays made so far cannot be used any more."""
        for store in self._stores:
            store.clear()
        self._other_images, self._replays = self.forward_images, []

    @property
    def forward_images(self) -> float:
        """Forward work so far, in whole passes times images."""
        return self._other_images + sum(replay.forward_images for replay in self._replays)

    @property
    def most_on_disk(self) -> int:
        """Largest number of bytes that one of the stores had on the disk at one time."""
        return max((store.most_on_disk for store in self._stores), default=0)

    def _store(self, memory: float, limit: float) -> SpillStore:
        store = SpillStore(int(memory), int(limit), self.folder / f"{len(self._stores):02d}")
        self._stores.append(store)
        return store


def measure(module: fx.GraphModule, image: Tensor) -> Footprint:
    """Footprint of the network of a stage; the image is moved to the device of its weights."""
    parameter = next(module.parameters(), image)
    return footprint.measure(module, image.to(parameter.device))


def work_words(passes: float, spilled_bytes: int, refinement: float = 0.0) -> str:
    """The work of a stage in passes of the original over the images, and the most activations on the disk, as a line.

    Parameters
    ----------
    passes : float
        Forward work.
    spilled_bytes : int
    refinement : float
        Work of the refinement of the blocks, which is not in ``passes``.
    """
    words = f"{passes:.1f} passes over the calibration images"
    if refinement:
        words += f", and the work of {refinement:.1f} more to refine the blocks"
    if spilled_bytes:
        words += f", up to {spilled_bytes / MIB:,.0f} MiB of activations on the disk meanwhile"
    return words
