"""Task file (``tasks/NNN_NAME.safetensors``): what one task adds to a network that serves several.

A committed file is never written again. The owner of every weight follows from the files in order: a weight belongs to
the first task that uses it. A task uses weights of earlier tasks (its picks) and its own.

=========================  =========================================================================================
``used.LAYER``             uint8 (⌈n/8⌉,): one bit for each of the n weights of a shared layer at the task's width, in
                           the order of the weight tensor, highest bit first. 1 where an earlier task owns the weight
                           and this one picks it, and where this task owns it
``values.LAYER``           float32: values of the weights that the task owns, in the same order
``private.NAME``           entry NAME of the network's state dict that belongs to this task alone: batch normalisations,
                           biases, PReLUs, and the head
``probe.images``           float32 (m, C, H, W): images on which the task is verified
``probe.labels``           int64 (m,): their class numbers
``probe.scores``           float32 (m, n): class scores of the task's network for them, all in one batch, on the CPU
metadata ``decomp``        the header
=========================  =========================================================================================

Keys of the header:

=========================  =========================================================================================
``format``                 ``decomp-task``
``format_version``         1
``parent``                 ``content`` of the file of the task before; of the first task the digest of the base network
``number``                 of the task, from 1; it is the owner of the task's weights
``name``                   of the task
``width``                  multiplier of the parameters: spaces of c channels have int(c √width)
``n_classes``              outputs of the head
``shapes``                 shape of each shared layer's weight at this width
``effective``              SHA-256 (hex) of the state dict of the task's network
``facts``                  goal, accuracies, ratios, options: plain data
``content``                SHA-256 (hex) over header and tensors, to notice damage
=========================  =========================================================================================

A tensor of n weights takes n/8 bytes in each file, whatever the number of tasks, and four bytes in the file of the
task that owns it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decomp.errors import FileError

from .paths import safe_name
from .tensor_groups import read_groups, write_groups

KIND, VERSION = "decomp-task", 1
FIX = "put a copy of it back; the tasks before it are not affected, and tasks verify and tasks export take them"


@dataclass
class TaskFile:
    """Content of a task file; see the module's tables.

    Attributes
    ----------
    used : dict of str to torch.Tensor of bool
        Of the weights' shapes.
    values : dict of str to torch.Tensor
        Of shape (number of owned weights,).
    content : str
        Digest of the file; empty before it is written.
    """

    number: int
    name: str
    width: float
    n_classes: int
    used: dict[str, Tensor]
    values: dict[str, Tensor]
    private: dict[str, Tensor]
    probe: dict[str, Tensor]
    effective: str
    facts: dict[str, Any] = field(default_factory=dict)
    content: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each shared layer's weight at the task's width."""
        return {layer: tuple(used.shape) for layer, used in self.used.items()}


def file_name(number: int, name: str) -> str:
    """Name of a task's file."""
    return f"{number:03d}_{safe_name(name)}.safetensors"


def write_task(path: str | os.PathLike[str], task: TaskFile, parent: str) -> str:
    """Write a task, whole or not at all, and return the digest of the file."""
    groups: dict[str, Mapping[str, Tensor]] = {
        "used": {layer: pack_bits(used) for layer, used in task.used.items()},
        "values": task.values, "private": task.private, "probe": task.probe,
    }  # fmt: skip
    header = {
        "parent": parent, "number": task.number, "name": task.name, "width": task.width, "n_classes": task.n_classes,
        "shapes": {layer: list(shape) for layer, shape in task.shapes.items()}, "effective": task.effective,
        "facts": task.facts,
    }  # fmt: skip
    return write_groups(path, groups, header, kind=KIND, format_version=VERSION)


def read_task(path: str | os.PathLike[str], number: int, parent: str) -> TaskFile:
    """Read a task and check that it is the one of this number, made after the given parent.

    Raises
    ------
    FileError
        The file is missing, damaged, foreign, or made after other tasks.
    """
    groups, header, content = read_groups(path, kind=KIND, format_version=VERSION, fix=FIX)
    if header.get("parent") != parent or header.get("number") != number:
        rule = f"must be task {number} after the task with the digest {parent[:12]}"
        got = f"task {header.get('number')} after {str(header.get('parent'))[:12]}"
        raise FileError(path, rule, got=got, fix=FIX)
    try:
        shapes = {layer: tuple(map(int, shape)) for layer, shape in header["shapes"].items()}
        packed = groups["used"]
        return TaskFile(
            number, header["name"], float(header["width"]), int(header["n_classes"]),
            {layer: unpack_bits(packed[layer], shape) for layer, shape in shapes.items()},
            {layer: groups.get("values", {}).get(layer, torch.empty(0)) for layer in shapes}, groups["private"],
            groups["probe"], header["effective"], header["facts"], content,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(path, f"is broken ({error})", fix=FIX) from error


def pack_bits(mask: Tensor) -> Tensor:
    """Booleans as bits, uint8 of shape (⌈n/8⌉,), highest bit first."""
    return torch.from_numpy(np.packbits(mask.cpu().reshape(-1).numpy()))


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The booleans of :func:`pack_bits`, in a shape.

    Raises
    ------
    ValueError
        There are not as many bits as the shape needs.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise ValueError(f"{packed.numel()} bytes of bits for {count} weights")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).reshape(shape)


def task_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Task files in a folder, in the order of their numbers."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.glob("[0-9][0-9][0-9]_*.safetensors") if path.is_file())
