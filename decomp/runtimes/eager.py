"""Eager runtime: PyTorch runs the module, one operation after the other."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decomp.errors import check_choice

#: Memory formats of images and kernels. Factors are small: the conversion of numbers into the order in which a
#: processor convolves weighs more in them, and most of it is saved with the channels last.
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class Eager:
    """The eager runtime; a :class:`decomp.runtimes.runtime.Runtime`.

    Attributes
    ----------
    layout : str
        Memory layout of the weights, of :data:`LAYOUTS`.
    """

    layout: str = "contiguous"
    name: str = "eager"
    version: str = torch.__version__
    optimisation: str = "none"

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, LAYOUTS)

    def prepare(self, module: nn.Module, example: Tensor) -> nn.Module:
        """A copy of the module in evaluation mode, on the device of the example, with its weights laid out."""
        laid_out = copy.deepcopy(module).to(memory_format=LAYOUTS[self.layout])
        return laid_out.to(example.device).eval()
