"""Devices: choice, name, mixed precision, memory layout."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch
from torch import Tensor

from decomp.errors import UsageError, near_miss


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Turn 'auto', 'cpu', 'cuda' or 'cuda:N' into a torch.device; 'auto' is the GPU where there is one.

    Raises
    ------
    UsageError
        The name is unknown, or there is no such GPU.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        fix = near_miss(device, ("auto", "cpu", "cuda"))
        raise UsageError("--device", "must be auto, cpu, cuda or cuda:N", got=repr(device), fix=fix) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            "--device", f"there are {torch.cuda.device_count()} CUDA devices here", got=device, fix="give cpu or auto"
        )
    return chosen


def full_name(device: torch.device) -> str:
    """Model name of the GPU or of the processor, recorded with measured times."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_processor()}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    line = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return line[1].strip() if line else platform.processor() or platform.machine()


def usual_precision(device: torch.device) -> str:
    """'bfloat16' on a GPU that supports it; 'float32' elsewhere: few CPUs compute bfloat16 faster."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def autocast(device: torch.device, precision: str | None = None) -> torch.autocast:
    """Autocast to bfloat16 where that is the precision, by default the usual one of the device; otherwise none."""
    enabled = (precision or usual_precision(device)) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Copy images to `device`, channels last where they are 4-D (measured to be faster on CPU and GPU)."""
    layout = torch.channels_last if images.dim() == 4 else torch.preserve_format
    return images.to(device, non_blocking=True, memory_format=layout)
