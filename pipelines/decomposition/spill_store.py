"""Spill store: activations in memory up to a limit, beyond it in files of a scratch folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decomp.errors import FileError

from ...data.formats.atomic import require_space

# A point is not stored where running up to it again from the last stored one is a smaller share of a pass than this:
# reading the largest maps from a disk then takes longer than computing them anew.
LEAST_WORK = 0.01

# What a traced network computes between two nodes, by node: tensors, sizes, and whatever else its forward pass makes.
Values = dict[Any, Any]


class SpillStore:
    """An activation store for :class:`decomp.execution.replay.Replay`, batch by batch.

    Whether values are stored depends on `limit` alone; whether in memory or in a file does not change a bit of
    them. Files are read and written in plain calls, not mapped: mapped pages would count as this process's memory.

    Parameters
    ----------
    memory : int
        Bytes that may lie in memory.
    limit : int
        Bytes that may be stored at all, in memory and in files together.
    folder : Path
        Made on the first write; its owner removes it.
    least_work : float
        See :class:`decomp.execution.replay.Replay`.

    Attributes
    ----------
    most_in_memory, most_on_disk : int
        Largest number of bytes that lay in memory and in files at one time.
    """

    def __init__(self, memory: int, limit: int, folder: Path, least_work: float = LEAST_WORK) -> None:
        self.memory, self.limit, self.folder, self.least_work = memory, limit, folder, least_work
        self.most_in_memory = self.most_on_disk = 0
        self._in_memory: dict[int, Values] = {}
        self._in_files: dict[int, tuple[Values, int]] = {}
        self._memory_used = self._on_disk = 0

    def admits(self, n_bytes: int) -> bool:
        """Whether values that take so many bytes for all images are stored.

        Raises
        ------
        FileError
            They are to be stored, and the disk has no room for the part that does not fit into memory.
        """
        if n_bytes > self.limit:
            return False
        more = n_bytes - self.memory - self._on_disk
        if more > 0:
            require_space(self.folder, more)
        return True

    def put(self, index: int, values: Values) -> None:
        """Store the values of a batch, in place of earlier ones."""
        self._memory_used -= _size(self._in_memory.pop(index, {}))
        values = {k: v.contiguous() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        if self._memory_used + _size(values) <= self.memory:
            self._in_memory[index] = values
            self._memory_used += _size(values)
            self._remove_file(index)
        else:
            self._write(index, values)
        self.most_in_memory = max(self.most_in_memory, self._memory_used)
        self.most_on_disk = max(self.most_on_disk, self._on_disk)

    def get(self, index: int, copy: bool = True) -> Values:
        """The values of a batch; with `copy` the caller may change them in place, the stored ones stay."""
        if index not in self._in_memory:
            return self._read(index)
        if not copy:
            return self._in_memory[index]
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in self._in_memory[index].items()}

    def clear(self) -> None:
        """Remove all values."""
        for index in list(self._in_files):
            self._remove_file(index)
        self._in_memory, self._memory_used = {}, 0

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}"

    def _remove_file(self, index: int) -> None:
        if index in self._in_files:
            _, size = self._in_files.pop(index)
            self._on_disk -= size
            self._path(index).unlink(missing_ok=True)

    def _write(self, index: int, values: Values) -> None:
        self._remove_file(index)
        self.folder.mkdir(parents=True, exist_ok=True)
        described: Values = {}
        size = 0
        with open(self._path(index), "wb") as file:
            for key, value in values.items():
                if not isinstance(value, torch.Tensor):
                    described[key] = value
                    continue
                raw = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
                file.write(raw.data)
                described[key] = _TensorInFile(size, value.dtype, value.shape, value.device)
                size += raw.nbytes
        self._in_files[index] = described, size
        self._on_disk += size

    def _read(self, index: int) -> Values:
        described, _ = self._in_files[index]
        values: Values = {}
        with open(self._path(index), "rb") as file:
            for key, value in described.items():
                if isinstance(value, _TensorInFile):
                    flat = torch.empty(value.shape.numel(), dtype=value.dtype)
                    file.seek(value.start)
                    if file.readinto(flat.view(torch.uint8).numpy().data) < flat.nbytes:
                        rule = "the file of spilled activations is cut short"
                        raise FileError(self._path(index), rule, fix="run the same command again")
                    value = flat.reshape(value.shape).to(value.device)
                values[key] = value
        return values


@dataclass(frozen=True)
class _TensorInFile:
    """Place of a tensor in its file, in bytes, and the numbers needed to read it back."""

    start: int
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device


def _size(values: Mapping[Any, Any]) -> int:
    return sum(value.nbytes for value in values.values() if isinstance(value, torch.Tensor))
