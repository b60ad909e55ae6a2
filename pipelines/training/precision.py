"""Precision in which a training computes: float32, or bfloat16 where it was asked for or is measured to be faster.

Weights, gradients of weights and optimizers are in float32 either way, and so are the outputs that a validation judges
(mixed precision as in Micikevicius et al. 2018, section 3.1; bfloat16 has the range of float32, so that no loss is
scaled).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from decomp.errors import UsageError

from ..distributed.process_group import gathered
from ..measure.devices import full_name, usual_precision

BOTH = ("float32", "bfloat16")
#: bfloat16 is taken where a step is so many times as fast: less is within what two measurements differ by.
FASTER = 1.15
#: Measurements of each, in turn; the shorter one counts.
TURNS = 2


@dataclass(frozen=True)
class Precision:
    """The precision of a training.

    Attributes
    ----------
    name : {'float32', 'bfloat16'}
    ratio : float, optional
        Seconds of a step in float32 over those in bfloat16, where both were measured.
    asked : bool
        Whether it was asked for by its name.
    """

    name: str
    ratio: float | None = None
    asked: bool = False

    def words(self) -> str | None:
        """The choice in words; None where nothing was measured or asked for."""
        if self.ratio is None:
            return f"computed in {self.name}, as asked" if self.asked else None
        return (
            f"computed in {self.name}: a step in bfloat16 is {self.ratio:.2f} times as fast as in float32 here, and "
            f"bfloat16 is taken from {FASTER:g} times on"
        )


def choose_precision(
    asked: str, device: torch.device, before: str | None = None, measure: Callable[[str], float] | None = None
) -> Precision:
    """The precision of a training.

    Parameters
    ----------
    asked : {'auto', 'float32', 'bfloat16'}
        'auto': that of an interrupted training that goes on; on a GPU bfloat16 where it computes it; on a CPU the
        measured one, float32 where nothing is measured.
    device : torch.device
    before : str, optional
        That of the interrupted training.
    measure : callable, optional
        ``measure(precision)`` gives the seconds of a step.

    Returns
    -------
    Precision
        The same in all processes.

    Raises
    ------
    UsageError
        The GPU does not compute bfloat16.
    """
    if device.type == "cuda" and asked == "bfloat16" and usual_precision(device) != asked:
        rule, fix = "the GPU must compute bfloat16", "give --precision float32 or auto"
        raise UsageError("--precision bfloat16", rule, got=full_name(device), fix=fix)
    if asked != "auto":
        return Precision(asked, asked=True)
    if before is not None:
        return Precision(before)
    if device.type == "cuda" or measure is None:
        return Precision(usual_precision(device))
    # In turn, so that a slow moment of the machine is not one of the two alone; the slowest process decides.
    seconds = [[max(gathered(measure(name))) for name in BOTH] for _ in range(TURNS)]
    whole, half = (max(min(times), 1e-9) for times in zip(*seconds))
    return Precision(BOTH[whole >= FASTER * half], whole / half)
