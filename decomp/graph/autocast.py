"""Networks in the precision of their weights: torch.autocast in a forward pass does nothing within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: Line about a network whose forward pass enters one.
AUTOCAST = "torch.autocast in forward is passed over: fits and comparisons are in the precision of the weights"


@contextmanager
def without_autocast() -> Iterator[list[str]]:
    """Let every ``torch.autocast`` that is entered in a block do nothing.

    Automatic mixed precision computes faster, and about the same; what is fitted and compared is computed in the
    precision of the weights.

    Yields
    ------
    list of str
        Filled with the device type of each that would have changed the precision.
    """
    enter, passed_over = torch.autocast.__enter__, []

    def entered(context: Any) -> Any:
        enabled = context._enabled
        if enabled:
            passed_over.append(context.device)
        context._enabled = False
        try:
            return enter(context)
        finally:
            context._enabled = enabled

    torch.autocast.__enter__ = entered  # type: ignore[method-assign]
    try:
        yield passed_over
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
