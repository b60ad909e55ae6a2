"""Export formats: exported program, ONNX, TorchScript, state dict, safetensors."""

import copy
from dataclasses import dataclass

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from decomp.errors import DecompError

ONNX_BYTES = 2**31 - 2**24  # what a protocol buffer holds, less what is not weights


ABOUT = "decomp"


def _write_pt2(network, example, path, text):
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={f"{ABOUT}.json": text})


def _read_pt2(path, network):
    kept = {f"{ABOUT}.json": ""}
    return torch.export.load(path, extra_files=kept).module(), _text(kept)


def _write_onnx(network, example, path, text):
    if sum(p.numel() * p.element_size() for p in network.parameters()) > ONNX_BYTES:
        raise DecompError("onnx", "one file must stay below 2 GiB", fix="export pt2 instead")
    program = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
        input_names=["images"], output_names=["outputs"],
    )  # fmt: skip
    program.model.metadata_props[ABOUT] = text
    program.save(path, external_data=False)


def _read_onnx(path, network):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images):
        return [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]

    return run, session.get_modelmeta().custom_metadata_map[ABOUT]


def _write_torchscript(network, example, path, text):
    with torch.no_grad():
        traced = torch.jit.trace(network, example)
    torch.jit.save(traced, path, _extra_files={f"{ABOUT}.json": text})


def _read_torchscript(path, network):
    kept = {f"{ABOUT}.json": ""}
    return torch.jit.load(path, _extra_files=kept), _text(kept)


def _write_state_dict(network, example, path, text):
    state = network.state_dict()
    # What a state dict says of itself beside the versions of its modules; load_state_dict passes over it.
    state._metadata[""][ABOUT] = text
    torch.save(state, path)


def _read_state_dict(path, network):
    state = torch.load(path, weights_only=True)
    return _refilled(network, state), state._metadata[""][ABOUT]


def _write_safetensors(network, example, path, text):
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path, metadata={ABOUT: text})


def _read_safetensors(path, network):
    with safe_open(path, "pt") as file:
        return _refilled(network, load_file(path)), file.metadata()[ABOUT]


def _refilled(network, state):
    """A module of the same structure with no weight of its own left, filled by a plain load_state_dict."""
    module = copy.deepcopy(network)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    module.load_state_dict(state)
    return module


def _text(kept):
    value = kept[f"{ABOUT}.json"]
    return value.decode() if isinstance(value, bytes) else value


@dataclass(frozen=True)
class Format:
    """How a format is written and read: ``read`` gives a callable on images and the text kept in the file."""

    suffix: str
    write: object
    read: object


FORMATS = {
    "pt2": Format(".pt2", _write_pt2, _read_pt2),
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
    "torchscript": Format(".pt", _write_torchscript, _read_torchscript),
    "state-dict": Format(".pth", _write_state_dict, _read_state_dict),
    "safetensors": Format(".safetensors", _write_safetensors, _read_safetensors),
}
