"""Narrow one module: keep some of its input and output channels."""

from collections import OrderedDict

import torch
from torch import nn

from decomp.errors import DecompError
from decomp.modules.replace import linear, with_parameters


def narrow_layer(module, reads=None, writes=None):
    """The same layer on only some of its input and output channels.

    Parameters
    ----------
    module : nn.Conv2d, nn.ConvTranspose2d, nn.Linear or nn.Sequential of such
    reads, writes : torch.LongTensor, optional
        Ascending indices of input and output channels that stay, at least one each; None keeps all. Of a grouped
        convolution whole groups must stay.

    Returns
    -------
    nn.Module
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
        return nn.Sequential(children)
    if isinstance(module, nn.Linear):
        weight = _take(_take(module.weight, writes, 0), reads, 1)
        return linear(weight, _take(module.bias, writes, 0))
    if type(module) not in (nn.Conv2d, nn.ConvTranspose2d):
        raise DecompError(type(module).__name__, "its channels cannot be narrowed")
    if module.groups > 1:
        return _narrow_groups(module, reads, writes)
    transposed = isinstance(module, nn.ConvTranspose2d)
    weight = _take(_take(module.weight, writes, 1 if transposed else 0), reads, 0 if transposed else 1)
    return _like(module, weight, _take(module.bias, writes, 0), 1)


def _take(tensor, index, axis):
    return tensor if tensor is None or index is None else tensor.index_select(axis, index.to(tensor.device))


def _narrow_groups(module, reads, writes):
    """A grouped convolution without some of its groups."""
    groups, per_in, per_out = module.groups, module.in_channels // module.groups, module.out_channels // module.groups
    whole = {}
    for keep, size in ((reads, per_in), (writes, per_out)):
        if keep is None:
            keep = torch.arange(groups * size)
        kept = torch.unique(keep.cpu() // size)
        whole.setdefault("groups", kept)
        if len(kept) * size != len(keep) or not torch.equal(kept, whole["groups"]):
            raise DecompError(type(module).__name__, f"whole groups of {per_in} to {per_out} channels must stay")
    kept = whole["groups"]
    rows = (kept[:, None] * per_out + torch.arange(per_out)).flatten()
    if isinstance(module, nn.ConvTranspose2d):
        columns = (kept[:, None] * per_in + torch.arange(per_in)).flatten()
        return _like(module, _take(module.weight, columns, 0), _take(module.bias, rows, 0), len(kept))
    return _like(module, _take(module.weight, rows, 0), _take(module.bias, rows, 0), len(kept))


def _like(module, weight, bias, groups):
    """A convolution of the same geometry with other weights."""
    options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation, "groups": groups}
    options.update(bias=bias is not None, padding_mode=module.padding_mode, device="meta")
    if isinstance(module, nn.ConvTranspose2d):
        options["output_padding"] = module.output_padding
        shape = (weight.shape[0], weight.shape[1] * groups)
    else:
        shape = (weight.shape[1] * groups, weight.shape[0])
    return with_parameters(type(module)(*shape, module.kernel_size, **options).train(module.training), weight, bias)


def narrow_carrier(module, keep, width):
    """The same carrier with only the kept channels of a space of ``width`` channels.

    Parameters
    ----------
    module : nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU or a depthwise nn.Conv2d
    keep : torch.LongTensor
    width : int
        A normalisation behind a flatten has several columns for each channel.
    """
    if isinstance(module, nn.Conv2d):
        return _narrow_groups(module, keep, keep)
    if isinstance(module, nn.PReLU):
        if module.num_parameters == 1:
            return module
        return with_parameters(nn.PReLU(len(keep), device="meta"), _take(module.weight, keep, 0), None)
    repeat = module.num_features // width
    index = (keep[:, None] * repeat + torch.arange(repeat, device=keep.device)).flatten()
    narrow = type(module)(
        len(index), eps=module.eps, momentum=module.momentum, affine=module.affine,
        track_running_stats=module.track_running_stats,
    )  # fmt: skip
    state = {k: v[index.to(v.device)] if v.dim() else v for k, v in module.state_dict().items()}
    narrow.load_state_dict(state)
    device = next(iter(state.values()), torch.zeros(())).device
    return narrow.to(device).train(module.training)
