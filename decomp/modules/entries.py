"""Assignment to some entries of a tensor as a function: `y[:, :4] = x` in a graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def with_entries(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of ``x`` in which the entries at ``index`` have the given value.

    Parameters
    ----------
    x : torch.Tensor
    index : int, slice, torch.Tensor or tuple of these
        As in ``x[index] = value``.
    value : torch.Tensor or float
    """
    copy = x.clone()
    copy[index] = value
    return copy
