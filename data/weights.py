"""State dicts: read from files without running code from them, checked, loaded, written, digested."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from decomp.errors import FileError, MissingError, NumericalError, WeightsError, kind_of

from .checkpoints import Match, State, matches, preference, state_dicts

_NAMES_SHOWN = 3
_RECORD = "decomp network"
_RESAVE = "torch.save(model.state_dict(), 'weights.pth')"


def split_key(weights: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Split ``FILE:key`` into the file and the place of the weights in it; the place is None where none is given.

    A colon that is part of the name of an existing file, or of a Windows drive, splits nothing.
    """
    path = Path(weights).expanduser()
    file, _, key = str(weights).rpartition(":")
    if path.exists() or not key or not Path(file).expanduser().is_file():
        return path, None
    return Path(file).expanduser(), key


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, State]:
    """Read the state dicts in a file, on the CPU.

    Parameters
    ----------
    path : path
        A safetensors file, or one of ``torch.save``, read with ``weights_only=True``: tensors and plain values alone,
        no code in the file is run. The kind is recognised by content.

    Returns
    -------
    dict of str to state dict
        By their place in the file, such as ``'state_dict'`` or ``'ema.model'``; ``''`` where the file is one itself.
        The one that is most likely meant comes first, see :func:`decomp.data.checkpoints.preference`.

    Raises
    ------
    FileError
        Missing, empty, cut short, of another kind, or holding Python objects that could run code.
    """
    path = Path(path)
    content = _read_content(path)
    found = dict(state_dicts(content))
    if not found:
        raise _no_state_dict(path, content)
    return dict(sorted(found.items(), key=lambda item: preference(*item)))


def _read_content(path: Path) -> Any:
    fix = "give the path of a safetensors file or a state dict"
    if path.is_dir():
        raise FileError(path, "is a folder and not a weights file", fix=fix)
    if not path.is_file():
        raise MissingError(path, "there is no such weights file", fix=fix)
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise FileError(path, "cannot be read", got=error.strerror) from error
    if not head:
        raise FileError(path, "the weights file is empty", fix="copy or download it again")
    if head[8:] == b"{":
        return _read_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        _refuse_other_archives(path)
        return _read_torch(path)
    kind = "an HDF5 file, as Keras writes it" if head.startswith(b"\x89HDF") else None
    fix = f"give a safetensors file or one of {_RESAVE}"
    raise FileError(path, "neither a safetensors file nor a torch state dict", got=kind, fix=fix)


def _refuse_other_archives(path: Path) -> None:
    """Refuse zip archives that are known by their members: of numpy, TorchScript and torch.export."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return  # a pickle, or damaged, which is told when it is read
    if any(name.endswith(".npy") for name in names):
        convert = "torch.save({k: torch.as_tensor(v) for k, v in numpy.load(FILE).items()}, 'weights.pth')"
        raise FileError(path, "a numpy archive, not weights of PyTorch", fix=f"convert it with {convert}")
    if any("/code/" in name for name in names):
        fix = f"where the module in it was made, save {_RESAVE}; or torch.save(torch.jit.load(FILE).state_dict(), ...)"
        raise FileError(path, "a TorchScript archive, not a state dict", fix=fix)
    if any("/models/" in name for name in names):
        fix = "save torch.export.load(FILE).state_dict with torch.save, and give that"
        raise FileError(path, "a torch.export program, not a state dict", fix=fix)


def _no_state_dict(path: Path, content: Any) -> FileError:
    fix = f"save {_RESAVE}"
    if isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values()):
        other = [key for key, value in content.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
        names = ", ".join(str(key) for key in other[:_NAMES_SHOWN])
        return FileError(path, "a state dict holds tensors alone", got=f"also {names}", fix=fix)
    kind = kind_of(content)
    if isinstance(content, Mapping) and content:
        kind += f" of {', '.join(str(key) for key in list(content)[:_NAMES_SHOWN])}"
    return FileError(path, "holds no state dict", got=kind, fix=fix)


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
            fix=f"where you trust it, open it with torch.load(FILE, weights_only=False) and save {_RESAVE}",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FileError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return FileError(path, "the weights file is damaged or cut short", got=reason, fix="copy or download it again")


def load_weights(module: nn.Module, weights: str | os.PathLike[str]) -> str:
    """Load a file of weights into a module, completely or not at all.

    Names may have prefixes, and segments of DataParallel and torch.compile, that those of the module lack.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place; its dtypes are kept.
    weights : path or str
        A file, or ``FILE:key`` with the place of the weights in it, such as ``last.ckpt:ema.model``.

    Returns
    -------
    str
        The choice in words, where the file holds several that fit, or more than these; otherwise empty.

    Raises
    ------
    FileError
        As :func:`read_checkpoint`; or there is nothing at `key`.
    WeightsError
        Names are missing or left over, or shapes differ; the first few are named. The module is not changed.
    NumericalError
        A tensor holds NaN or Inf. The module is not changed.
    """
    path, key = split_key(weights)
    found = read_checkpoint(path)
    return load_into(module, found if key is None else {key: _below(found, key, path)}, path)


def load_into(module: nn.Module, found: Mapping[str, State], path: str | os.PathLike[str]) -> str:
    """The same for state dicts by their places in a file; `path` is named in messages."""
    own = module.state_dict()
    read = [(name, match) for name, state in found.items() for match in matches(state, own)]
    fitting = [(name, match) for name, match in read if match.fits]
    if not fitting:
        raise _does_not_fit(path, min((match for _, match in read), key=lambda match: match.n_wrong), own)
    chosen = fitting[0][1]
    check_finite(chosen.state, path)
    module.load_state_dict(chosen.state, strict=False)
    names = [".".join(filter(None, (name, match.prefix))) for name, match in fitting]
    words = []
    if len(names) > 1:
        others = " and ".join(f"--weights {path}:{name}" for name in names[1:] if name)
        words.append(f"took {names[0] or 'the names without prefix'}, which others fit as well as: {others}")
    if chosen.outside:
        words.append(f"{len(chosen.outside)} entries of something else are ignored, such as {chosen.outside[0]}")
    return f"{path}: {'; '.join(words)}" if words else ""


def _below(found: Mapping[str, State], key: str, path: Path) -> State:
    """The entries of a checkpoint whose full names begin with a key, without it."""
    named = {
        ".".join(filter(None, (place, name))): value for place, state in found.items() for name, value in state.items()
    }
    below = {name[len(key) + 1 :]: value for name, value in named.items() if name.startswith(f"{key}.")}
    if not below:
        there = list(dict.fromkeys(place or name.partition(".")[0] for place, state in found.items() for name in state))
        raise FileError(path, "holds no weights at this place", got=key, fix=f"it has {', '.join(there[:10])}")
    return below


def _does_not_fit(path: str | os.PathLike[str], match: Match, own: Iterable[str]) -> WeightsError:
    """The error that counts what fits and names the first entries that do not."""
    n_own = sum(not name.endswith("num_batches_tracked") for name in own)
    parts = [f"{n_own - len(match.missing) - len(match.mismatched)} of {n_own} entries that fit"]
    for title, names in (
        ("missing", match.missing), ("left over", match.left_over), ("of another shape", match.mismatched)
    ):  # fmt: skip
        if names:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            parts.append(f"{title}: {', '.join(names[:_NAMES_SHOWN])}{more}")
    fix = "give the weights of this model, or the model of these weights"
    return WeightsError(path, "the weights do not fit the model", got="; ".join(parts), fix=fix)


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
