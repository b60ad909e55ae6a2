"""Interface of a runtime: a module made ready to run fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn


class Runtime(Protocol):
    """A way to run a network.

    Attributes
    ----------
    name : str
        In reports.
    """

    @property
    def name(self) -> str: ...

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        """A callable that computes the outputs of the module, in evaluation mode.

        Parameters
        ----------
        module : torch.nn.Module
            Stays as it is.
        example : Tensor
            A batch of the shape, device and memory layout that the callable will be given.
        """
        ...
