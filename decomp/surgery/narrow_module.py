"""Narrow one module: keep some of its input and output channels."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from decomp.errors import DecompError
from decomp.modules.convolution import padding, pair
from decomp.modules.replace import linear, with_parameters
from decomp.modules.select import Select
from decomp.modules.zeros import Zeros


def narrow_layer(module: nn.Module, reads: torch.Tensor | None = None, writes: torch.Tensor | None = None) -> nn.Module:
    """The same layer on only some of its input and output channels.

    Parameters
    ----------
    module : nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Select or nn.Sequential of such
    reads, writes : torch.LongTensor, optional
        Ascending indices of input and output channels that stay, at least one each; None keeps all. Of a grouped
        convolution whole groups must stay.

    Returns
    -------
    nn.Module
        The module itself where it keeps all channels.

    Raises
    ------
    DecompError
        For no channels, for channels that are not whole groups, and for a module of another class.
    """
    for keep in (reads, writes):
        if keep is not None and len(keep) == 0:
            raise DecompError("narrowing", "at least one channel must stay", got="none")
    if reads is None and writes is None:
        return module
    if isinstance(module, nn.Sequential):
        children = OrderedDict(module.named_children())
        first, last = next(iter(children)), next(reversed(children))
        children[first] = narrow_layer(children[first], reads=reads)
        children[last] = narrow_layer(children[last], writes=writes)
        narrow = nn.Sequential(children)
        narrow.training = module.training
        return narrow
    if isinstance(module, Select):
        if reads is not None:
            raise DecompError("Select", "the channels that it reads must stay")
        assert writes is not None
        index = module.index
        return Select.of(_take(index, writes, 0), module.in_channels).to(index.device).train(module.training)
    if isinstance(module, nn.Linear):
        weight = _take(_take(module.weight, writes, 0), reads, 1)
        return linear(weight, _take_bias(module.bias, writes)).train(module.training)
    if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) or type(module) not in (nn.Conv2d, nn.ConvTranspose2d):
        raise DecompError(type(module).__name__, "its channels cannot be narrowed")
    if module.groups > 1:
        return _narrow_groups(module, reads, writes)
    transposed = isinstance(module, nn.ConvTranspose2d)
    weight = _take(_take(module.weight, writes, 1 if transposed else 0), reads, 0 if transposed else 1)
    return _like(module, weight, _take_bias(module.bias, writes), 1)


def narrow_carrier(module: nn.Module, keep: torch.Tensor, width: int) -> nn.Module:
    """The same carrier with only the kept channels of a space of ``width`` channels.

    Parameters
    ----------
    module : nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU, Zeros or a depthwise nn.Conv2d
    keep : torch.LongTensor
    width : int
        A normalisation behind a flatten has several columns for each channel.

    Returns
    -------
    nn.Module

    Raises
    ------
    DecompError
        For a module of another class.
    """
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return _narrow_groups(module, keep, keep)
    if isinstance(module, Zeros):
        return Zeros(len(keep), module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, nn.PReLU):
        if module.num_parameters == 1:
            return module
        narrow_prelu = nn.PReLU(len(keep), device="meta").train(module.training)
        return with_parameters(narrow_prelu, _take(module.weight, keep, 0), None)
    if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        raise DecompError(type(module).__name__, "its channels cannot be narrowed")
    repeat = module.num_features // width
    index = (keep[:, None] * repeat + torch.arange(repeat, device=keep.device)).flatten()
    narrow = type(module)(
        len(index), eps=module.eps, momentum=module.momentum, affine=module.affine,
        track_running_stats=module.track_running_stats,
    )  # fmt: skip
    state = {k: v[index.to(v.device)] if v.dim() else v for k, v in module.state_dict().items()}
    like = next(iter(state.values()), torch.zeros(()))
    narrow.to(like.device, like.dtype).load_state_dict(state)
    return narrow.train(module.training)


def _take(tensor: torch.Tensor, index: torch.Tensor | None, axis: int) -> torch.Tensor:
    return tensor if index is None else tensor.index_select(axis, index.to(tensor.device))


def _take_bias(bias: torch.Tensor | None, index: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else _take(bias, index, 0)


def _narrow_groups(
    module: nn.Conv2d | nn.ConvTranspose2d, reads: torch.Tensor | None, writes: torch.Tensor | None
) -> nn.Module:
    """A grouped convolution without some of its groups; None for a side keeps all."""
    groups, per_in, per_out = module.groups, module.in_channels // module.groups, module.out_channels // module.groups
    kept_in, kept_out = _whole_groups(reads, groups, per_in), _whole_groups(writes, groups, per_out)
    if kept_in is None or kept_out is None or not torch.equal(kept_in, kept_out):
        raise DecompError(type(module).__name__, f"whole groups of {per_in} to {per_out} channels must stay")
    rows = (kept_out[:, None] * per_out + torch.arange(per_out)).flatten()
    columns = (kept_in[:, None] * per_in + torch.arange(per_in)).flatten()
    # The first axis of a transposed convolution's weight is its input channels.
    weight = _take(module.weight, columns if isinstance(module, nn.ConvTranspose2d) else rows, 0)
    return _like(module, weight, _take_bias(module.bias, rows), len(kept_out))


def _whole_groups(keep: torch.Tensor | None, groups: int, size: int) -> torch.Tensor | None:
    """The groups that kept channels make up, or None where one of them is not whole."""
    if keep is None:
        return torch.arange(groups)
    kept = torch.unique(keep.cpu() // size)
    return kept if len(kept) * size == len(keep) else None


def _like(
    module: nn.Conv2d | nn.ConvTranspose2d, weight: torch.Tensor, bias: torch.Tensor | None, groups: int
) -> nn.Conv2d | nn.ConvTranspose2d:
    """A convolution of the same geometry with other weights."""
    first, second = weight.shape[:2]
    if isinstance(module, nn.ConvTranspose2d):
        assert not isinstance(module.padding, str)  # a transposed convolution takes numbers only
        transposed = nn.ConvTranspose2d(
            first, second * groups, pair(module.kernel_size), pair(module.stride), pair(module.padding),
            pair(module.output_padding), groups, bias is not None, pair(module.dilation), module.padding_mode,
            device="meta",
        )  # fmt: skip
        return with_parameters(transposed.train(module.training), weight, bias)
    conv = nn.Conv2d(
        second * groups, first, pair(module.kernel_size), pair(module.stride), padding(module),
        pair(module.dilation), groups, bias is not None, module.padding_mode, device="meta",
    )  # fmt: skip
    return with_parameters(conv.train(module.training), weight, bias)
