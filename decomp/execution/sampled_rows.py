"""Sampled rows: input patches and responses of a layer at sampled output positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decomp.graph.layer import InputSpace
from decomp.modules.convolution import CONVOLUTIONS, Convolution, geometry, pair


def points_of_calls(n_points: int, grids: Sequence[tuple[int, int]]) -> list[int]:
    """Output positions per image at each call of a layer: ``n_points`` a call on average, in proportion to its grid.

    So each position of any call counts alike in the layer's fit.

    Parameters
    ----------
    n_points : int
    grids : sequence of tuple of int
        Height and width of the output at each call.

    Returns
    -------
    list of int
        At least one each, and at most all positions of the grid.
    """
    areas = [height * width for height, width in grids]
    total = n_points * len(areas)
    return [min(area, max(1, round(total * area / sum(areas)))) for area in areas]


def draw_positions(n_images: int, n_points: int, out_hw: Sequence[int], generator: torch.Generator) -> Tensor:
    """Output positions for every image, drawn without replacement, borders included.

    Parameters
    ----------
    n_images, n_points : int
        A grid of fewer than ``n_points`` positions gives all of them.
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


def _draw_sparse(n_images: int, n_points: int, n_places: int, generator: torch.Generator) -> Tensor:
    """Distinct positions by rejection: images with a repeated position are drawn again."""
    flat = torch.randint(n_places, (n_images, n_points), generator=generator)
    while True:
        ordered = flat.sort(dim=1).values
        bad = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero().flatten()
        if len(bad) == 0:
            return flat
        flat[bad] = torch.randint(n_places, (len(bad), n_points), generator=generator)


def pad_like(conv: Convolution, x: Tensor) -> Tensor:
    """Pad an input as the convolution does; for a transposed one, with zeros between the entries before."""
    if isinstance(conv, nn.ConvTranspose2d):
        (sh, sw), (height, width) = pair(conv.stride), pair(x.shape[-2:])
        spread = x.new_zeros(*x.shape[:2], (height - 1) * sh + 1, (width - 1) * sw + 1)
        spread[:, :, ::sh, ::sw] = x
        x = spread
    (top, bottom), (left, right) = geometry(conv).pads((conv.kernel_size[0], conv.kernel_size[1]))
    amounts = [left, right, top, bottom]
    if not any(amounts):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, amounts, mode=mode)


def patches(conv: Convolution, x: Tensor, positions: Tensor) -> Tensor:
    """Input patches that a convolution reads at the given output positions, padding included.

    Parameters
    ----------
    conv : torch.nn.Conv2d or torch.nn.ConvTranspose2d
        Only its kernel size, stride, padding (with its mode) and dilation are used. The patches of a transposed
        convolution meet its kernel as :func:`decomp.modules.convolution.kernel_of` gives it.
    x : torch.Tensor, shape (m, c, H, W)
    positions : torch.Tensor of int, shape (m, P, 2)

    Returns
    -------
    torch.Tensor, shape (m·P, c, kh, kw)
    """
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    (top, _), (left, _) = geometry(conv).pads((kh, kw))
    transposed = isinstance(conv, nn.ConvTranspose2d)
    # Of a map larger than all of its patches no padded copy is made: what lies outside is set to zero afterwards.
    inside = not transposed and conv.padding_mode == "zeros" and positions.shape[1] * kh * kw < x[0, 0].numel()
    if not inside:
        x, top, left = pad_like(conv, x), 0, 0
    if transposed:
        sh = sw = 1
    (m, c, height, width), n_points = x.shape, positions.shape[1]
    positions = positions.to(device=x.device, dtype=torch.long)
    rows = (positions[..., 0] * sh - top)[..., None] + torch.arange(kh, device=x.device) * dh
    columns = (positions[..., 1] * sw - left)[..., None] + torch.arange(kw, device=x.device) * dw
    places = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    cut = x.flatten(2).gather(2, places.view(m, 1, -1).expand(m, c, -1)).view(m, c, n_points, kh, kw).transpose(1, 2)
    if inside:
        rows_outside, columns_outside = (rows < 0) | (rows >= height), (columns < 0) | (columns >= width)
        cut = cut.masked_fill((rows_outside[..., :, None] | columns_outside[..., None, :])[:, :, None], 0.0)
    return cut.flatten(0, 1).contiguous()


def responses(y: Tensor, positions: Tensor) -> Tensor:
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


def layer_rows(module: nn.Module, space: InputSpace | None, x: Tensor, positions: Tensor) -> Tensor:
    """Inputs of the layer problem: patches of a convolution, or the flattened map of a linear layer.

    Returns
    -------
    torch.Tensor, shape (m·P, c, kh, kw)
        A linear layer behind a flatten of a c×H×W map is a convolution whose kernel is the map.
    """
    if isinstance(module, CONVOLUTIONS):
        return patches(module, x, positions)
    map_shape = space.map_shape if space is not None else (1, 1)
    return x.reshape(len(x), -1, *map_shape)
