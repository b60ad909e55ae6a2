"""Emission of a pruned network: written folded and with its batch normalisations, read back, tried in its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from decomp.cost.count import Cost
from decomp.cost.count import cost as count_cost
from decomp.errors import DecompError
from decomp.modules.zeros import Zeros

from ...data.formats import network_file
from .unfolded import Unfolded, folded_copy


def emit(
    source: Unfolded, network: fx.GraphModule, folder: Path, *, changed: Sequence[str], planned: Cost,
    meta: Mapping[str, Any], part: str | None = None, leaves: Sequence[str] = (),
) -> tuple[Cost, network_file.Verified]:  # fmt: skip
    """Write a pruned network.

    Parameters
    ----------
    source : Unfolded
        The network that was pruned; not changed.
    network : torch.fx.GraphModule
        A narrower copy of its network.
    folder : Path
        To write.
    changed : sequence of str
        Paths of the modules that were exchanged.
    planned : decomp.cost.count.Cost
        By formula, to be met exactly.
    meta : mapping
        Plain data about the network.
    part, leaves
        As frozen.

    Returns
    -------
    cost : decomp.cost.count.Cost
        Counted on the folded network.
    verified : decomp.data.formats.network_file.Verified
        Whether the class of the original takes it.

    Raises
    ------
    DecompError
        It cannot be written as data, does not come back from its files, or has another cost than planned.
    """
    shape = source.graph.input_shape
    channels, height, width = shape
    folded = folded_copy(network)
    after = count_cost(folded, shape)
    for unit, wanted, got in (
        ("multiply-accumulates", planned.macs, after.macs), ("parameters", planned.params, after.params),
    ):  # fmt: skip
        if wanted != got:
            raise DecompError(source.graph.name, f"must have the planned {wanted:,} {unit}", got=f"{got:,}")
    # Of a branch that is gone, layer and normalisation are among the modules that were exchanged.
    pairs = [list(pair) for pair in source.normalised if not isinstance(network.get_submodule(pair[0]), Zeros)]
    edited = [*source.network.meta["exchanged"], *(path for pair in pairs for path in pair), *changed]
    network_file.save(
        folded, folder, edited=list(dict.fromkeys(edited)), input_shape=(channels, height, width),
        meta={**meta, "macs": after.macs, "normalised": pairs}, part=part, leaves=leaves,
        unfolded=network if pairs else None,
    )  # fmt: skip
    return after, network_file.verify_into_original(folder, lambda: source.built)
