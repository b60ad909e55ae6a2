"""Sampled rows: input patches and responses of a layer at sampled output positions."""

import torch
import torch.nn.functional as F
from torch import nn

from decomp.modules.convolution import geometry


def draw_positions(n_images, n_points, out_hw, generator):
    """Output positions for every image, drawn without replacement, borders included.

    Parameters
    ----------
    n_images, n_points : int
        A grid of fewer than ``n_points`` places gives all its places.
    out_hw : tuple of int
        Height and width of the output grid.
    generator : torch.Generator

    Returns
    -------
    torch.Tensor of int32, shape (n_images, min(n_points, H·W), 2)
        (row, column), in increasing order within an image.
    """
    height, width = out_hw
    n_places = height * width
    n_points = min(n_points, n_places)
    if n_points == n_places:
        flat = torch.arange(n_places).expand(n_images, n_places)
    elif n_points * 8 <= n_places:
        flat = _draw_sparse(n_images, n_points, n_places, generator)
    else:
        flat = torch.rand(n_images, n_places, generator=generator).argsort(dim=1)[:, :n_points]
    flat = flat.sort(dim=1).values
    return torch.stack((flat // width, flat % width), dim=2).to(torch.int32)


def _draw_sparse(n_images, n_points, n_places, generator):
    """Distinct places by rejection: images with a repeated place are drawn again."""
    flat = torch.randint(n_places, (n_images, n_points), generator=generator)
    while True:
        ordered = flat.sort(dim=1).values
        bad = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero().flatten()
        if len(bad) == 0:
            return flat
        flat[bad] = torch.randint(n_places, (len(bad), n_points), generator=generator)


def pad_like(conv, x):
    """Pad an input the way the convolution does, so that patches can be cut without it."""
    (top, bottom), (left, right) = geometry(conv).pads(conv.kernel_size)
    amounts = [left, right, top, bottom]
    if not any(amounts):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, amounts, mode=mode)


def patches(conv, x, positions):
    """Input patches that a convolution reads at the given output positions, zero padding included.

    Parameters
    ----------
    conv : torch.nn.Conv2d
        Only its kernel size, stride, padding and dilation are used.
    x : torch.Tensor, shape (m, c, H, W)
    positions : torch.Tensor of int, shape (m, P, 2)

    Returns
    -------
    torch.Tensor, shape (m·P, c, kh, kw)
    """
    padded = pad_like(conv, x).permute(0, 2, 3, 1).contiguous()
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    positions = positions.to(device=x.device, dtype=torch.long)
    rows = (positions[..., 0] * sh)[..., None] + torch.arange(kh, device=x.device) * dh
    columns = (positions[..., 1] * sw)[..., None] + torch.arange(kw, device=x.device) * dw
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    cut = padded[image, rows[..., :, None], columns[..., None, :]]
    return cut.permute(0, 1, 4, 2, 3).flatten(0, 1).contiguous()


def responses(y, positions):
    """Values of a feature map at the given positions.

    Parameters
    ----------
    y : torch.Tensor, shape (m, n, H, W), or (m, n) for a linear layer

    Returns
    -------
    torch.Tensor, shape (m, P, n)
    """
    if y.dim() == 2:
        return y[:, None, :]
    positions = positions.to(device=y.device, dtype=torch.long)
    image = torch.arange(len(y), device=y.device)[:, None]
    return y.permute(0, 2, 3, 1)[image, positions[..., 0], positions[..., 1]]


def layer_rows(module, space, x, positions):
    """Rows of the layer problem: patches of a convolution, or the flattened map of a linear layer.

    Returns
    -------
    torch.Tensor, shape (m·P, c, kh, kw)
        A linear layer behind a flatten of a c×H×W map is a convolution whose kernel is the map.
    """
    if isinstance(module, nn.Conv2d):
        return patches(module, x, positions)
    map_shape = space.map_shape if space is not None else (1, 1)
    return x.reshape(len(x), -1, *map_shape)
