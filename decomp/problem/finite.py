"""Count of the entries of a tensor that are NaN or infinite."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def count_not_finite(values: Tensor) -> int:
    """How many entries are NaN or infinite.

    A sum is not finite where an entry is not, so nearly always one sum answers; only where it is not finite, as it also
    is for entries too large to be added, are the entries looked at one by one.
    """
    if math.isfinite(float(values.detach().sum())):
        return 0
    return values.numel() - int(torch.isfinite(values).sum())
