"""Advice for a network that cannot be traced: the modules to leave as they are, or the part to treat, each tried."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from decomp.graph.tracer import SizedTracer
from decomp.modules.convolution import CONVOLUTIONS

#: Modules that are tried as leaves, one after the other, where each is the next that cannot be followed.
MOST_LEAVES = 4
_ANOTHER = "write forward without it, or put convolutions into a submodule and treat that alone (option module)"


def way_out(model: nn.Module, leaves: Sequence[str], shape: Sequence[int] | None, within: Sequence[str]) -> str:
    """What a person can do, as an imperative clause.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    leaves : sequence of str
        Paths that are left as they are already.
    shape : sequence of int, optional
        (C, H, W) of the images.
    within : sequence of str
        Paths of the modules in whose forward tracing ended.
    """
    left, part = _leaves_that_help(model, leaves, shape, within), part_that_works(model, shape)
    alone = _ANOTHER if part is None else f"treat {part} alone (option module)"
    return (
        f"leave {' and '.join(left)} as {'it is' if len(left) == 1 else 'they are'} (--leaf), or {alone}"
        if left
        else alone
    )


def part_that_works(model: nn.Module, shape: Sequence[int] | None) -> str | None:
    """The submodule of most parameters, at most two levels deep, that takes images (C, H, W) and can be traced.

    A convolution by itself is none: what it becomes could not be put back in its place.
    """
    parts = [(path, part) for path, part in model.named_modules() if path and path.count(".") < 2]
    parts = [(path, part) for path, part in parts if any(part.children()) and _has_convolution(part)]
    for path, part in sorted(parts, key=lambda pair: -sum(p.numel() for p in pair[1].parameters())):
        if shape is not None and _works(part, shape):
            return path
    return None


def _leaves_that_help(
    model: nn.Module, leaves: Sequence[str], shape: Sequence[int] | None, within: Sequence[str]
) -> list[str]:
    """Modules without which the rest can be traced and still has a convolution; none where there are no such."""
    left: list[str] = []
    while within and len(left) < MOST_LEAVES:
        left.append(within[-1])
        tracer = SizedTracer((*leaves, *left), shape)
        try:
            tracer.trace(model)
        except Exception as error:  # any, of another's code
            within = getattr(error, "within", ()) or tracer.within
            if within and within[-1] not in left:
                continue
            return []
        return left if _has_convolution(model, left) else []
    return []


def _has_convolution(module: nn.Module, without: Sequence[str] = ()) -> bool:
    found = (path for path, part in module.named_modules() if isinstance(part, CONVOLUTIONS))
    return any(not any(f"{path}.".startswith(f"{left}.") for left in without) for path in found)


def _works(part: nn.Module, shape: Sequence[int]) -> bool:
    like = next(part.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            part(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
        SizedTracer((), shape).trace(part)
    except Exception:  # any, of another's code
        return False
    return True
