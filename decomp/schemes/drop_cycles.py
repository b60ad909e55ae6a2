"""Epochs of a training at which filters are dropped and brought back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cycle:
    """Filters are absent in the epochs ``drop_at <= epoch < restore_at``, counted from 0."""

    drop_at: int
    restore_at: int


def drop_cycles(epochs: int, s1: int, s2: int, at_most: int | None = None) -> tuple[Cycle, ...]:
    """The cycles that fit into a training: s1 epochs of the full network, then s2 of the smaller one, again and again.

    Parameters
    ----------
    epochs : int
        Epochs of the whole training, at least 1.
    s1, s2 : int
        Each at least 1.
    at_most : int, optional
        Number of cycles.

    Returns
    -------
    tuple of Cycle
        A cycle is begun only where at least one epoch of the full network follows it, so every training ends with all
        filters. Empty where not even one fits.
    """
    length = s1 + s2
    found: list[Cycle] = []
    for start in range(0, epochs, length):
        if start + length < epochs and (at_most is None or len(found) < at_most):
            found.append(Cycle(start + s1, start + length))
    return tuple(found)
