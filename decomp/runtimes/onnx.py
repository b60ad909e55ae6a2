"""ONNX Runtime on the CPU: the network exported as an ONNX graph, with all graph optimisations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decomp.errors import DecompError, check_choice
from decomp.runtimes.eager import Eager
from decomp.runtimes.failures import in_one_line
from decomp.runtimes.names import RUNTIMES, require_installed
from decomp.runtimes.onnx_graph import direct_graph, has_direct_graph
from decomp.runtimes.precision import as_set_outside

#: Largest graph in one protocol buffer.
LARGEST_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime; a :class:`decomp.runtimes.runtime.Runtime`.

    The runtime orders the numbers in memory itself, in blocks of channels.

    Attributes
    ----------
    layout : str
        Of the images: 'contiguous' is the only one that it takes.
    """

    layout: str = "contiguous"
    name: str = "onnxruntime"
    optimisation: str = "all graph optimisations, fixed shapes"

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, RUNTIMES[self.name].layouts)

    @property
    def version(self) -> str:
        """Of ONNX Runtime."""
        require_installed(self.name)
        import onnxruntime

        return str(onnxruntime.__version__)

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], list[Any]]:
        """See :meth:`decomp.runtimes.runtime.Runtime.prepare`; the callable returns arrays, in the order of the graph.

        As many threads as torch has. They stop to spin when a run ends: they would otherwise occupy the processor while
        the next network of an interleaved round runs.
        """
        return self.session(self.graph(module, example), example)

    def graph(self, module: nn.Module, example: Tensor) -> bytes:
        """The bytes of an ONNX graph of a module, with the shape of the example."""
        require_installed(self.name)
        network = Eager().prepare(module, example)
        with in_one_line(self.name, "exported"), as_set_outside():
            write = direct_graph if has_direct_graph(network, example) else _exported
            return write(network, example)

    def session(self, graph: bytes, example: Tensor) -> Callable[[Tensor], list[Any]]:
        """A callable that runs a graph, see :meth:`prepare`."""
        require_installed(self.name)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        with in_one_line(self.name, "loaded"):
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def run(images: Tensor) -> list[Any]:
            return list(session.run(None, {name: images.numpy()}))

        with in_one_line(self.name, "run"):
            run(example)
        return run


def _exported(network: nn.Module, example: Tensor) -> bytes:
    """The graph of any network, by torch's exporter; shapes are fixed to those of the example."""
    if sum(p.numel() * p.element_size() for p in network.parameters()) > LARGEST_BYTES:
        raise DecompError("onnxruntime", "a graph must stay below 2 GiB", fix="choose another runtime")
    program = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
    assert program is not None  # it is with dynamo=True
    return bytes(program.model_proto.SerializeToString())
