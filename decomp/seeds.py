"""Random generators, one per seed and purpose: independent of global state and of earlier draws."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed for one purpose, the same on every machine.

    Parameters
    ----------
    seed : int
        The run's seed.
    *names : str or int
        The purpose: stage, layer, epoch and so on.

    Returns
    -------
    int
        In 0..2⁶³ − 1.
    """
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch.Generator on the CPU seeded with :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
