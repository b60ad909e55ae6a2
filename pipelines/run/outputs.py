"""Outputs of the network of a run, as freeze described and measured them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from decomp.errors import FileError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.execution.output_spread import Spread
from decomp.execution.outputs import named_tensors

from ...data.formats.frozen_file import FrozenFile

_FIX = "run freeze again into another --run"
_IMAGES_AT_A_TIME = 100


def frozen_outputs(frozen: FrozenFile) -> Outputs:
    """The outputs of the network that was frozen, from the frozen file itself.

    Raises
    ------
    FileError
        The description is broken.
    """
    return read_outputs(frozen.meta.get("outputs"), "the frozen points")


def measured_outputs(original: nn.Module, frozen: FrozenFile) -> Outputs:
    """The outputs of a frozen network, measured on its calibration images: for files that do not describe them.

    Earlier versions took a single output of two axes for class scores and all others for values; so does this.

    Parameters
    ----------
    original : torch.nn.Module
        In evaluation mode, on the CPU.
    frozen : FrozenFile
    """
    spread = None
    with torch.no_grad():
        for start in range(0, frozen.n_images, _IMAGES_AT_A_TIME):
            images = frozen.images(start, min(start + _IMAGES_AT_A_TIME, frozen.n_images))
            tensors = named_tensors(original(images), len(images))
            if spread is None:
                shapes = {name: tuple(value.shape[1:]) for name, value in tensors.items()}
                scores = len(shapes) == 1 and all(len(shape) == 1 and shape[0] > 1 for shape in shapes.values())
                kind = "scores" if scores else "values"
                spread = Spread(
                    Outputs(tuple(Output(name, kind, shape, "earlier version") for name, shape in shapes.items()))
                )
            spread.add(tensors)
    assert spread is not None  # a frozen file has images
    return spread.measured()


def read_outputs(record: Any, thing: object) -> Outputs:
    """Outputs out of the record in a file.

    Raises
    ------
    FileError
        The record is broken.
    """
    try:
        return Outputs.from_json(record)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise FileError(thing, f"the description of the outputs is broken ({reason})", fix=_FIX) from error
