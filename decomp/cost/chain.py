"""Chain formula: the convolutions that a layer becomes at given widths and ranks."""


def chain_macs(layer, width_in, width_out, spatial_rank=None, channel_rank=None):
    """Multiply-accumulates of one layer after its three steps, by formula.

    Parameters
    ----------
    layer : decomp.graph.layer.Layer
    width_in, width_out : int or numpy.ndarray
        Channels it still reads and writes. For a linear layer behind a flatten: columns still read.
    spatial_rank, channel_rank : int, numpy.ndarray or None
        None: that step is not applied.

    Returns
    -------
    int or numpy.ndarray
        The vertical filters run on an output that is already as high as the layer's but still as wide as
        its input.
    """
    (kh, kw), (height, width), width_before = layer.kernel, layer.out_hw, layer.in_hw[1]
    filters = width_out if channel_rank is None else channel_rank
    if spatial_rank is None:
        macs = width_in * kh * kw * filters * height * width
    else:
        macs = spatial_rank * (width_in * kh * height * width_before + filters * kw * height * width)
    if channel_rank is not None:
        macs = macs + channel_rank * width_out * height * width
    return macs


def chain_of(width_in, width_out, spatial_rank=None, channel_rank=None):
    """The factors of a layer after its three steps: [(name, channels in, channels out)], first applied first."""
    filters = width_out if channel_rank is None else channel_rank
    if spatial_rank is None:
        chain = [("dense", width_in, filters)]
    else:
        chain = [("vertical", width_in, spatial_rank), ("horizontal", spatial_rank, filters)]
    return chain if channel_rank is None else [*chain, ("pointwise", channel_rank, width_out)]
