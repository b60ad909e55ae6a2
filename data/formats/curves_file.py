"""Curves file (``curves.npz``): error curves and output metrics of a survey.

One uncompressed archive of ``numpy.savez``, without pickled objects. LAYER is the path of a module, STEP one of
:data:`decomp.allocation.plan.STEPS`; a step that a layer does not allow has no entry.

======================  =====================  =================================================================
``digest``              str ()                 SHA-256 (hex) of what the survey was made from: frozen file, version
``content``             str ()                 SHA-256 (hex) over all floating-point entries, to notice damage
``own/LAYER/STEP``      float64 (s + 1,)       relative squared error of the layer's responses at sizes 1 ... s
``output/LAYER/STEP``   float64 (s + 1,)       change of the network's output at the same sizes
``metric/LAYER``        float64 (n, n)         output metric, see :mod:`decomp.execution.output_metric`
======================  =====================  =================================================================

Index 0 of a curve is not used.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import STEPS
from decomp.errors import FileError

from ..weights import digest_state_dict
from .atomic import commit

VERSION = 4


@dataclass(frozen=True)
class Survey:
    """Curves and metrics of the original network.

    Attributes
    ----------
    own : dict of str to LayerCurves
        Relative error of the layer's own responses on held-out rows, for every step that the layer allows.
    output : dict of str to LayerCurves
        The change of the network's output that goes with it.
    metrics : dict of str to torch.Tensor
        Output metric (n, n) of each layer, see :mod:`decomp.execution.output_metric`.
    """

    own: dict[str, LayerCurves]
    output: dict[str, LayerCurves]
    metrics: dict[str, Tensor]


def write_curves(path: Path, digest: str, survey: Survey) -> None:
    """Write a survey, whole or not at all.

    Parameters
    ----------
    path : Path
    digest : str
        Identity of what the survey was made from, for :func:`read_curves` to compare.
    survey : Survey
    """
    arrays = {"digest": np.array(digest)}
    for kind, curves_of in (("own", survey.own), ("output", survey.output)):
        for name, curves in curves_of.items():
            for step in STEPS:
                if (curve := getattr(curves, step)) is not None:
                    arrays[f"{kind}/{name}/{step}"] = curve
    arrays.update({f"metric/{name}": matrix.numpy() for name, matrix in survey.metrics.items()})
    arrays["content"] = np.array(_content_digest(arrays))
    with commit(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's types take the arrays for its option allow_pickle


def read_curves(path: Path, digest: str | None, layers: Iterable[str]) -> Survey | None:
    """Read a survey.

    Parameters
    ----------
    path : Path
    digest : str or None
        Identity of what the survey must have been made from; None accepts any.
    layers : iterable of str
        Names of the layers to read; a layer without an entry gets curves that are all None.

    Returns
    -------
    Survey or None
        None where the file was made from something else.

    Raises
    ------
    FileError
        The file is missing, damaged or of another version.
    """
    try:
        if path.is_file() and not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and advise to trust it
            raise ValueError("it is no zip archive: cut short, or another file")
        with np.load(path, allow_pickle=False) as data:
            if any(member.compress_type for member in data.zip.infolist()):
                raise ValueError("it is compressed, which could hide any size")
            arrays = dict(data)
        if digest is not None and str(arrays["digest"]) != digest:
            return None
        if str(arrays["content"]) != _content_digest(arrays):
            raise ValueError("it does not match the digest in it")
    except Exception as error:  # readers of zip archives and of numpy raise anything on foreign bytes
        raise FileError(path, f"the curves file is damaged or of another version ({str(error)[:80]})") from error
    own: dict[str, LayerCurves] = {}
    output: dict[str, LayerCurves] = {}
    metrics: dict[str, Tensor] = {}
    for name in layers:
        for kind, curves_of in (("own", own), ("output", output)):
            curves_of[name] = LayerCurves(**{step: arrays.get(f"{kind}/{name}/{step}") for step in STEPS})
        if f"metric/{name}" in arrays:
            metrics[name] = torch.from_numpy(arrays[f"metric/{name}"])
    return Survey(own, output, metrics)


def _content_digest(arrays: dict[str, np.ndarray]) -> str:
    return digest_state_dict({name: torch.from_numpy(a) for name, a in arrays.items() if a.dtype.kind == "f"})
