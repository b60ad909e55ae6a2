"""Where a network runs, in which precision, and what it answers to a split of images."""

import platform
import re
from pathlib import Path

import torch

from decomp.errors import UsageError


def pick_device(device="auto"):
    """Turn 'auto', 'cpu', 'cuda' or 'cuda:N' into a torch.device; 'auto' is the GPU where there is one."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError("device", "must be auto, cpu, cuda or cuda:N", got=device) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            "device", f"there are {torch.cuda.device_count()} CUDA devices here", got=device, fix="take cpu or auto"
        )
    return chosen


def full_name(device):
    """The name of a GPU, or of the processor: what times were measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_processor()}"


def _processor():
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def autocast(device):
    """bf16 autocast on a GPU that has it; float32 elsewhere (on CPUs bf16 was measured to be slower)."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def to_device(images, device):
    """Images on `device`, channels last where they are 4-D (measured to be faster on CPU and GPU alike)."""
    layout = torch.channels_last if images.dim() == 4 else torch.preserve_format
    return images.to(device, non_blocking=True, memory_format=layout)
