"""Memory and disk that a process may use: of the machine, its container and a GPU; amounts of memory in words."""

from __future__ import annotations

import ctypes
import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch

from decomp.errors import UsageError

from ..distributed.launch import n_on_this_machine

MIB, GIB = 2**20, 2**30
#: Without a limit: this share of the machine's memory, or this much where the system gives no number; a network whose
#: least need is more gets that. On a GPU, where the values of a stage lie, no more than this share of its free memory.
DEFAULT_SHARE, DEFAULT_MEMORY, GPU_SHARE = 0.5, 4 * GIB, 0.8
#: Units of an amount in words, the largest first.
UNITS = {"GiB": GIB, "GB": 10**9, "MiB": MIB, "MB": 10**6, "KiB": 2**10, "kB": 10**3}
#: Python with torch, scikit-learn and h5py loaded and used: measured at 825 MiB for a run on a network of no size.
LIBRARIES = 900 * MIB
# glibc's numbers of two options: how much free memory at the end of its heap it keeps, and from which size on each
# allocation is a mapping of its own, returned to the system when it is freed. That size where memory is limited, and
# the largest number for both where it is not.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_FROM, MOST_KEPT = 256 * 2**10, 2**31 - 1


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container around this process; a common amount where unknown."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return int(DEFAULT_MEMORY / DEFAULT_SHARE)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)


def gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU that are free, or that this process holds without use; None for a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def available_memory(limit: int | None, device: torch.device) -> int:
    """Bytes that this process may use.

    Parameters
    ----------
    limit : int or None
        Bytes for each process; None is half of the machine's memory, divided among its processes.
    device : torch.device
        Of a GPU never more than a share of what is free there.
    """
    wanted = limit or int(DEFAULT_SHARE * machine_memory()) // n_on_this_machine()
    there = gpu_memory(device)
    return wanted if there is None else min(wanted, int(GPU_SHARE * there))


def memory_of_stage(
    least: int, limit: int | None, device: torch.device, *, command: str, subject: str = "this network"
) -> int:
    """Bytes that a stage may use, its least need or more; the C library keeps or returns freed memory accordingly.

    Parameters
    ----------
    least : int
        Bytes that it needs.
    limit, device
        As for `available_memory`.
    command, subject : str
        The stage, and what needs the memory, for the error.

    Raises
    ------
    UsageError
        The limit is below the least need, which it names.
    """
    if limit is not None and limit < least:
        raise UsageError(
            "--memory", f"{command} needs at least {rounded_up(least)} for {subject}", got=as_text(limit),
            fix=f"give --memory {rounded_up(least)}",
        )  # fmt: skip
    return_freed_memory() if limit is not None else keep_freed_memory()
    return max(available_memory(limit, device), least)


def available_disk(folder: str | os.PathLike[str]) -> int:
    """Bytes that this process may use for a while on the disk of a folder: half of what is free, divided likewise."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // 2 // n_on_this_machine()


def return_freed_memory() -> None:
    """Make the C library return freed memory to the system, except small blocks, where it holds on to much (glibc).

    A stage with a limit of 60 MiB had grown by 137 without it, 25 of them in use. It costs a little time.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next allocation (glibc).

    Else every large activation is a mapping of its own, whose pages the system hands out one by one, filled with zeros.
    `freeze` of an EfficientNet-Lite0 at 224 pixels with 546 images took 19 seconds in place of 54, with a peak of 3.1
    GiB in place of 2.5, as freed blocks are not always of the size that is needed next.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, MOST_KEPT)
        library.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def above_the_machine(limit: int | None) -> str:
    """A warning about a limit above the memory of the machine; empty where it is not."""
    there = machine_memory()
    if limit is None or limit <= there:
        return ""
    return f"--memory {as_text(limit)} is more than this machine has, {there / GIB:.3g}GiB: the work may be killed"


def as_text(n_bytes: int) -> str:
    """Bytes as the shortest exact amount that a person would write, or in the largest unit with three digits."""
    units = {name: size for name, size in UNITS.items() if n_bytes >= size} or {" bytes": 1}
    exact = [(f"{n_bytes / size:.6g}", name) for name, size in units.items()]
    exact = [(number, name) for number, name in exact if round(float(number) * units[name]) == n_bytes]
    largest, size = next(iter(units.items()))
    return min(("".join(pair) for pair in exact), key=len, default=f"{n_bytes / size:.3g}{largest}")


def rounded_up(n_bytes: float) -> str:
    """Bytes as the next tenth of a GiB."""
    return f"{-(-n_bytes // (GIB // 10)) / 10:g}GiB"
