"""Curves file (curves.npz): error curves and output metrics of a survey."""

from dataclasses import dataclass

import numpy as np
import torch

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import STEPS

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

    own: dict
    output: dict
    metrics: dict


def write(path, digest, found):
    arrays = {"digest": np.array(digest)}
    for kind, curves_of in (("own", found.own), ("output", found.output)):
        for name, c in curves_of.items():
            arrays.update({f"{kind}/{name}/{step}": getattr(c, step) for step in STEPS if getattr(c, step) is not None})
    arrays.update({f"metric/{name}": matrix.numpy() for name, matrix in found.metrics.items()})
    arrays["content"] = np.array(_content_digest(arrays))
    with commit(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def _content_digest(arrays):
    return digest_state_dict({name: torch.from_numpy(a) for name, a in arrays.items() if a.dtype.kind == "f"})


def read(path, digest, view, reporter):
    """An earlier survey of the same points; None where there is none that can be used: it is then made anew."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            if any(member.compress_type for member in data.zip.infolist()):
                raise ValueError("it is compressed, which could hide any size")
            arrays = dict(data)
        if str(arrays["digest"]) != digest:
            reporter.step(f"{path}: of other points; made again")
            return None
        if str(arrays["content"]) != _content_digest(arrays):
            raise ValueError("it does not match the digest in it")
    except Exception as error:  # what comes out of foreign bytes is not of one family
        reporter.warn(f"{path}: damaged or of another version ({str(error)[:80]}); made again")
        return None
    own, output, metrics = {}, {}, {}
    for layer in view.layers:
        for kind, curves_of in (("own", own), ("output", output)):
            found = {step: arrays.get(f"{kind}/{layer.name}/{step}") for step in STEPS}
            curves_of[layer.name] = LayerCurves(**found)
        if f"metric/{layer.name}" in arrays:
            metrics[layer.name] = torch.from_numpy(arrays[f"metric/{layer.name}"])
    return Survey(own, output, metrics)
