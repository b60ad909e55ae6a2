"""Checkpoints of a training: its whole state in one file, checked bit by bit and read without running code from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from decomp.errors import FileError

from ...data.formats.atomic import commit
from .hooks import Hooks, hook_states, load_hook_states

if TYPE_CHECKING:
    from .loop import Training

VERSION = 4
_KEYS = {"version", "digest", "identity", "module", "optimizers", "hooks", "epoch", "history", "best", "first_loss"}
#: Longer values are left out of messages.
_LONGEST_VALUE = 60


def save(training: Training, path: str | Path, identity: Mapping[str, Any], hooks: Iterable[Hooks] = ()) -> None:
    """Write the state of a training: module, optimizers, hooks, history and best weights.

    Parameters
    ----------
    training : decomp.pipelines.training.loop.Training
    path : path
    identity : mapping
        Plain values that must be the same where the file is read again.
    hooks : iterable of Hooks
    """
    content = {
        "version": VERSION,
        "identity": dict(identity),
        "module": training.module.state_dict(),
        "optimizers": {kind: optimizer.state_dict() for kind, optimizer in training.optimizers.items()},
        "hooks": hook_states(hooks),
        "epoch": training.epoch,
        "history": training.history,
        "best": [training.best_epoch, training.best_score, training.best_state],
        "first_loss": training.first_loss,
    }
    with commit(Path(path)) as part:
        torch.save({**content, "digest": digest(content)}, part)


def read(path: str | Path, start_over: str = "remove it") -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Parameters
    ----------
    path : path
    start_over : str
        The way to train anew, for messages.

    Raises
    ------
    FileError
        The file is not a checkpoint, holds Python objects beside tensors and plain values, is damaged, or is of another
        version.
    """
    fix = f"{start_over} to train anew"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors of many kinds on foreign bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FileError(path, f"cannot be read as a checkpoint ({reason})", fix=fix) from error
    if not isinstance(content, dict) or "version" not in content:
        raise FileError(path, "cannot be read as a checkpoint (entries are missing)", fix=fix)
    if content["version"] != VERSION:
        rule, got = f"checkpoints of version {VERSION} can be read", f"version {str(content['version'])[:20]}"
        raise FileError(path, rule, got=got, fix=fix)
    if content.keys() != _KEYS:
        raise FileError(path, "cannot be read as a checkpoint (entries are missing)", fix=fix)
    # torch leaves the checksums of its own format unread.
    if content.pop("digest") != digest(content):
        raise FileError(path, "does not match the digest in it (damaged)", fix=fix)
    return content


def begun_identity(path: Path, start_over: str = "remove it") -> dict[str, Any]:
    """The identity of the interrupted training in a checkpoint; empty where there is no checkpoint."""
    return dict(read(path, start_over)["identity"]) if path.exists() else {}


def made_with(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether there is a checkpoint of a training whose identity has these values."""
    try:
        identity = read(path)["identity"] if path.is_file() else {}
    except FileError:
        return False
    return path.is_file() and all(identity.get(name) == value for name, value in values.items())


def restore(
    training: Training,
    path: str | Path,
    identity: Mapping[str, Any],
    hooks: Iterable[Hooks] = (),
    start_over: str = "remove it",
) -> None:
    """Put the state in a file into a training and its hooks, which must be those that were saved.

    Raises
    ------
    FileError
        As `read`; or the file belongs to another training, or to another network.
    """
    content = read(path, start_over)
    _require_same(path, content["identity"], identity, start_over)
    try:
        training.module.load_state_dict(content["module"])
        for kind, optimizer in training.optimizers.items():
            optimizer.load_state_dict(content["optimizers"][kind])
    except (RuntimeError, ValueError, KeyError) as error:
        raise FileError(
            path, "does not fit the network that is to be trained", fix=f"{start_over} to train anew"
        ) from error
    load_hook_states(hooks, content["hooks"])
    training.epoch, training.history = content["epoch"], content["history"]
    training.first_loss = content["first_loss"]
    training.best_epoch, training.best_score, training.best_state = content["best"]


def _require_same(path: str | Path, before: Mapping[str, Any], now: Mapping[str, Any], start_over: str) -> None:
    differences = []
    for key in sorted({*now, *before}):
        if now.get(key) != before.get(key):
            values = f" {before.get(key)} (now {now.get(key)})"
            differences.append(key.replace("_", " ") + (values if len(values) <= _LONGEST_VALUE else ""))
    if differences:
        rule = f"belongs to another training: {', '.join(differences)}"
        raise FileError(path, rule, fix=f"give the same options, or {start_over} to train anew")


def digest(value: Any) -> str:
    """SHA-256 (hex) of nested dicts, lists, plain values and tensors, over their order, types and every bit."""
    sha = hashlib.sha256()
    _add(sha, value)
    return sha.hexdigest()


def _add(sha: hashlib._Hash, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            _add(sha, key)
            _add(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"list {len(value)} ".encode())
        for item in value:
            _add(sha, item)
    else:
        sha.update((json.dumps(value) + " ").encode())
