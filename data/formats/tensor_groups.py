"""Sealed safetensors file: groups of named tensors, a JSON header and a digest over both.

======================  ==========================================================
``GROUP.NAME``          tensor NAME of a group; GROUP has no dot
metadata ``decomp``     JSON header, with ``format``, ``format_version`` and
                        ``content``, the SHA-256 (hex) over header and tensors
======================  ==========================================================

Equal contents give equal bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from decomp.errors import FileError

from ..weights import digest_state_dict
from .atomic import commit
from .digests import digest_json
from .json_files import parse_json

Groups = Mapping[str, Mapping[str, Tensor]]


def write_groups(
    path: str | os.PathLike[str], groups: Groups, header: Mapping[str, Any], *, kind: str, format_version: int
) -> str:
    """Write groups of tensors, whole or not at all.

    Parameters
    ----------
    path : path
    groups : mapping of str to mapping of str to torch.Tensor
        Empty groups are read back as empty ones only if the reader asks for them.
    header : mapping
        Plain data without NaN and Inf.
    kind, format_version : str and int

    Returns
    -------
    str
        The digest of the content.
    """
    tensors = {
        f"{group}.{name}": value.detach().cpu().contiguous().clone()
        for group, members in groups.items()
        for name, value in members.items()
    }
    header = json.loads(json.dumps({"format": kind, "format_version": format_version, **header}, allow_nan=False))
    content = _digest(header, tensors)
    metadata = {"decomp": json.dumps({**header, "content": content})}
    with commit(path) as part:
        save_file(tensors, str(part), metadata=metadata)
    return content


def read_groups(
    path: str | os.PathLike[str], *, kind: str, format_version: int, fix: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], str]:
    """Read a file of :func:`write_groups`.

    Parameters
    ----------
    path : path
    kind : str
    format_version : int
        The newest version that can be read.
    fix : str
        The way out where the file cannot be used.

    Returns
    -------
    groups : dict of str to dict of str to torch.Tensor
    header : dict
    content : str
        The digest.

    Raises
    ------
    FileError
        The file is missing, cut short, changed, foreign or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(path, "the file does not exist", fix=fix)
    try:
        with safe_open(str(path), "pt") as file:
            metadata, tensors = file.metadata() or {}, {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except Exception as error:  # the reader raises errors of several families on foreign bytes
        reason = " ".join(str(error).split())[:80]
        raise FileError(path, f"is damaged or no {kind} file ({reason})", fix=fix) from error
    header = parse_json(metadata.get("decomp", "{}"), path, fix=fix)
    if not isinstance(header, dict) or header.get("format") != kind:
        raise FileError(path, f"is no {kind} file", fix=fix)
    version = header.get("format_version")
    if not isinstance(version, int) or version > format_version:
        rule = f"this version of decomp reads {kind} files up to format {format_version}"
        raise FileError(path, rule, got=version, fix="install the newer decomp that wrote it")
    content = header.pop("content", None)
    if not isinstance(content, str) or content != _digest(header, tensors):
        raise FileError(path, "does not match the digest in it (damaged)", fix=fix)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = value
    return groups, header, content


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return digest_json({"header": header, "tensors": digest_state_dict(tensors)})
