"""Fewer channels: of one module, and of whole channel spaces of a network, in two ways that must agree.

:func:`shrink` puts smaller modules in; :func:`mask` keeps all shapes and sets to zero what belongs to the other
channels. What a masked network computes does not depend on the value its dropped channels take (an activation or
a normalisation may lift them off zero), because every layer that reads them reads them with weight zero.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from decomp.errors import DecompError


class Select(nn.Module):
    """Some of the channels of a feature map, in a fixed order: what a layer reads where the others must stay.

    Parameters
    ----------
    in_channels, out_channels : int
        How many there are and how many are taken. Which ones is the buffer ``index``, the first ones at the start.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.register_buffer("index", torch.arange(out_channels))

    @classmethod
    def of(cls, keep, in_channels):
        """The selection of the channels ``keep`` (torch.LongTensor)."""
        module = cls(in_channels, len(keep))
        module.index.copy_(keep)
        return module

    def forward(self, x):
        return torch.index_select(x, 1, self.index)

    def extra_repr(self):
        return f"{self.out_channels} of {self.in_channels}"


# -- one module ------------------------------------------------------------------------------------------------


def set_module(root, path, module):
    """Put a module in the place of another."""
    parent, _, name = path.rpartition(".")
    holder = root.get_submodule(parent) if parent else root
    if isinstance(holder, (nn.Sequential, nn.ModuleList)):
        holder[int(name) if name.isdigit() else list(holder._modules).index(name)] = module
    else:
        setattr(holder, name, module)


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


def linear(weight, bias):
    """A linear layer with these weights (n, p) and bias (n,) or None."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return with_parameters(module, weight, bias)


def with_parameters(module, weight, bias):
    """The module with copies of a weight and a bias as its parameters."""
    module.weight = nn.Parameter(weight.detach().clone().contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone().contiguous())
    return module


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


# -- a network -------------------------------------------------------------------------------------------------


def shrink(network, spaces, keep):
    """Put smaller modules in, so that some channel spaces have only their kept channels.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place; has the module paths that ``spaces`` was made from.
    spaces : decomp.spaces.Spaces
    keep : dict of str to sequence of int
        For each space to be narrowed, ascending places of the channels that stay.

    Returns
    -------
    list of str
        Paths of the modules that were exchanged.

    Raises
    ------
    DecompError
        For a frozen space, or places that it does not have.
    """
    changed = []
    for path, role, reads, writes in _cuts(spaces, keep):
        module = network.get_submodule(path)
        # A side that keeps all may have been narrowed before, with another space.
        places = [None if stay.all() else torch.from_numpy(np.flatnonzero(stay)) for stay in (reads, writes)]
        if role == "carrier":
            set_module(network, path, narrow_carrier(module, places[0], len(reads)))
        else:
            set_module(network, path, narrow_layer(module, *places))
        changed.append(path)
    return changed


def mask(network, spaces, keep):
    """Keep all shapes and set to zero what belongs to the channels that :func:`shrink` drops.

    Parameters and errors as for :func:`shrink`. Returns the paths of the modules that were changed.
    """
    changed = []
    with torch.no_grad():
        for path, _, reads, writes in _cuts(spaces, keep):
            module = network.get_submodule(path)
            parts = list(module) if isinstance(module, nn.Sequential) else [module]
            _silence(parts[-1], torch.from_numpy(~writes))
            _deafen(parts[0], torch.from_numpy(~reads))
            changed.append(path)
    return changed


def _silence(module, dropped):
    """Output channels at zero, as far as weights and bias decide it."""
    for tensor in (getattr(module, "weight", None), getattr(module, "bias", None)):
        if tensor is None:
            continue
        if isinstance(module, nn.ConvTranspose2d) and tensor.dim() > 1:
            per_out = module.out_channels // module.groups
            if module.groups == 1:
                tensor[:, dropped.to(tensor.device)] = 0
            else:
                groups = dropped.view(module.groups, per_out).all(dim=1)
                tensor[groups.repeat_interleave(module.in_channels // module.groups).to(tensor.device)] = 0
        else:
            tensor[dropped.to(tensor.device)] = 0


def _deafen(module, dropped):
    """Input channels read with weight zero; groups are silent as a whole already."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        module.weight[:, dropped.to(module.weight.device)] = 0
    elif isinstance(module, nn.ConvTranspose2d):
        module.weight[dropped.to(module.weight.device)] = 0


def _cuts(spaces, keep):
    """(path, role, inputs that stay, outputs that stay) of every module that loses channels, each once."""
    alive, seen = spaces.alive(keep), set()
    for use in spaces.uses:
        reads, writes = alive[use.reads], alive[use.writes]
        if use.path not in seen and not (reads.all() and writes.all()):
            seen.add(use.path)
            yield use.path, use.role, reads, writes


def shrunk_macs(spaces, keep, per_layer):
    """Multiply-accumulates of a network whose spaces keep only some channels, by formula.

    Parameters
    ----------
    spaces : decomp.spaces.Spaces
    keep : dict of str to sequence of int
    per_layer : dict of str to int
        Counted on the network with all channels.

    Returns
    -------
    int
        A layer's cost goes with the channels it reads and with those it writes; a carrier's and a grouped layer's
        with its groups.
    """
    alive = spaces.alive(keep)
    total = sum(per_layer.values())
    for path in {use.path for use in spaces.uses}:
        use = spaces.use(path)
        reads, writes = alive[use.reads], alive[use.writes]
        if path not in per_layer or (reads.all() and writes.all()):
            continue
        macs = per_layer[path] * int(reads.sum()) // len(reads)
        if use.role == "layer" and not use.grouped:
            macs = macs * int(writes.sum()) // len(writes)
        total += macs - per_layer[path]
    return total
