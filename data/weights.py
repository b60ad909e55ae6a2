"""State dicts from files, without ever running code from them."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from decomp.errors import FileError, NumericalError, WeightsError

# Where checkpoints keep the state dict, in the order looked for.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_NAMES_SHOWN = 3
_RECORD = "decomp network"


def read_state_dict(path) -> dict[str, Tensor]:
    """Read a state dict on the CPU.

    Parameters
    ----------
    path : path
        A safetensors file, or one of ``torch.save``, read with ``weights_only=True``: tensors and plain values alone,
        no code of the file's is run. Told apart by content. ``{'state_dict': ...}``, ``{'model': ...}`` are unwrapped,
        and the prefixes of DataParallel and torch.compile are taken off.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    FileError
        Missing, empty, cut short, of another kind, or holding Python objects that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(
            path, "there is no such weights file", fix="give the path of a safetensors file or a state dict"
        )
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise FileError(path, "cannot be read", got=error.strerror) from error
    if not head:
        raise FileError(path, "the weights file is empty", fix="copy or download it again")
    if head[8:] == b"{":
        content = _read_safetensors(path)
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        content = _read_torch(path)
    else:
        fix = "give a safetensors file or one of torch.save(model.state_dict(), ...)"
        raise FileError(path, "neither a safetensors file nor a torch state dict", fix=fix)
    return _plain(content, path)


def read_shape(path) -> tuple[tuple[int, int, int] | None, int | None]:
    """What a file of :func:`write` says of the network that its weights are for.

    Returns
    -------
    (C, H, W) or None
        The images that it was trained on.
    int or None
        Its number of classes. None both where the file is another, missing or broken one.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get(_RECORD, "null"))
        shape, n_classes = tuple(found["input_shape"]), found["n_classes"]
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None, None
    whole = all(type(size) is int and size > 0 for size in (*shape, n_classes))
    return (shape, n_classes) if whole and len(shape) == 3 else (None, None)


def write(state, path, *, input_shape, n_classes):
    """Write a state dict as safetensors, with the shape of the network that :func:`read_shape` finds again."""
    record = json.dumps({"input_shape": list(input_shape), "n_classes": n_classes})
    safetensors.torch.save_file(state, path, metadata={_RECORD: record})


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about TorchScript archives before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global:?|class) +([\w.]+\.\w+)", str(error))
        raise FileError(
            path,
            "holds Python objects beside tensors, and such a file can run code when it is opened: not opened",
            got=found.group(1) if found else None,
            fix="save it again with torch.save(model.state_dict(), ...) or as safetensors, where you trust it",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if "TorchScript" in str(error):
            fix = "save the state dict of the original module instead"
            raise FileError(path, "a TorchScript archive, not a state dict", fix=fix) from error
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FileError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return FileError(path, "the weights file is damaged or cut short", got=reason, fix="copy or download it again")


def _plain(content, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors inside what a file held."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise FileError(path, "holds no state dict", got=f"a {type(content).__name__}", fix="save model.state_dict()")
    other = [key for key, value in content.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if other:
        names = ", ".join(str(key) for key in other[:_NAMES_SHOWN])
        raise FileError(path, "a state dict holds tensors alone", got=f"also {names}", fix="save model.state_dict()")
    state = dict(content)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], path) -> None:
    """Load a state dict into a module, all of it or nothing.

    Parameters
    ----------
    module : nn.Module
        Changed in place; its dtypes are kept.
    state : mapping of str to Tensor
    path : path or str
        Named in errors.

    Raises
    ------
    WeightsError
        Names are missing or unexpected, or shapes differ; the first few are named. The module is not changed.
    NumericalError
        A tensor holds NaN or Inf. The module is not changed.
    """
    own = module.state_dict()
    # Counters of batches came to BatchNorm late; nothing in evaluation depends on them.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    mismatched = [
        f"{key} is {_shape(state[key])} where the model has {_shape(own[key])}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    mismatched += [
        f"{key} is {state[key].dtype}"
        for key in own
        if key in state and own[key].is_floating_point() and not state[key].is_floating_point()
    ]
    parts = []
    for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        if names:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            parts.append(f"{title}: {', '.join(names[:_NAMES_SHOWN])}{more}")
    if parts:
        fix = "give the weights of this model, or the model of these weights"
        raise WeightsError(path, "the weights do not fit the model", got="; ".join(parts), fix=fix)
    check_finite(state, path)
    module.load_state_dict(state, strict=False)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def check_finite(state: Mapping[str, Tensor], thing) -> None:
    """Raise a NumericalError that names ``thing`` and the first tensor with NaN or Inf, if there is one."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            n_bad = int((~torch.isfinite(tensor)).sum())
            raise NumericalError(
                thing,
                f"{name} holds NaN or Inf ({n_bad} of {tensor.numel()} values)",
                fix="give weights of a training that did not diverge",
            )


def digest_state_dict(state: Mapping[str, Tensor]) -> str:
    """Sha256 (hex) over sorted names, dtypes, shapes and bytes: the same weights, the same digest, wherever from."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()
