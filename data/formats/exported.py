"""Export formats: exported program, ONNX, TorchScript, state dict, safetensors.

Every file also holds a JSON text about itself (:func:`decomp.pipelines.stages.export.metadata`):

================  ==================  ===================================================  =======================
format            suffix              network                                              JSON text
================  ==================  ===================================================  =======================
``pt2``           ``.pt2``            ``torch.export`` program; batch dimension, and       extra file
                                      height and width where asked, dynamic                ``decomp.json``
``onnx``          ``.onnx``           ONNX graph, input ``images``, output ``outputs`` or  metadata property
                                      the names of several, dynamic likewise;              ``decomp``
                                      below 2 GiB
``torchscript``   ``.pt``             traced module; nested outputs as one dict of         extra file
                                      tensors by name                                      ``decomp.json``
``state-dict``    ``.pth``            state dict of ``torch.save``                         ``decomp`` in the version
                                                                                           metadata of the root
``safetensors``   ``.safetensors``    tensors of the state dict                            metadata ``decomp``
================  ==================  ===================================================  =======================
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from decomp.errors import DecompError
from decomp.execution.outputs import SINGLE, leaves, named_tensors

ONNX_BYTES = 2**31 - 2**24  # limit of a protocol buffer, less the part that is not weights
ABOUT = "decomp"

#: A network read back: images of shape (m, C, H, W) in, outputs out.
Network = Callable[[Tensor], Any]


class Writer(Protocol):
    """Function that writes a network into a file, see :class:`Format`."""

    def __call__(
        self, network: nn.Module, example: Tensor, path: str, text: str, axes: Sequence[int] = ...
    ) -> None: ...


@dataclass(frozen=True)
class Format:
    """One export format.

    Attributes
    ----------
    suffix : str
        Of the file name.
    write : callable
        ``write(network, example, path, text, axes)`` writes the network, traced on ``example`` where the format needs
        it, and the JSON text about it. Of the images' axes, 0 and those in ``axes`` are dynamic.
    read : callable
        ``read(path, network)`` returns a callable on images and the JSON text. Where the file holds weights alone, they
        are loaded into a copy of ``network``.
    is_program : bool
        Whether the file can be run; otherwise it holds weights.
    """

    suffix: str
    write: Writer
    read: Callable[[str, nn.Module], tuple[Network, str]]
    is_program: bool = True


def _dynamic_shapes(axes: Sequence[int]) -> tuple[dict[int, Any]]:
    # AUTO: the exporter finds what the network demands of a size, such as an even number of rows.
    return ({0: torch.export.Dim("batch"), **dict.fromkeys(axes, torch.export.Dim.AUTO)},)


def _write_pt2(network: nn.Module, example: Tensor, path: str, text: str, axes: Sequence[int] = ()) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=_dynamic_shapes(axes))
    torch.export.save(program, path, extra_files={f"{ABOUT}.json": text})


def _read_pt2(path: str, network: nn.Module) -> tuple[Network, str]:
    extra: dict[str, Any] = {f"{ABOUT}.json": ""}
    return torch.export.load(path, extra_files=extra).module(), _text(extra)


def _write_onnx(network: nn.Module, example: Tensor, path: str, text: str, axes: Sequence[int] = ()) -> None:
    if sum(p.numel() * p.element_size() for p in network.parameters()) > ONNX_BYTES:
        raise DecompError("onnx", "one file must stay below 2 GiB", fix="export pt2 instead")
    program = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=_dynamic_shapes(axes), verbose=False,
        input_names=["images"], output_names=_output_names(network, example),
    )  # fmt: skip
    assert program is not None  # it is with dynamo=True
    program.model.metadata_props[ABOUT] = text
    program.save(path, external_data=False)


def _read_onnx(path: str, network: nn.Module) -> tuple[Network, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]

    return run, session.get_modelmeta().custom_metadata_map[ABOUT]


def _output_names(network: nn.Module, example: Tensor) -> list[str]:
    """``outputs`` for a single tensor; otherwise the names of the tensors."""
    with torch.no_grad():
        names = list(named_tensors(network(example)))
    return ["outputs"] if names == [SINGLE] else names


def _write_torchscript(network: nn.Module, example: Tensor, path: str, text: str, axes: Sequence[int] = ()) -> None:
    with torch.no_grad():
        if _is_nested(network(example)):
            network = _Named(network)
        # Not strict: a dict is returned as it is made, with the same keys for all images.
        traced = torch.jit.trace(network, example, strict=False)
    torch.jit.save(traced, path, _extra_files={f"{ABOUT}.json": text})


def _is_nested(output: Any) -> bool:
    """Whether an output is of no form that TorchScript has: a tensor, or a list, tuple or dict of tensors alone."""
    if isinstance(output, Tensor):
        return False
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else [None]
    return not all(isinstance(part, Tensor) for part in parts)


class _Named(nn.Module):
    """A network that returns its tensors in one dict, by the names of :func:`decomp.execution.outputs.leaves`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: value for name, value in leaves(self.network(images)) if isinstance(value, Tensor)}


def _read_torchscript(path: str, network: nn.Module) -> tuple[Network, str]:
    extra: dict[str, Any] = {f"{ABOUT}.json": ""}
    return torch.jit.load(path, _extra_files=extra), _text(extra)


def _write_state_dict(network: nn.Module, example: Tensor, path: str, text: str, axes: Sequence[int] = ()) -> None:
    state: Any = network.state_dict()
    # Beside the versions of the modules, where load_state_dict ignores it.
    state._metadata[""][ABOUT] = text
    torch.save(state, path)


def _read_state_dict(path: str, network: nn.Module) -> tuple[Network, str]:
    state = torch.load(path, weights_only=True)
    return _with_weights(network, state), state._metadata[""][ABOUT]


def _write_safetensors(network: nn.Module, example: Tensor, path: str, text: str, axes: Sequence[int] = ()) -> None:
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path, metadata={ABOUT: text})


def _read_safetensors(path: str, network: nn.Module) -> tuple[Network, str]:
    with safe_open(path, "pt") as file:
        return _with_weights(network, load_file(path)), file.metadata()[ABOUT]


def _with_weights(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network with the weights loaded; set to zero before, so that no own weight can remain."""
    module = copy.deepcopy(network)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    module.load_state_dict(state)
    return module


def _text(extra: Mapping[str, Any]) -> str:
    value = extra[f"{ABOUT}.json"]
    return value.decode() if isinstance(value, bytes) else value


FORMATS: dict[str, Format] = {
    "pt2": Format(".pt2", _write_pt2, _read_pt2),
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
    "torchscript": Format(".pt", _write_torchscript, _read_torchscript),
    "state-dict": Format(".pth", _write_state_dict, _read_state_dict, is_program=False),
    "safetensors": Format(".safetensors", _write_safetensors, _read_safetensors, is_program=False),
}
