"""Held-out calibration images, on which networks are judged; where they are few, with mixtures of two of them."""

from __future__ import annotations

import torch
from torch import Tensor

from decomp import seeds

from ...data.formats.frozen_file import FrozenFile
from ..console.words import counted
from .calibration import Mixtures, fitted_images, mixtures_for_judging, mixtures_of_any


class HeldOut:
    """Images that no fit has seen, in order: held-out images, then mixtures of two of them each.

    Ten images say little about new ones. A mixture has a part of no fitted image, and the original answers for it as
    for any image.

    Parameters
    ----------
    frozen : FrozenFile
        Open.
    macs : float
        Of the original, for one image.
    mix : bool
        Whether the network may see mixtures.
    most : int
        Held-out images, at most.

    Attributes
    ----------
    n_images, n_mixtures : int
    """

    def __init__(self, frozen: FrozenFile, macs: float, *, mix: bool, most: int) -> None:
        self.frozen, self.first = frozen, fitted_images(frozen.n_images)
        self.n_images = min(frozen.n_images - self.first, most)
        whole = self.n_images == frozen.n_images - self.first
        n = mixtures_for_judging(frozen.n_images, macs) if mix and whole else 0
        self.mixtures: Mixtures | None = None
        if n:
            generator = seeds.generator(frozen.meta["seed"], "decompose", "mixtures of held-out images")
            self.mixtures = mixtures_of_any(self.n_images, n, generator)
            self._images = frozen.images(self.first, self.first + self.n_images)
        self.n_mixtures = n

    def __len__(self) -> int:
        return self.n_images + self.n_mixtures

    def images(self, start: int, stop: int) -> Tensor:
        """Images and mixtures from one place to another: (stop - start, C, H, W)."""
        n, stop = self.n_images, min(stop, len(self))
        if self.mixtures is None:
            return self.frozen.images(self.first + start, self.first + stop)
        mixtures = self.mixtures.of(self._images, slice(max(start - n, 0), max(stop - n, 0)))
        return torch.cat([self._images[start:stop], mixtures])

    def of_each(self, values: Tensor) -> Tensor:
        """Mean for each held-out image of the values of itself and of the mixtures that are mostly it.

        Mixtures of the same images do not err independently; these means almost do.

        Parameters
        ----------
        values : torch.Tensor, shape (len(self),)

        Returns
        -------
        torch.Tensor, shape (n_images,)
        """
        return values.reshape(-1, self.n_images).mean(0) if self.n_mixtures else values

    @property
    def words(self) -> str:
        """Their numbers in words."""
        return judged_words(self.n_images, self.n_mixtures)


def judged_words(n_images: int, n_mixtures: int) -> str:
    """Numbers of held-out images and of mixtures in words."""
    mixtures = f" and {counted(n_mixtures, 'mixture')} of them" if n_mixtures else ""
    return f"{counted(n_images, 'held-out image')}{mixtures}"
