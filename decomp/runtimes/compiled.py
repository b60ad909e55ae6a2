"""Compiled runtime: torch.compile turns the whole network into one graph of fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decomp.errors import check_choice
from decomp.runtimes.eager import LAYOUTS, Eager
from decomp.runtimes.failures import in_one_line
from decomp.runtimes.precision import as_set_outside


@dataclass(frozen=True)
class Compiled:
    """The compiled runtime; a :class:`decomp.runtimes.runtime.Runtime`.

    Attributes
    ----------
    layout : str
        Memory layout of images and weights, of :data:`decomp.runtimes.eager.LAYOUTS`.
    backend : str
        Of torch.compile.
    """

    layout: str = "contiguous"
    backend: str = "inductor"
    name: str = "compile"
    version: str = torch.__version__

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, LAYOUTS)

    @property
    def optimisation(self) -> str:
        """Backend and mode of the compiler."""
        return f"{self.backend}, default mode, fixed shapes"

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        """See :meth:`decomp.runtimes.runtime.Runtime.prepare`; compiles, and runs the example once."""
        network = Eager(self.layout).prepare(module, example)

        def forward(images: Tensor) -> object:
            return network(images)

        # Compiled graphs are kept by code object, and after eight of one torch falls back to eager mode: each network
        # has a code object of its own.
        forward.__code__ = forward.__code__.replace()
        # One graph: where the compiler would run a part in eager mode, it refuses instead.
        compiled = torch.compile(forward, backend=self.backend, fullgraph=True, dynamic=False)
        with in_one_line(self.name, "compiled"), torch.inference_mode(), as_set_outside():
            compiled(example)
        return compiled
