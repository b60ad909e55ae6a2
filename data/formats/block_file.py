"""Block file (``blocks/NNN.safetensors``): refined weights of one block, by the names of their parameters.

The metadata entry ``decomp`` holds the header as JSON: ``format`` (``decomp-block``), ``format_version``, ``parent``
(SHA-256 of what the block was refined from), ``block`` (name of the node that it ends with), ``report``, and
``content``, SHA-256 over header and tensors. A block whose weights stayed as they were has no tensors.
"""

from __future__ import annotations

import json
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

FORMAT, VERSION = "decomp-block", 1
_FIX = "run decompose again with --redo"


def write_block(path: Path, block: str, weights: Mapping[str, Tensor], report: Mapping[str, Any], parent: str) -> None:
    """Write the weights of one block, whole or not at all.

    Parameters
    ----------
    path : Path
    block : str
        Name of the node that it ends with.
    weights : mapping of str to torch.Tensor
    report : mapping
        Plain data.
    parent : str
        SHA-256 (hex) of what it was refined from, for :func:`read_block` to compare.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    header = {"format": FORMAT, "format_version": VERSION, "parent": parent, "block": block, "report": dict(report)}
    header["content"] = _digest(header, tensors)
    with commit(path) as part:
        save_file(tensors, str(part), metadata={"decomp": json.dumps(header)})


def read_block(path: Path, block: str, parent: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and report of a block.

    Raises
    ------
    FileError
        For a damaged file, and for one of another block or made from something else.
    """
    try:
        with safe_open(str(path), "pt") as file:
            header = parse_json((file.metadata() or {}).get("decomp", "{}"), path, fix=_FIX)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileError:
        raise
    except Exception as error:  # safetensors raises several families on foreign bytes
        raise FileError(path, f"is not a readable block file ({error})", fix=_FIX) from error
    if not isinstance(header, dict) or (header.get("format"), header.get("format_version")) != (FORMAT, VERSION):
        raise FileError(path, f"is not a block file of format {VERSION}", fix=_FIX)
    content = header.pop("content", None)
    if content != _digest(header, tensors):
        raise FileError(path, "does not match the digest in it (damaged)", fix=_FIX)
    if header["parent"] != parent:
        raise FileError(path, f"was made from {str(header['parent'])[:12]}", got=parent[:12], fix=_FIX)
    if header["block"] != block:
        raise FileError(path, f"must hold the block that ends with {block}", got=header["block"], fix=_FIX)
    return tensors, header["report"]


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return digest_json({**json.loads(json.dumps(header)), "tensors": digest_state_dict(dict(tensors))})
