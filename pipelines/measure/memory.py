"""Memory of the machine, of its container and of a GPU, and amounts of memory in words."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

import torch

MIB, GIB = 2**20, 2**30
#: Without a limit: this share of the machine's memory, or this much where the system gives no number; a network whose
#: least need is more gets that. On a GPU, where the values of a stage lie, no more than this share of its free memory.
DEFAULT_SHARE, DEFAULT_MEMORY, GPU_SHARE = 0.5, 4 * GIB, 0.8
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


def as_text(n_bytes: int) -> str:
    """Bytes as an amount that a person would write."""
    return f"{n_bytes / GIB:.3g}GiB" if n_bytes >= GIB else f"{n_bytes / 2**20:.3g}MiB"


def rounded_up(n_bytes: float) -> str:
    """Bytes as the next tenth of a GiB."""
    return f"{-(-n_bytes // (GIB // 10)) / 10:g}GiB"
