"""Layer file (``layers/NNN_NAME.safetensors``): factors of one layer, its input channels, and its report.

======================  =============================  =============================================================
``FACTOR.weight``       tensor (n, c / groups, kh, kw) weight of each factor
``FACTOR.bias``         tensor (n,)                    its bias; absent where the factor has none
``keep``                int64 (k,)                     input channels that stay, ascending; absent where all stay
metadata ``decomp``     JSON                           the header
======================  =============================  =============================================================

Keys of the header:

=========================  =========================================================================================
``format``                 ``decomp-layer``
``format_version``         3
``parent``                 SHA-256 (hex) of what the layer was solved from: plan, frozen file, files of earlier layers
``layer``                  path of the module
``factors``                list of the factors in execution order: ``name`` and the fields of
                           :class:`decomp.problem.factors.Geometry`
``n_total``                number of input channels of the original layer; null where all stay
``report``                 errors after each step, ranks, seconds
``content``                SHA-256 (hex) over header and tensors, to notice damage
=========================  =========================================================================================
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
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry, LayerSolution, Selection

from ..weights import digest_state_dict
from .atomic import commit
from .digests import digest_json
from .json_files import parse_json

LAYER_FORMAT = 3
# Format 2 differs from 3 only in the name of one key of the report (`current_report`).
READABLE_FORMATS = (2, LAYER_FORMAT)


def write_layer(path: Path, solution: LayerSolution, report: Mapping[str, Any], parent: str) -> None:
    """Write the solution of one layer, whole or not at all.

    Parameters
    ----------
    path : Path
    solution : LayerSolution
    report : mapping
        Plain data.
    parent : str
        SHA-256 (hex) of what the layer was solved from, for :func:`read_layer` to compare.
    """
    tensors, factors = {}, []
    for name, factor in zip(solution.factored.names, solution.factored.factors):
        tensors[f"{name}.weight"] = factor.weight.detach().cpu().contiguous()
        if factor.bias is not None:
            tensors[f"{name}.bias"] = factor.bias.detach().cpu().contiguous()
        factors.append({"name": name, **factor.geometry.to_json()})
    header: dict[str, Any] = {"format": "decomp-layer", "format_version": LAYER_FORMAT, "parent": parent}
    header.update(layer=solution.name, factors=factors, report=report, n_total=None)
    if solution.selection is not None:
        tensors["keep"] = solution.selection.channels.cpu()
        header["n_total"] = solution.selection.n_total
    header["content"] = _content_digest(header, tensors)
    # One entry: safetensors writes several in no fixed order, and equal solutions must give equal bytes.
    metadata = {"decomp": json.dumps(header)}
    with commit(path) as part:
        save_file({k: v.clone() for k, v in tensors.items()}, str(part), metadata=metadata)


def read_layer(path: Path, parent: str, name: str) -> tuple[LayerSolution, dict[str, Any]]:
    """Read a layer file and check that it holds the layer ``name``, solved from ``parent``.

    Returns
    -------
    solution : LayerSolution
    report : dict

    Raises
    ------
    FileError
        For a broken or foreign file, or one made from something else.
    """
    fix = "run decompose again with --redo"
    try:
        with safe_open(str(path), "pt") as file:
            metadata, tensors = file.metadata() or {}, {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except Exception as error:  # the reader raises errors of several families on foreign bytes
        raise FileError(path, f"is not a readable layer file ({error})", fix=fix) from error
    header = parse_json(metadata.get("decomp", "{}"), path, fix=fix)
    if not isinstance(header, dict) or header.get("format") != "decomp-layer":
        raise FileError(path, "is not a layer file", fix=fix)
    if header.get("format_version") not in READABLE_FORMATS:
        rule = f"layer files of the formats {' and '.join(map(str, READABLE_FORMATS))} can be read"
        raise FileError(path, rule, got=f"format {header.get('format_version')}", fix=fix)
    content = header.pop("content", None)
    if content != _content_digest(header, tensors):
        raise FileError(path, "does not match the digest in it (damaged)", fix=fix)
    if header.get("parent") != parent:
        raise FileError(path, f"was made from {str(header.get('parent'))[:12]}", got=parent[:12], fix=fix)
    if header.get("layer") != name:
        raise FileError(path, f"must hold layer {name}", got=header.get("layer"), fix=fix)
    try:
        return _rebuild(header, tensors), current_report(header["report"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"is broken ({error})", fix=fix) from error


def current_report(report: dict[str, Any]) -> dict[str, Any]:
    """Report of a layer with current key names; reports of format 2 have ``felt`` for ``output_error``."""
    errors = report.get("errors")
    if not errors:
        return report
    renamed = {
        step: {"output_error" if key == "felt" else key: value for key, value in values.items()}
        for step, values in errors.items()
    }
    return {**report, "errors": renamed}


def _content_digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return digest_json({**json.loads(json.dumps(header)), "tensors": digest_state_dict(tensors)})


def _rebuild(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LayerSolution:
    factors, names = [], []
    for spec in header["factors"]:
        spec = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
        name = spec.pop("name")
        factors.append(ConvFactor(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), Geometry(**spec)))
        names.append(name)
    selection = Selection(tensors["keep"], header["n_total"]) if "keep" in tensors else None
    return LayerSolution(header["layer"], selection, FactoredConv(tuple(factors), tuple(names)))


def read_selection(path: Path, fix: str) -> tuple[str, Tensor | None, int | None]:
    """Read the input channels that stay in a layer, without a check of what the file was made from.

    Parameters
    ----------
    path : Path
    fix : str
        Way out for a file that cannot be read.

    Returns
    -------
    layer : str
    keep : torch.Tensor of int64, shape (k,), or None
        Ascending indices; None where the layer reads all of its channels.
    n_total : int or None
        Number of input channels of the original layer.

    Raises
    ------
    FileError
        For a broken or foreign file.
    """
    try:
        with safe_open(str(path), "pt") as file:
            header = json.loads((file.metadata() or {})["decomp"])
            keep = file.get_tensor("keep") if "keep" in file.keys() else None  # noqa: SIM118
        return header["layer"], keep, header["n_total"]
    except Exception as error:
        raise FileError(path, f"is not a readable layer file ({error})", fix=fix) from error
