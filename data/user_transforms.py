"""Transforms of a user: a function from a picture to a tensor, by name, for evaluation and for training.

``path/to/file.py:function`` or ``package.module:function`` names one of

- a function without arguments that returns a transform, or ``{"train": transform, "val": transform}``;
- the transform itself: a function of one picture, or an object such as torchvision's ``Compose``;
- such a dict.

A transform takes a PIL image (RGB, or L where the network takes one channel) and returns a floating-point tensor
(C, H, W) as the network takes it. The one for evaluation must give the same result each time. Random steps belong
into the one under ``train``: its random numbers, also those of ``random`` and numpy, depend on the training's seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from decomp.errors import DecompError, UsageError, kind_of

from . import user_code
from .preprocessing import by
from .transforms import Shape

Transform = Callable[[Image.Image], Any]
_EVALUATION = ("val", "test", "eval", "evaluate")
_FORMS = 'a transform, or {"train": transform, "val": transform}'


@contextmanager
def drawing_from(seed: int, index: int) -> Iterator[None]:
    """Random numbers of torch, numpy and ``random`` depend on (seed, index) in the block; restored afterwards."""
    states = random.getstate(), np.random.get_state()
    number = (seed * 0x9E3779B97F4A7C15 + index * 0x2545F4914F6CDD1D + 1) % 2**63
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            np.random.seed(number % 2**32)
            random.seed(number)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class UserPreparation:
    """Preparation of pictures by a user's transforms; see :class:`decomp.data.pictures.Preparation`.

    Parameters
    ----------
    name : str
        Of the function.
    mode : str
        L or RGB.

    Raises
    ------
    UsageError, DecompError
        There is no such function, or it is of none of the forms above.
    """

    def __init__(self, name: str, mode: str) -> None:
        self.name, self._mode = name, mode
        self._evaluate, self._train = _transforms_of(name)
        self._shape: Shape | None = None

    @property
    def augments(self) -> bool:
        """Whether there is a transform of its own for training."""
        return self._train is not None

    def mode(self) -> str:
        return self._mode

    def one(self, image: Image.Image, augmented: bool) -> Image.Image | Tensor:
        # Random numbers are those of the process: such a transform runs in one thread, in batch().
        return image if augmented and self.augments else self._apply(self._evaluate, image)

    def batch(self, prepared: list[Any], indices: Tensor, augment_seed: int | None) -> Tensor:
        images: list[Tensor] = []
        for index, item in zip(indices.tolist(), prepared):
            if isinstance(item, Image.Image) and self._train is not None:
                with drawing_from(augment_seed or 0, index):
                    item = self._apply(self._train, item)
            images.append(item)
        shapes = list(dict.fromkeys(tuple(image.shape) for image in images))
        if len(shapes) > 1:
            got = f"{by(shapes[0])} and {by(shapes[1])}"
            fix = "end it with a resize to height and width, or a crop"
            raise UsageError(self.name, "must give images of one shape", got=got, fix=fix)
        return torch.stack(images)

    def check(self, image: Image.Image) -> Shape:
        """Shape of the result for one picture.

        Raises
        ------
        UsageError
            The transform for evaluation gives another result each time.
        """
        results = []
        for seed in range(3):
            with drawing_from(seed, 0):
                results.append(self._apply(self._evaluate, image))
        if any(result.shape != results[0].shape or not torch.equal(result, results[0]) for result in results):
            fix = 'return {"train": ..., "val": ...} with the random steps under train only'
            raise UsageError(self.name, "the transform for evaluation must give the same result each time", fix=fix)
        channels, height, width = results[0].shape
        return channels, height, width

    def _apply(self, transform: Transform, image: Image.Image) -> Tensor:
        with user_code.errors_in_one_line(self.name):
            result = transform(image)
        if isinstance(result, np.ndarray):
            result = torch.from_numpy(result)
        if not isinstance(result, Tensor) or not result.is_floating_point() or result.dim() != 3 or 0 in result.shape:
            got = kind_of(result)
            if isinstance(result, Tensor):
                got = f"{str(result.dtype).removeprefix('torch.')} of shape {tuple(result.shape)}"
            fix = "end it with torchvision's ToTensor() and Normalize()"
            raise UsageError(self.name, "must give a floating-point tensor (C, H, W)", got=got, fix=fix)
        # A plain tensor: torchvision's own classes of tensors would change the results of later functions.
        return result.detach().as_subclass(Tensor).float().cpu()


def _transforms_of(name: str) -> tuple[Transform, Transform | None]:
    """The transform for evaluation, and the one for training where there is one."""
    if not user_code.names_user_code(name):
        raise UsageError(
            "--transforms", "must be path/to/file.py:function", got=repr(name), fix=user_code.named_functions(name)
        )
    found = user_code.find(name)
    factory = callable(found) and not isinstance(found, nn.Module) and _is_plain(found)
    if factory and len(user_code.needed_arguments(found)) == 0:
        with user_code.importable(name.rpartition(":")[0]), user_code.errors_in_one_line(name):
            found = found()
    if isinstance(found, dict):
        evaluation = next((found[key] for key in _EVALUATION if key in found), None)
        if not callable(evaluation) or not callable(found.get("train", evaluation)):
            got = f"a dict with {', '.join(map(str, found)) or 'nothing'}"
            raise DecompError(name, f"must be {_FORMS}", got=got)
        return evaluation, found.get("train")
    if not callable(found) or len(user_code.needed_arguments(found)) > 1:
        raise DecompError(name, f"must be {_FORMS}", got=kind_of(found))
    return found, None


def _is_plain(found: object) -> bool:
    return isinstance(found, type) or hasattr(found, "__code__")
