"""Tensorly: every k×k convolution as 1×1, k×k, 1×1 by a Tucker decomposition of its two channel modes (Tucker-2).

Kim et al. 2016 (arXiv:1511.06530), with one share of both channel counts as ranks for all layers.
"""

import tensorly
from tensorly.decomposition import partial_tucker
from torch import nn
from torch.fx.experimental.optimization import fuse

from benchmarks.peers.search import meet, spread
from benchmarks.peers.subject import reestimate_normalisation


def compress(subject, speedup, work, *, folded, bn):
    """Ranks by bisection on their share of the channels; with `folded`, of weights that carry the normalisation."""
    tensorly.set_backend("pytorch")
    # A decomposition for every pair of ranks that is tried, no more than once.
    original = fuse(subject.model) if folded else subject.model
    known = {}

    def make(share):
        network = fuse(subject.model) if folded else subject.fresh()
        names = [name for name, m in network.named_modules() if _divisible(m)]
        sizes = [network.get_submodule(name).out_channels for name in names]
        for name, part in zip(names, spread(sizes, share)):
            conv = original.get_submodule(name)
            ranks = tuple(max(1, min(c, int(c * part))) for c in (conv.out_channels, conv.in_channels))
            if (name, ranks) not in known:
                known[name, ranks] = split(conv, *ranks)
            if known[name, ranks] is not None:
                network.set_submodule(name, known[name, ranks])
        return network.eval()

    network, _ = meet(make, subject.count, subject.macs / speedup, 0.005, 1.0)
    if bn:
        reestimate_normalisation(network, subject.images)
    return network, 0.0


def _divisible(module):
    return isinstance(module, nn.Conv2d) and module.groups == 1 and max(module.kernel_size) > 1


def split(conv, rank_out, rank_in):
    """The three convolutions, or None where they would cost no less than the one."""
    k = conv.kernel_size[0] * conv.kernel_size[1]
    # The first runs on the input's grid, which strides make larger than the output's.
    grid = conv.stride[0] * conv.stride[1]
    cheap = rank_in * conv.in_channels * grid + k * rank_in * rank_out + rank_out * conv.out_channels
    if cheap >= k * conv.in_channels * conv.out_channels:
        return None
    (core, (last, first)), _ = partial_tucker(conv.weight.detach(), rank=[rank_out, rank_in], modes=[0, 1], init="svd")
    reduce = nn.Conv2d(conv.in_channels, rank_in, 1, bias=False)
    middle = nn.Conv2d(rank_in, rank_out, conv.kernel_size, conv.stride, conv.padding, bias=False)
    expand = nn.Conv2d(rank_out, conv.out_channels, 1, bias=conv.bias is not None)
    reduce.weight.data = first.T.contiguous()[:, :, None, None]
    middle.weight.data = core.contiguous()
    expand.weight.data = last.contiguous()[:, :, None, None]
    if conv.bias is not None:
        expand.bias.data = conv.bias.detach().clone()
    return nn.Sequential(reduce, middle, expand)
