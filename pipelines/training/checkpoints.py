"""Where a training goes on: its state in one file, read back without running code from it, and checked bit by bit."""

import hashlib
import json
from pathlib import Path

import torch

from decomp.errors import FileError

from ...data.formats.atomic import commit

VERSION = 2
_KEYS = {"version", "digest", "identity", "module", "optimizer", "epoch", "history", "best"}


def save(training, path, identity):
    """Write the state of a training.

    Parameters
    ----------
    training : decomp.pipelines.training.loop.Training
    path : path
    identity : dict
        Plain values that must be the same where it is read again.
    """
    content = {
        "version": VERSION,
        "identity": identity,
        "module": training.module.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "epoch": training.epoch,
        "history": training.history,
        "best": [training.best_epoch, training.best_score, training.best_state],
    }
    with commit(Path(path)) as part:
        torch.save({**content, "digest": digest(content)}, part)


def read(path):
    """Read a checkpoint without running code from it.

    Raises
    ------
    FileError
        It is none, holds Python objects beside tensors and plain values, is damaged, or is of another version.
    """
    fix = "remove it, or give --redo, to train anew"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises on foreign bytes is not of one family
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


def restore(training, path, identity):
    """Put the state in a file into `training`, which must be the same that was saved.

    Raises
    ------
    FileError
        As `read`; or it belongs to another training, or to another network.
    """
    content = read(path)
    before = content["identity"]
    differs = sorted(key for key in {*identity, *before} if identity.get(key) != before.get(key))
    if differs:
        was = ", ".join(f"{key.replace('_', ' ')} {before.get(key)} (now {identity.get(key)})" for key in differs)
        raise FileError(path, f"belongs to another training: {was}", fix="give the same options, or start it over")
    try:
        training.module.load_state_dict(content["module"])
        training.optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise FileError(path, "does not fit the network that is to be trained", fix="start it over") from error
    training.epoch, training.history = content["epoch"], content["history"]
    training.best_epoch, training.best_score, training.best_state = content["best"]


def digest(value):
    """SHA-256 (hex) of nested dicts, lists, plain values and tensors: their order, types and every bit."""
    sha = hashlib.sha256()
    _add(sha, value)
    return sha.hexdigest()


def _add(sha, value):
    if isinstance(value, torch.Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
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
