"""Transforms of batches of pixels: normalisation, channel count, size, and augmentation drawn per image.

Everything here is a function of tensors. A random decision about an image is a function of (seed, image index) alone,
so that an epoch is the same whatever the batch size, the order or the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decomp.errors import UsageError

#: Shape (C, H, W) of one image.
Shape = tuple[int, int, int]

# ITU-R BT.601 luma, the weights that PIL's convert("L") uses.
LUMINANCE = (0.299, 0.587, 0.114)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), on an array of uint64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def draw(seed: int, indices: Tensor, stream: int, n: int | Tensor) -> Tensor:
    """Uniform integers in ``[0, n)``, one per image, from a counter-based hash.

    Parameters
    ----------
    seed : int
        Any integer.
    indices : Tensor of int64, shape (m,)
        The images' indices in their split; the same index always draws the same number.
    stream : int
        Number of the decision about the image (top, left, flip, ...): streams are independent.
    n : int or Tensor of int64, shape (m,)
        Number of outcomes, at most 2**32, for all images or for each.

    Returns
    -------
    Tensor of int64, shape (m,)
    """
    key = np.array([(seed * 0x2545F4914F6CDD1D + stream + 1) % 2**64], dtype=np.uint64)
    counter = indices.numpy().astype(np.uint64)
    bits = _mix(_mix(key * _GOLDEN) + (counter + np.uint64(1)) * _GOLDEN)
    n_outcomes = n.numpy().astype(np.uint64) if isinstance(n, Tensor) else np.uint64(n)
    return torch.from_numpy((((bits >> np.uint64(32)) * n_outcomes) >> np.uint64(32)).astype(np.int64))


@dataclass(frozen=True)
class Augmentation:
    """Random shift (a crop after padding with black) and random mirroring.

    Parameters
    ----------
    pad : int
        Pixels of black added on each side before a crop of the original size; 0 for no shift.
    flip : bool
        Mirror left to right with probability 1/2; for classes that are their own mirror image.
    """

    pad: int = 0
    flip: bool = False

    def __call__(self, pixels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Augment ``pixels`` (m, C, H, W), of any dtype whose black is 0; returns a new tensor of the same shape."""
        if not self.pad and not self.flip:
            return pixels
        span = 2 * self.pad + 1
        top, left = draw(seed, indices, 0, span), draw(seed, indices, 1, span)
        flip = draw(seed, indices, 2, 2).bool() if self.flip else torch.zeros(len(indices), dtype=torch.bool)
        padded = F.pad(pixels, (self.pad,) * 4) if self.pad else pixels
        return crop(padded, top, left, (pixels.shape[-2], pixels.shape[-1]), flip)

    def describe(self) -> str:
        """The policy as text."""
        parts = []
        if self.pad:
            parts.append(f"shift by at most {self.pad} pixel{'s' if self.pad > 1 else ''}, filled with black")
        if self.flip:
            parts.append("mirrored with probability 1/2")
        return ", ".join(parts) or "none"


#: Numbers of an image from which windows are cut image by image: the call for each is short beside the copy.
LARGE = 1 << 13


def crop(pixels: Tensor, top: Tensor, left: Tensor, size: tuple[int, int], flip: Tensor) -> Tensor:
    """Cut a window of ``size`` (H, W) out of each image at its own (top, left), mirrored where ``flip`` is true.

    Parameters
    ----------
    pixels : Tensor, shape (m, C, H', W') with H' >= H and W' >= W
    top, left : Tensor of int64, shape (m,)
    flip : Tensor of bool, shape (m,)

    Returns
    -------
    Tensor, shape (m, C, H, W)
    """
    height, width = size
    if pixels[:1].numel() >= LARGE:
        cut = pixels.new_empty((len(pixels), pixels.shape[1], height, width))
        for into, image, y, x, mirror in zip(cut, pixels, top.tolist(), left.tolist(), flip.tolist()):
            window = image[:, y : y + height, x : x + width]
            into.copy_(window.flip(2) if mirror else window)
        return cut
    windows = pixels.unfold(2, height, 1).unfold(3, width, 1)
    cut = windows[torch.arange(len(pixels)), :, top, left]
    mirrored = flip.nonzero()[:, 0]
    cut[mirrored] = cut[mirrored].flip(3)
    return cut


@dataclass(frozen=True)
class Normalisation:
    """``(pixel / scale - mean) / std`` with one mean and std per channel.

    ``mean`` and ``std`` belong to the channels of the source; :meth:`on_channels` converts them to another number of
    channels.
    """

    scale: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def on_known_scale(self) -> bool:
        """Whether pixels over `scale` are from 0 to 1, which nobody knows of numbers that are taken as they are."""
        return self.scale != 1

    def on_channels(self, n_channels: int) -> Normalisation:
        """The same normalisation after 1 -> 3 (repeated) or 3 -> 1 channels (luminance of the means and deviations)."""
        n_own = len(self.mean)
        if n_own in (0, n_channels):
            return self
        if n_own == 1:
            return Normalisation(self.scale, self.mean * n_channels, self.std * n_channels)
        mean, std = (sum(w * v for w, v in zip(LUMINANCE, values)) for values in (self.mean, self.std))
        return Normalisation(self.scale, (mean,), (std,))

    def shift(self, images: Tensor) -> Tensor:
        """Subtract mean and divide by deviation, in place, of images (m, C, H, W) already divided by ``scale``."""
        if self.mean:
            images.sub_(torch.tensor(self.mean)[:, None, None]).div_(torch.tensor(self.std)[:, None, None])
        return images

    def describe(self) -> dict[str, Any]:
        """Scale, mean and std as plain data."""
        return {"scale": self.scale, "mean": list(self.mean), "std": list(self.std)}


def adapt(images: Tensor, shape: Shape) -> Tensor:
    """Convert float images (m, C', H', W') to ``shape`` (C, H, W).

    One channel becomes three by repetition, three become one by luminance; another size is reached by bilinear
    interpolation with antialiasing.
    """
    n_channels, height, width = shape
    if images.shape[1] == 3 and n_channels == 1:
        weights = torch.tensor(LUMINANCE, dtype=images.dtype)
        images = (images * weights[:, None, None]).sum(1, keepdim=True)
    if images.shape[-2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)
    if images.shape[1] == 1 and n_channels == 3:
        # contiguous: the three channels are written to in place afterwards, an expanded view could not be
        images = images.expand(-1, 3, -1, -1).contiguous()
    return images


def check_shape(name: str, native: Shape, requested: Sequence[int] | None) -> Shape:
    """Check a requested shape; ``native`` where none is requested.

    Parameters
    ----------
    name : str
        Name of the source, for errors.
    native, requested : (C, H, W)
        Of the images, and of the model.

    Returns
    -------
    (C, H, W)

    Raises
    ------
    UsageError
        :func:`adapt` cannot convert the images.
    """
    if requested is None:
        return native
    shape = shape_of(name, requested)
    if shape[0] != native[0] and {shape[0], native[0]} != {1, 3}:
        raise UsageError(
            name,
            f"images of {native[0]} channels can only be given to a model that takes {native[0]}"
            + (" (or 1 from 3, 3 from 1)" if native[0] in (1, 3) else ""),
            got=f"a model of {shape[0]} channels",
            fix="choose a data source that fits the model",
        )
    return shape


def shape_of(name: str, requested: Sequence[int]) -> Shape:
    """A requested shape as a tuple.

    Raises
    ------
    UsageError
        It is not three positive whole numbers.
    """
    if len(requested) != 3 or any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in requested):
        rule = "an input shape is three positive whole numbers (channels, height, width)"
        raise UsageError(name, rule, got=requested)
    return requested[0], requested[1], requested[2]
