"""Resources of a stage: its device, its limit of memory, and images at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..console import parse
from .devices import pick_device


@dataclass(frozen=True)
class Resources:
    """Where the work of a stage is done, and within which limits.

    Attributes
    ----------
    device : torch.device
    memory : int or None
        Bytes for each process; see :func:`decomp.pipelines.measure.memory.available_memory` where it is None.
    batch_size : int
        Upper limit of the images at a time; fewer where memory is short.
    """

    device: torch.device
    memory: int | None = None
    batch_size: int = 100

    @classmethod
    def of(cls, device: str = "auto", memory: int | str | None = None, batch_size: int = 100) -> Resources:
        """Resources from the arguments of a stage.

        Raises
        ------
        UsageError
            There is no such device, or a number is none or too small.
        """
        n_bytes = None if memory is None else parse.memory_bytes(memory)
        return cls(pick_device(device), n_bytes, parse.number("batch_size", int, 1)(batch_size))
