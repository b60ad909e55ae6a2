"""State dicts: read from files without running code from them, checked, loaded, written, digested."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from decomp.errors import FileError, NumericalError, WeightsError

# Keys under which checkpoints keep the state dict, in the order of the search.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Prefixes that DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_NAMES_SHOWN = 3
_RECORD = "decomp network"


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict on the CPU.

    Parameters
    ----------
    path : path
        A safetensors file, or one of ``torch.save``, read with ``weights_only=True``: tensors and plain values alone,
        no code in the file is run. The kind is recognised by content. ``{'state_dict': ...}`` and ``{'model': ...}``
        are unwrapped, and the prefixes of DataParallel and torch.compile are removed.

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
    return _unwrapped(content, path)


def read_shape(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int] | None, int | None]:
    """Read the shape of the network that a file of :func:`write` records.

    Returns
    -------
    (C, H, W) or None
        Shape of the images that the network was trained on.
    int or None
        Number of classes. Both are None for a missing, broken or other file.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get(_RECORD, "null"))
        shape, n_classes = tuple(record["input_shape"]), record["n_classes"]
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None, None
    whole = all(type(size) is int and size > 0 for size in (*shape, n_classes))
    return (shape, n_classes) if whole and len(shape) == 3 else (None, None)


def read_preprocessing(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the preprocessing of the training images that a file of :func:`write` records; None where it has none."""
    try:
        with safetensors.safe_open(Path(path).expanduser(), "pt") as file:
            record = json.loads((file.metadata() or {}).get(_RECORD, "null"))
    except (safetensors.SafetensorError, OSError, ValueError):
        return None
    found = record.get("preprocessing") if isinstance(record, dict) else None
    return found if isinstance(found, dict) and "crop" in found else None


def write(
    state: Mapping[str, Tensor], path: str | os.PathLike[str], *, input_shape: Sequence[int], n_classes: int,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a state dict as safetensors, with the shape of the network for :func:`read_shape`.

    `preprocessing` of the training images, as plain data, is for :func:`read_preprocessing`.
    """
    record = json.dumps({"input_shape": list(input_shape), "n_classes": n_classes, "preprocessing": preprocessing})
    safetensors.torch.save_file(dict(state), path, metadata={_RECORD: record})


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about TorchScript archives before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"(?:GLOBAL|global:?|class) +([\w.]+\.\w+)", str(error))
        raise FileError(
            path,
            "holds Python objects beside tensors, and such a file can run code when it is opened: not opened",
            got=name.group(1) if name else None,
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


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors inside the content of a file."""
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


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load a state dict into a module, completely or not at all.

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
    # Old state dicts of BatchNorm have no counters of batches; evaluation does not depend on them.
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


def check_finite(state: Mapping[str, Tensor], thing: object) -> None:
    """Check that every floating-point tensor is finite.

    Raises
    ------
    NumericalError
        Names ``thing`` and the first tensor with NaN or Inf.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            n_bad = int((~torch.isfinite(tensor)).sum())
            raise NumericalError(
                thing,
                f"{name} holds NaN or Inf ({n_bad} of {tensor.numel()} values)",
                fix="give weights of a training that did not diverge",
            )


def digest_state_dict(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over sorted names, dtypes, shapes and bytes: equal for equal weights from whatever file."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
