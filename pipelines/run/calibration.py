"""Split of the training images: frozen ones, among these the fitted and the held-out ones; mixtures of few images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decomp import seeds
from decomp.errors import UsageError

from ...data.splits import ImageSource
from ..console.options import LEAST_IMAGES

#: One frozen image in so many is left out of every fit and of every tuning without labels.
HELD_OUT = 10
#: Where there are fewer images, mixtures of the fitted ones are recorded too, at most so many for each of them.
RECORDED_IMAGES, MIXTURES_EACH = 1000, 9
#: Blocks are trained on all recorded images and, where fewer than the first number are fitted, on further mixtures that
#: make them the second number, but at most so many times the recorded ones, or as many as `TRAINED_WORK` allows.
ENOUGH_IMAGES, WITH_MIXTURES, MOST_MIXTURES = 2000, 4500, 2
#: Where mixtures are recorded, networks are judged on so many held-out images and mixtures of them together.
JUDGED_IMAGES = 500
#: Most multiply-accumulates that mixtures take, so that large networks have fewer: of a pass over images and recorded
#: mixtures together, of one over further mixtures for the training of blocks, of one over those of held-out images.
MIXED_WORK, TRAINED_WORK, JUDGED_WORK = 4e11, 1e12, 1e11
#: Largest share of the second image in a mixture.
LARGEST_AREA = 0.5


def fitted_images(n_images: int) -> int:
    """How many of `n_images` frozen images the fits use, the first ones; those behind them are held out.

    Everything that judges a network by frozen images takes the held-out ones alone.
    """
    return n_images - max(1, n_images // HELD_OUT)


def draw_images(source: ImageSource, n_images: int, seed: int, *, least: int = LEAST_IMAGES) -> Tensor:
    """Draw the calibration images.

    Parameters
    ----------
    source : ImageSource
    n_images : int
        At most. A larger number draws the same images, and more behind them.
    seed : int
    least : int
        Fewest images that are enough.

    Returns
    -------
    torch.LongTensor
        Indices of training images, in random order.

    Raises
    ------
    UsageError
        There are fewer.
    """
    available = len(source.train)
    if available < least:
        rule, fix = f"at least {least} training images are needed", "give more; a few thousand are usual"
        raise UsageError(source.name, rule, got=available, fix=fix)
    order = torch.randperm(available, generator=seeds.generator(seed, "freeze", "images"))
    return order[: min(n_images, available)]


@dataclass(frozen=True)
class Mixtures:
    """Mixtures of two images each: the first one, with a rectangle of the second one in place of its own.

    Attributes
    ----------
    first, second : torch.LongTensor, shape (K,)
        Places among the calibration images.
    area : torch.Tensor, shape (K,)
        Share of the second image.
    corner : torch.Tensor, shape (K, 2)
        Upper left corner of the rectangle: between 0, at the upper or left border, and 1, where the rectangle ends at
        the lower or right one.
    """

    first: Tensor
    second: Tensor
    area: Tensor
    corner: Tensor

    def __len__(self) -> int:
        return len(self.area)

    def images(self, first: Tensor, second: Tensor, places: slice) -> Tensor:
        """The mixtures at some places, of their first and second images (m, C, H, W)."""
        rows, columns = (self._inside(places, axis, size) for axis, size in enumerate(first.shape[-2:]))
        return torch.where((rows[:, :, None] & columns[:, None])[:, None], second, first)

    def of(self, images: Tensor, places: slice) -> Tensor:
        """The mixtures at some places, of all images (N, C, H, W)."""
        return self.images(images[self.first[places]], images[self.second[places]], places)

    def _inside(self, places: slice, axis: int, size: int) -> Tensor:
        """Rows (axis 0) or columns (axis 1) of the rectangles: bool, shape (m, size)."""
        extent = (size * self.area[places].sqrt()).round().clamp_min(1)
        start = (self.corner[places, axis] * (size - extent)).round()
        index = torch.arange(size)
        return (index >= start[:, None]) & (index < (start + extent)[:, None])


def mixtures_of_any(n_images: int, n: int, generator: torch.Generator) -> Mixtures:
    """Draw mixtures: each image is the first one of as many as the others, the second one is any other.

    Parameters
    ----------
    n_images : int
        Two or more.
    n : int
        Mixtures; the images take turns as the first one.
    generator : torch.Generator
    """
    first = torch.arange(n) % n_images
    second = (first + 1 + (torch.rand(n, generator=generator) * (n_images - 1)).long()) % n_images
    area, corner = torch.rand(n, generator=generator), torch.rand(n, 2, generator=generator)
    return Mixtures(first, second, LARGEST_AREA * area, corner)


def any_mixtures(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The images of so many such mixtures: (n, C, H, W), of given images (N, C, H, W)."""
    mixtures = mixtures_of_any(len(images), n, generator)
    return torch.cat([mixtures.of(images, slice(start, start + 100)) for start in range(0, n, 100)])


def same_half(n_mixtures: int) -> int:
    """How many of the mixtures are of two images of one half of the fitted images; they come first."""
    return n_mixtures // 2


def mixtures_wanted(n_images: int) -> int:
    """How many mixtures are recorded beside so many calibration images, whatever they cost; 0 where none can be."""
    n_fit = fitted_images(n_images)
    return 0 if n_fit < 4 else max(0, min(RECORDED_IMAGES - n_images, MIXTURES_EACH * n_fit))


def mixtures_within(n_images: int, macs: float) -> int:
    """How many of them are recorded of a network whose pass over one image has so many multiply-accumulates.

    A pass over images and mixtures together has at most `MIXED_WORK`, as long as the images alone have no more.
    """
    return min(mixtures_wanted(n_images), max(0, _images_within(MIXED_WORK, macs) - n_images))


def mixtures_for_training(n_images: int, n_recorded: int, macs: float) -> int:
    """How many further mixtures blocks are trained on, beside the recorded images and mixtures.

    Parameters
    ----------
    n_images, n_recorded : int
        Calibration images, and these with their recorded mixtures.
    macs : float
        Of the original, for one image.
    """
    n_fit = fitted_images(n_images)
    if n_fit >= ENOUGH_IMAGES:
        return 0
    most = max(int(MOST_MIXTURES * n_recorded), _images_within(TRAINED_WORK, macs))
    return max(0, min(WITH_MIXTURES - n_fit - (n_recorded - n_images), most))


def mixtures_for_judging(n_images: int, macs: float) -> int:
    """How many mixtures of the held-out images stand beside them, as many of each; 0 where there are enough images.

    Parameters
    ----------
    n_images : int
        Calibration images.
    macs : float
        Of the original, for one image.
    """
    n_held_out = n_images - fitted_images(n_images)
    if not mixtures_wanted(n_images) or n_held_out < 2:
        return 0
    n = max(0, min(JUDGED_IMAGES - n_held_out, _images_within(JUDGED_WORK, macs)))
    return n - n % n_held_out


def _images_within(work: float, macs: float) -> int:
    """Images whose pass through a network of so many multiply-accumulates takes at most so much work."""
    return int(work / max(macs, 1.0))


def fewer_words(n_images: int, macs: float) -> str:
    """A line about the mixtures that a large network leaves no room for; empty where all are recorded."""
    wanted, recorded = mixtures_wanted(n_images), mixtures_within(n_images, macs)
    if recorded == wanted:
        return ""
    most = f"{MIXED_WORK / 1e9:,.0f} G multiply-accumulates a pass ({macs / 1e9:,.2g} G for each)"
    return (
        f"mixtures: {recorded or 'none'} of {wanted}, so that images and mixtures take at most {most}; more images "
        "bring more than mixtures"
    )


def draw_mixtures(n_images: int, seed: int, most: int | None = None) -> Mixtures | None:
    """Draw mixtures of the fitted images where these are few.

    Rectangles of one image in another, as Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers
    with Localizable Features", equation 1, of images alone: the original answers for a mixture as for any image, so no
    labels are mixed.

    Parameters
    ----------
    n_images : int
        Calibration images; the mixtures bring their number to `RECORDED_IMAGES`, with at most `MIXTURES_EACH` for each
        fitted image.
    seed : int
    most : int, optional
        At most so many.

    Returns
    -------
    Mixtures or None
        None where there are enough images, fewer than four fitted ones, or none is allowed. Those whose images are of
        one half of the fitted images come first, then those of both halves; the first images ascend in each.
    """
    n_fit, n = fitted_images(n_images), mixtures_wanted(n_images)
    n = n if most is None else min(n, most)
    if n <= 0:
        return None
    generator = seeds.generator(seed, "freeze", "mixtures")
    half, same = n_fit // 2, same_half(n)
    first = torch.cat([torch.arange(count) * n_fit // max(count, 1) for count in (same, n - same)])
    own, is_first = torch.arange(n) < same, first < half
    begin, size = torch.where(own == is_first, 0, half), torch.where(own == is_first, half, n_fit - half)
    # Another image of the own half, or any image of the other one.
    step = torch.where(own, 1, 0) + (torch.rand(n, generator=generator) * (size - own.long())).long()
    second = begin + (torch.where(own, first - begin, 0) + step) % size
    area, corner = torch.rand(n, generator=generator), torch.rand(n, 2, generator=generator)
    return Mixtures(first, second, LARGEST_AREA * area, corner)
