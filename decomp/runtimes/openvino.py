"""OpenVINO on the CPU: the network converted from its trace, compiled for latency in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decomp.errors import check_choice
from decomp.runtimes.eager import Eager
from decomp.runtimes.failures import in_one_line
from decomp.runtimes.names import RUNTIMES, require_installed
from decomp.runtimes.precision import as_set_outside


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO; a :class:`decomp.runtimes.runtime.Runtime`.

    The runtime orders the numbers in memory itself.

    Attributes
    ----------
    layout : str
        Of the images: 'contiguous' is the only one that it takes.
    """

    layout: str = "contiguous"
    name: str = "openvino"
    optimisation: str = "latency hint, fixed shapes"

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, RUNTIMES[self.name].layouts)

    @property
    def version(self) -> str:
        """Of OpenVINO."""
        require_installed(self.name)
        import openvino

        return str(openvino.__version__)

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], list[Any]]:
        """See :meth:`decomp.runtimes.runtime.Runtime.prepare`; the callable returns arrays, in the order of the graph.

        As many threads as torch has, and float32 also on processors that have shorter numbers.
        """
        require_installed(self.name)
        import openvino

        network = Eager().prepare(module, example)
        with in_one_line(self.name, "converted"), as_set_outside():
            graph = openvino.convert_model(network, example_input=example, input=[tuple(example.shape)])
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        with in_one_line(self.name, "compiled"):
            compiled = openvino.Core().compile_model(graph, "CPU", settings)

        def run(images: Tensor) -> list[Any]:
            return list(compiled([images.numpy()]).values())

        with in_one_line(self.name, "run"):
            run(example)
        return run
