"""Options for the transforms of images, as a person gives them: mean, std, resize, crop, mirroring, own transforms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from decomp.errors import UsageError

#: Name of images that are given as they are, and not by a name.
IN_MEMORY = "images in memory"
_SIZES = "write 224 (the short side) or 224x192 (height x width)"


def numbers(name: str, value: object) -> tuple[float, ...]:
    """``'0.5'``, ``'0.485,0.456,0.406'``, a number or a sequence of numbers, as finite numbers.

    Raises
    ------
    UsageError
    """
    given: Any = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        found = tuple(float(part) for part in (given if isinstance(given, Iterable) else (given,)))
    except (TypeError, ValueError):
        found = ()
    if not found or not all(map(math.isfinite, found)) or isinstance(value, bool):
        rule = "must be one number, or one for each channel separated by commas"
        raise UsageError(name, rule, got=repr(value), fix=f"write for example {name} 0.485,0.456,0.406")
    return found


def sides(name: str, value: object) -> tuple[int, ...]:
    """``'256'``, ``'256x224'``, a whole number or two of them, as one or two positive whole numbers.

    Raises
    ------
    UsageError
    """
    parts: Iterable[Any]
    if isinstance(value, str):
        parts = value.lower().replace("×", "x").split("x")
    else:
        parts = value if isinstance(value, Iterable) else (value,)
    try:
        given = list(parts)
        found = tuple(int(part) for part in given)
        whole = all(isinstance(part, str) or (part == int(part) and not isinstance(part, bool)) for part in given)
    except (TypeError, ValueError, OverflowError):
        found, whole = (), False
    if not whole or not 1 <= len(found) <= 2 or min(found) < 1:
        raise UsageError(name, "must be one or two positive whole numbers", got=repr(value), fix=_SIZES)
    return found


@dataclass(frozen=True)
class ImageOptions:
    """Options for the transforms of images; None where the weights, or else the usual values, decide.

    Parameters
    ----------
    mean, std : tuple of float, optional
        One number, or one for each channel, for values from 0 to 1; they come together.
    resize : tuple of int, optional
        One number: the short side. Two: height and width, whatever the shape of the image.
    crop : tuple of int, optional
        The middle that is cut out: one number for a square, or height and width.
    flip : bool
        Mirror images at random while a network is trained.
    transforms : str, optional
        ``path/to/file.py:function`` or ``package.module:function``, see :mod:`decomp.data.user_transforms`.

    Raises
    ------
    UsageError
        Values that do not go together.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: tuple[int, ...] | None = None
    crop: tuple[int, ...] | None = None
    flip: bool = True
    transforms: str | None = None

    def __post_init__(self) -> None:
        if self.transforms is not None and (beside := self.given("mean", "std", "resize", "crop", "flip")):
            rule = "replaces all other transforms of the images"
            raise UsageError("--transforms", rule, got=f"{beside[0]} beside it", fix="leave one of them out")
        self._check_mean_and_std()
        self._check_sizes()

    def _check_mean_and_std(self) -> None:
        if (self.mean is None) != (self.std is None):
            one, other = ("--mean", "--std") if self.std is None else ("--std", "--mean")
            fix = f"give {other} too (--mean 0 --std 1 leaves values from 0 to 1)"
            raise UsageError(one, f"comes together with {other}", got=f"no {other}", fix=fix)
        if self.mean is None or self.std is None:
            return
        if min(self.std) <= 0:
            raise UsageError("--std", "must be positive", got=shown(self.std))
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            rule = f"must have one number, or {len(self.mean)} as --mean has"
            raise UsageError("--std", rule, got=shown(self.std))

    def _check_sizes(self) -> None:
        if self.resize is None or self.crop is None:
            return
        limit, crop = (self.resize[0], self.resize[-1]), (self.crop[0], self.crop[-1])
        if crop[0] > limit[0] or crop[1] > limit[1]:
            rule = f"must fit into the resized image (--resize {'x'.join(map(str, self.resize))})"
            raise UsageError("--crop", rule, got="x".join(map(str, self.crop)), fix="crop less or resize to more")

    def given(self, *names: str) -> list[str]:
        """Those of the named options that have a value, as the command line writes them."""
        defaults = {entry.name: entry.default for entry in fields(self)}
        chosen = [name for name in names if getattr(self, name) != defaults[name]]
        return ["--no-flip" if name == "flip" else f"--{name}" for name in chosen]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images after resize and crop; None where neither is given."""
        final = self.crop or self.resize
        return None if final is None else (final[0], final[-1])


def shown(values: Iterable[float]) -> str:
    """Numbers as the command line takes them."""
    return ",".join(f"{value:g}" for value in values)
