"""Constants of dropped channels, moved into the biases of the layers that read them.

A channel whose filter or scale factor is zero still has a value: that of its bias or shift behind the activation. When
such a channel is removed, its readers lose that value. For a reader with weights W it is W·c, which its bias can take
over, or the mean of a normalisation behind it. With c the mean of the channel on images, the same makes up for the
mean of channels that are not constant.

Exact is this where every position that a reader looks at has the value c: not where zero padding lies beside it, and
not behind a transposed convolution, whose positions see different parts of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from decomp.errors import UsageError
from decomp.graph.channel_spaces import Spaces
from decomp.modules.convolution import CONVOLUTIONS, Convolution, pair
from decomp.surgery.narrow_network import narrowed_uses

#: Values of a channel that differ by less, relative to the largest of them, are equal.
EQUAL = 1e-6


@dataclass(frozen=True)
class Moved:
    """What :func:`move_constants` did for one reader.

    Attributes
    ----------
    layer : str
        Path of the reader.
    channels : int
        How many of its dropped columns have a value that was moved.
    inexact : str or None
        Why the reader's outputs are not exactly those from before; None where they are.
    """

    layer: str
    channels: int
    inexact: str | None


@torch.no_grad()
def silence(network: nn.Module, spaces: Spaces, keep: Mapping[str, Iterable[int]]) -> list[str]:
    """Make the dropped channels constant, in place: scale factors become zero, and the shifts stay.

    With a normalisation of a layer's own outputs the constant is the mean of the channel over the training images, in
    front of the activation (Liu et al., Network Slimming, 2017: a channel with a scale factor of zero).

    Parameters
    ----------
    network : torch.nn.Module
    spaces : decomp.graph.channel_spaces.Spaces
    keep : mapping of str to iterable of int

    Returns
    -------
    list of str
        Paths of the normalisations that were changed. A dropped channel without one keeps its values.
    """
    changed = []
    for use, _, writes in narrowed_uses(spaces, keep):
        module = network.get_submodule(use.path)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
            module.weight[torch.from_numpy(~writes).to(module.weight.device)] = 0
            changed.append(use.path)
    return changed


@torch.no_grad()
def move_constants(
    network: fx.GraphModule,
    spaces: Spaces,
    keep: Mapping[str, Iterable[int]],
    batches: Iterable[Tensor],
    *,
    means: bool = False,
) -> list[Moved]:
    """Move the constants of the channels that are about to be dropped into the biases of their readers, in place.

    A bias-free layer with a batch normalisation of its own behind it has them taken from the running mean, otherwise
    it gets a bias. Call it before :func:`decomp.surgery.narrow_network.shrink` with the same channels.

    Parameters
    ----------
    network : torch.fx.GraphModule
        With all channels, in evaluation mode.
    spaces : decomp.graph.channel_spaces.Spaces
    keep : mapping of str to iterable of int
    batches : iterable of torch.Tensor, shape (B, C, H, W)
        Images on the network's device. Any two different ones tell whether a channel is constant.
    means : bool
        Move also the means of channels that are not constant. The images must then be like those that the network is
        for.

    Returns
    -------
    list of Moved
        One for each reader that loses columns with values other than zero, in execution order. Layers of several
        groups lose whole groups, and no values.

    Raises
    ------
    UsageError
        There are no images.
    """
    dropped: dict[str, Tensor] = {}
    for use, reads, _ in narrowed_uses(spaces, keep):
        if use.role == "layer" and not use.grouped and not reads.all():
            dropped[use.path] = torch.from_numpy(np.flatnonzero(~reads))
    moved = []
    for path, (low, high, mean) in _ranges(network, dropped, batches).items():
        constant = high - low <= EQUAL * torch.maximum(high.abs(), low.abs())
        value = mean if means else torch.where(constant, mean, torch.zeros_like(mean))
        if (high != 0).any() or (low != 0).any():
            if value.any():
                _move(network, path, dropped[path], value)
            reason = _inexact(network.get_submodule(path), int((~constant).sum()), bool(value.any()), means)
            moved.append(Moved(path, int((value != 0).sum()), reason))
    return moved


def _ranges(
    network: nn.Module, dropped: Mapping[str, Tensor], batches: Iterable[Tensor]
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Smallest, largest and mean value of each dropped column of each reader, over images and positions."""
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {path: [] for path in dropped}
    counts: dict[str, list[int]] = {path: [] for path in dropped}

    def hook_of(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            columns = inputs[0].detach().index_select(1, dropped[path].to(inputs[0].device))
            values = columns.transpose(0, 1).flatten(1)
            parts = (values.amin(1), values.amax(1), values.sum(1, dtype=torch.float64))
            low, high, total = (part.to("cpu", torch.float64) for part in parts)
            found[path].append((low, high, total))
            counts[path].append(values.shape[1])

        return hook

    hooks = [network.get_submodule(path).register_forward_pre_hook(hook_of(path)) for path in dropped]
    try:
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if dropped and not all(counts.values()):
        raise UsageError("images", "at least one image is needed to see which channels are constant", got="none")
    ranges = {}
    for path, parts in found.items():
        low, high, total = (torch.stack(part) for part in zip(*parts))
        ranges[path] = low.amin(0), high.amax(0), total.sum(0) / sum(counts[path])
    return ranges


def _move(network: fx.GraphModule, path: str, columns: Tensor, value: Tensor) -> None:
    """Add what a layer makes of constant columns to its bias, or take it from the mean of its normalisation."""
    layer = network.get_submodule(path)
    assert isinstance(layer, (nn.Linear, *CONVOLUTIONS))
    weight = layer.weight.detach().to("cpu", torch.float64)
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1) / (layer.stride[0] * layer.stride[1])
    change = weight[:, columns].flatten(2).sum(2) @ value if weight.dim() > 2 else weight[:, columns] @ value
    norm = None if layer.bias is not None else _own_normalisation(network, path)
    if norm is not None:
        assert norm.running_mean is not None
        norm.running_mean -= change.to(norm.running_mean)
    elif layer.bias is not None:
        layer.bias += change.to(layer.bias)
    else:
        layer.bias = nn.Parameter(change.to(layer.weight))


def _own_normalisation(network: fx.GraphModule, path: str) -> nn.BatchNorm1d | nn.BatchNorm2d | None:
    """The batch normalisation with running statistics that alone reads a layer, and reads it alone."""
    calls = [node for node in network.graph.nodes if node.op == "call_module" and node.target == path]
    users = {user for call in calls for user in call.users}
    targets = {str(user.target) for user in users if user.op == "call_module"}
    if len(targets) != 1 or any(user.op != "call_module" for user in users):
        return None
    (target,) = targets
    norm = network.get_submodule(target)
    called = sum(node.op == "call_module" and node.target == target for node in network.graph.nodes)
    plain = isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and norm.running_mean is not None
    return norm if plain and called == len(users) else None  # type: ignore[return-value]


def _inexact(layer: nn.Module, varying: int, moved: bool, means: bool) -> str | None:
    if varying:
        kept = "their means were moved" if means else "they were not moved"
        return f"{varying} of its dropped channels are not constant: {kept}"
    if not moved or isinstance(layer, nn.Linear):
        return None
    assert isinstance(layer, CONVOLUTIONS)
    if isinstance(layer, nn.ConvTranspose2d):
        if pair(layer.kernel_size) == pair(layer.stride) == (1, 1) and not _is_padded(layer):
            return None
        return "positions of a transposed convolution see different parts of its kernel"
    if layer.padding_mode == "zeros" and _is_padded(layer):
        return "zero padding at the borders does not have the constant's value"
    return None


def _is_padded(layer: Convolution) -> bool:
    if isinstance(layer.padding, str):
        return layer.padding == "same" and pair(layer.kernel_size) != (1, 1)
    return pair(layer.padding) != (0, 0)
