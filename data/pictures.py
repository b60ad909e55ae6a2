"""Split of pictures: decoded by a pool of threads, prepared by resize, crop and mean or by a user's transform."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from decomp.errors import DecompError, FileError, UsageError

from .preprocessing import Preprocessing, by
from .splits import Indices, Split, batches_of, numbers_of
from .transforms import Shape, draw

# A narrow strip enlarged until its short side fits would fill the memory: beyond this ratio, the sides are cropped.
_LONGEST = 16
_N_NAMED = 3


class Preparation(Protocol):
    """Preparation of pictures for a network, in two steps: one picture, which threads may do, then a batch."""

    def mode(self) -> str:
        """Mode of the pictures that it takes, as PIL names it: L or RGB."""

    def one(self, image: Image.Image, augmented: bool) -> Any:
        """One picture, as far as threads may prepare it."""

    def batch(self, prepared: list[Any], indices: Tensor, augment_seed: int | None) -> Tensor:
        """Prepared pictures as the network takes them: float32, shape (m, C, H, W)."""


def rgb(image: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB: greyscale is repeated, 16 bits are scaled to 8, alpha is dropped.

    Raises
    ------
    ValueError
        32-bit pixels.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # PIL's own conversion would clip at 255 instead of scaling
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no agreed range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def resized(image: Image.Image, steps: Preprocessing) -> Image.Image:
    """Resize a picture, so that the window of `steps` can be cut out of it.

    Raises
    ------
    UsageError
        It is smaller than the window, and is not to be resized.
    """
    if steps.resize is None:
        if image.height < steps.crop[0] or image.width < steps.crop[1]:
            rule = f"images must be at least {by(steps.crop)} (height × width) where they are not resized"
            raise UsageError("--crop", rule, got=by((image.height, image.width)), fix="give --resize too, or crop less")
        return image
    height, width = steps.resize
    if not steps.stretch:
        longest = _LONGEST * min(image.size)
        if max(image.size) > longest:
            image = ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
        if height * image.width >= width * image.height:
            width = max(width, int(height * image.width / image.height))
        else:
            height = max(height, int(width * image.height / image.width))
    return image.resize((width, height), Image.Resampling[steps.interpolation.upper()])


class StandardPreparation:
    """Preparation by resize, crop, mean and deviation.

    Parameters
    ----------
    steps : Preprocessing
    shape : (C, H, W)
        C is 1 (luminance) or 3; H and W are those of ``steps.crop``.
    """

    def __init__(self, steps: Preprocessing, shape: Shape) -> None:
        self._steps, self._shape = steps, shape
        self._normalisation = steps.normalisation(shape[0])

    def mode(self) -> str:
        return "L" if self._shape[0] == 1 else "RGB"

    def one(self, image: Image.Image, augmented: bool) -> np.ndarray:
        array = np.asarray(resized(image, self._steps))
        return array if array.ndim == 3 else array[:, :, None]

    def batch(self, prepared: list[np.ndarray], indices: Tensor, augment_seed: int | None) -> Tensor:
        channels, height, width = self._shape
        room = torch.tensor([item.shape[:2] for item in prepared]).reshape(-1, 2) - torch.tensor([height, width])
        middle = [torch.tensor([round(r / 2) for r in side.tolist()], dtype=torch.int64) for side in room.T]
        (top, left), flip = middle, torch.zeros(len(indices), dtype=torch.bool)
        if augment_seed is not None and self._steps.random_crop:
            top, left = (draw(augment_seed, indices, stream, room[:, stream] + 1) for stream in (0, 1))
        if augment_seed is not None and self._steps.flip:
            flip = draw(augment_seed, indices, 2, 2).bool()
        pixels = np.empty((len(prepared), height, width, channels), np.uint8)
        for i, (image, y, x, mirror) in enumerate(zip(prepared, top.tolist(), left.tolist(), flip.tolist())):
            window = image[y : y + height, x : x + width]
            pixels[i] = window[:, ::-1] if mirror else window
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
        return self._normalisation.shift(images.div_(self._normalisation.scale))


class PictureSplit(Split):
    """Split whose images are pictures of any size.

    Parameters
    ----------
    name : str
        Of the source, for errors.
    labels : Tensor of int64, shape (N,), or None
    preparation : Preparation
    """

    def __init__(self, name: str, labels: Tensor | None, preparation: Preparation):
        self._name, self._labels, self.preparation = name, labels, preparation

    @abstractmethod
    def picture(self, index: int, mode: str) -> Image.Image:
        """One picture in mode L or RGB; raises anything for one that cannot be read."""

    @abstractmethod
    def title(self, index: int) -> str:
        """Name of one picture, for errors."""

    def batches(
        self, order: Indices, batch_size: int, *, augment_seed: int | None = None, numbers: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As :meth:`Split.batches`; the pictures of the next batch are decoded while a batch is in use."""
        with thread_pool() as pool:
            pending = None
            for indices, own in zip(batches_of(order, batch_size), numbers_of(order, batch_size, numbers)):
                submitted = (indices, own, self._submit(pool, indices, augment_seed))
                if pending is not None:
                    yield self._finish(*pending[1:], augment_seed), self.labels(pending[0])
                pending = submitted
            if pending is not None:
                yield self._finish(*pending[1:], augment_seed), self.labels(pending[0])

    def _load(self, indices: Tensor, augment_seed: int | None, numbers: Tensor) -> Tensor:
        with thread_pool() as pool:
            return self._finish(numbers, self._submit(pool, indices, augment_seed), augment_seed)

    def _submit(self, pool: ThreadPoolExecutor, indices: Tensor, augment_seed: int | None) -> list[Future[Any]]:
        return [pool.submit(self._prepare, index, augment_seed is not None) for index in indices.tolist()]

    def _prepare(self, index: int, augmented: bool) -> Any:
        try:
            return self.preparation.one(self.picture(index, self.preparation.mode()), augmented)
        except DecompError:
            raise
        except Exception as error:  # PIL's readers raise anything on a broken file: OSError, SyntaxError, struct.error
            return _Unreadable(self.title(index), error)

    def _finish(self, numbers: Tensor, decoding: list[Future[Any]], augment_seed: int | None) -> Tensor:
        results = [future.result() for future in decoding]
        bad = [item for item in results if isinstance(item, _Unreadable)]
        if bad:
            raise _unreadable(self._name, bad)
        return self.preparation.batch(results, numbers, augment_seed)


class _Unreadable:
    """A picture that cannot be decoded, and the reason."""

    def __init__(self, title: str, error: Exception):
        self.title, self.reason = title, " ".join(str(error).split())[:80] or type(error).__name__


def _unreadable(name: str, bad: list[_Unreadable]) -> FileError:
    named = ", ".join(f"{item.title} ({item.reason})" for item in bad[:_N_NAMED])
    more = f" and {len(bad) - _N_NAMED} more" if len(bad) > _N_NAMED else ""
    fix = "mend or remove them, or leave unreadable images out with --skip-bad"
    return FileError(name, f"image files cannot be read: {named}{more}", fix=fix)


#: Applies a function to some of the items, other processes to the others, and gives what all of them found, in order.
Spread = Callable[[Callable[[Sequence[Any]], list[Any]], Sequence[Any]], list[Any]]


def alone(function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """What a function finds for all items in this process."""
    return function(items)


def threaded(function: Callable[[Any], Any], items: Sequence[Any], spread: Spread = alone) -> list[Any]:
    """What a function finds for each item, by a pool of threads, of several processes each for its share."""

    def found(own: Sequence[Any]) -> list[Any]:
        with thread_pool() as pool:
            return list(pool.map(function, own))

    return spread(found, items)


def thread_pool() -> ThreadPoolExecutor:
    """Pool for decoding."""
    # Threads, not processes: PIL releases the interpreter lock while it decodes and resizes.
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
