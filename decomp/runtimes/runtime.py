"""Interface of a runtime: a module made ready to run fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from decomp.runtimes.precision import in_words


class Runtime(Protocol):
    """A way to run a network.

    Attributes
    ----------
    name : str
        Of :data:`decomp.runtimes.names.RUNTIMES`.
    layout : str
        Memory layout of the images, of :data:`decomp.runtimes.names.LAYOUTS`.
    optimisation : str
        The level at which it optimises the graph, in words.
    version : str
        Of the library that runs the network.
    """

    @property
    def name(self) -> str: ...

    @property
    def layout(self) -> str: ...

    @property
    def optimisation(self) -> str: ...

    @property
    def version(self) -> str: ...

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
        """A callable that computes the outputs of the module, in evaluation mode.

        Every operation runs in this runtime: where one cannot, the module is refused, never run in another way.

        Parameters
        ----------
        module : torch.nn.Module
            Stays as it is.
        example : Tensor
            A batch of the shape, device and memory layout that the callable will be given.

        Raises
        ------
        DecompError
            The runtime is not installed, or cannot run the module; names the operation or the cause.
        """
        ...


def conditions(runtime: Runtime, device_kind: str = "cpu") -> dict[str, Any]:
    """Conditions of a measurement that the runtime decides: equal ones are comparable.

    The number of threads is that of torch in every runtime, and numbers are float32; see
    :mod:`decomp.runtimes.precision` for those on a GPU.
    """
    return {
        "runtime": runtime.name, "version": runtime.version, "threads": torch.get_num_threads(),
        "layout": runtime.layout, "precision": in_words(device_kind), "optimisation": runtime.optimisation,
    }  # fmt: skip
