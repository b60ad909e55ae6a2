"""One random generator per (seed, purpose): nothing global, nothing that depends on what was drawn before."""

import hashlib

import torch


def derive_seed(seed, *names):
    """A seed for one purpose, the same on every machine.

    Parameters
    ----------
    seed : int
        The run's seed.
    *names : str or int
        The stage, layer, epoch or whatever the numbers are for.

    Returns
    -------
    int
        In 0..2⁶³ − 1.
    """
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed, *names):
    """A torch.Generator on the CPU seeded with :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
