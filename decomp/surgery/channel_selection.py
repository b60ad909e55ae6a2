"""Channel selection behind batch normalisations: a branch reads some channels of a stream that keeps them all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import fx, nn

from decomp.errors import DecompError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.selections import NORM, SELECT, insert_selections, remove_selections
from decomp.modules.replace import set_module
from decomp.modules.select import Select
from decomp.surgery.narrow_module import narrow_carrier
from decomp.surgery.narrow_network import shrink

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def select_behind(network: fx.GraphModule, input_shape: Sequence[int], keep: Mapping[str, Sequence[int]]) -> list[str]:
    """Put a selection behind batch normalisations and narrow the layers that read it, in place.

    The layers compute the same as with zeros in the place of the other channels. What the normalisation reads is not
    changed, so that a residual stream keeps its width (Liu et al., Network Slimming, 2017, section 3).

    Parameters
    ----------
    network : torch.fx.GraphModule
    input_shape : sequence of int
        (C, H, W) of one image.
    keep : mapping of str to sequence of int
        For paths of nn.BatchNorm1d or nn.BatchNorm2d, the channels that are passed on, ascending, at least one. Each
        becomes a sequence of itself (``norm``) and the selection (``select``).

    Returns
    -------
    list of str
        Paths of the modules that were exchanged, without those within such a sequence.

    Raises
    ------
    DecompError
        Other channels must be there behind a normalisation, such as for a sum; or the channels do not fit. The network
        is then as before.
    """
    insert_selections(network, keep, behind=True)
    try:
        spaces = NetworkGraph(network, input_shape).spaces
        for path in keep:
            (space,) = spaces.written_by(f"{path}.{SELECT}")
            if len(space.producers) > 1:
                raise DecompError(path, "its channels meet those of other layers in a sum, and all must stay")
        spaces.alive(found := {spaces.written_by(f"{path}.{SELECT}")[0].name: keep[path] for path in keep})
    except DecompError:
        remove_selections(network, keep)
        raise
    changed = shrink(network, spaces, found)
    within = {f"{path}.{part}" for path in keep for part in (SELECT, NORM)}
    return [*keep, *(path for path in changed if path not in within)]


def fold_select(network: nn.Module) -> list[str]:
    """Put each selection that follows a batch normalisation before a smaller one, in place.

    The network computes the same bit for bit, in evaluation and in training, with fewer parameters.

    Parameters
    ----------
    network : torch.nn.Module
        Traced or not.

    Returns
    -------
    list of str
        Paths of the sequences that were exchanged.
    """
    folded = []
    for path, module in list(network.named_modules()):
        parts = tuple(module) if type(module) is nn.Sequential else ()
        if len(parts) != 2:
            continue
        norm, select = parts
        if not isinstance(norm, BATCHNORMS) or not isinstance(select, Select):
            continue
        small = narrow_carrier(norm, select.index, norm.num_features)
        names = list(module._modules)
        pair = nn.Sequential(OrderedDict([(names[1], select), (names[0], small)]))
        pair.training = module.training
        set_module(network, path, pair)
        folded.append(path)
        if isinstance(network, fx.GraphModule):
            _swap_calls(network, *(f"{path}.{name}" for name in names))
    return folded


def _swap_calls(network: fx.GraphModule, first: str, second: str) -> None:
    """Call two modules, of which the second reads the first alone, in the other order."""
    other = {first: second, second: first}
    for node in network.graph.nodes:
        if node.op == "call_module":
            node.target = other.get(str(node.target), node.target)
    network.recompile()
