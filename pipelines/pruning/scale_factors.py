"""Scale factors of batch normalisations as numbers of the input channels of layers, for a choice of channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from decomp.criteria.members import places_in
from decomp.criteria.scores import scorable, score
from decomp.errors import UsageError
from decomp.graph.layer import Layer

from ...data import models
from ..run.conditions import freeze_options
from ..run.directory import RunDirectory
from .unfolded import Unfolded, unfolded_of_run

_FIX = "take another selector, such as l2"


def network_with_scales(run: RunDirectory) -> Unfolded:
    """The network that was frozen in a run, with the batch normalisations that freeze has folded.

    Parameters
    ----------
    run : RunDirectory
        Frozen. Its ``original`` is used for a network that was given in memory.

    Raises
    ------
    UsageError
        It has no scale factors, or only the session that froze it has it.
    DecompError
        It is gone, or another one now.
    """
    name = freeze_options(run).model
    if run.original is None and name.endswith(models.MEMORY):
        rule = f"bn-scale needs {name} with its batch normalisations, which only the Python session that froze it has"
        raise UsageError("--selector", rule, got=f"the folded one in {run}", fix=_FIX)
    found = unfolded_of_run(run)
    try:
        scorable(found.network, found.graph.spaces, [space.name for space in found.graph.spaces.all], "bn-scale")
    except UsageError as error:
        rule = f"bn-scale compares the scale factors of batch normalisations, and {name} has none"
        raise UsageError("--selector", rule, fix=_FIX) from error
    return found


def input_scales(
    source: Unfolded, layers: Iterable[Layer], remaining_outputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean absolute scale factor of each input channel of some layers.

    Parameters
    ----------
    source : Unfolded
    layers : iterable of decomp.graph.layer.Layer
        Of the network without batch normalisations, whose layers have the same paths.
    remaining_outputs : mapping of str to torch.Tensor
        Channels that stay, of the layers that lost some.

    Returns
    -------
    dict of str to torch.Tensor
        Float64, one number per remaining input channel. Layers are missing that read a channel without a scale factor.
    """
    spaces, layers = source.graph.spaces, list(layers)
    names = list(dict.fromkeys(space.name for layer in layers for space in spaces.read_by(layer.name)))
    scaled = scorable(source.network, spaces, names, "bn-scale") if names else []
    found = score(source.network, spaces, scaled, "bn-scale")
    gone: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    for path, places in remaining_outputs.items():
        use = spaces.use(path)
        assert use is not None  # it writes channels that can go
        gone.append(np.delete(spaces.roots_of(use.writes), places.numpy()))
    result = {}
    for layer in layers:
        use, read = spaces.use(layer.name), spaces.read_by(layer.name)
        if use is None or not read or any(space.name not in found for space in read):
            continue
        roots = spaces.roots_of(use.reads)
        columns = torch.zeros(len(roots), dtype=torch.float64)
        for space in read:
            places = torch.from_numpy(places_in(space, roots))
            columns[places >= 0] = found[space.name][places[places >= 0]]
        stays = torch.from_numpy(~np.isin(roots, np.concatenate(gone)))
        # Behind a flatten a channel has several columns.
        result[layer.name] = columns[stays].view(layer.input_width, -1)[:, 0]
    return result
