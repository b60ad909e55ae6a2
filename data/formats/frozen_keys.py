"""Names of grids and of entries of responses in a frozen file."""

from __future__ import annotations

from collections.abc import Iterator

from decomp.execution.sampled_rows import points_of_calls
from decomp.graph.layer import Layer


def grid_key(hw: tuple[int, int], other_points: int | None = None) -> str:
    """Name of an output grid (height, width) in the frozen file. Layers of one grid share their positions.

    Parameters
    ----------
    hw : tuple of int
    other_points : int, optional
        Positions per image, where a layer is not sampled at as many as other layers on this grid.
    """
    return f"{hw[0]}x{hw[1]}" + ("" if other_points is None else f" at {other_points}")


def call_key(layer: str, call: int) -> str:
    """Name of a layer's responses at a call (0, 1, ...) among the layers of the frozen file."""
    return f"{layer}: call {call + 1}" if call else layer


def shortcut_key(layer: str) -> str:
    """Name of the value that a layer's output is added to, among the layers of the frozen file."""
    return f"{layer}: shortcut"


def keys_of(layer: Layer, n_points: int) -> Iterator[tuple[str, str, int]]:
    """Names of a layer's responses and of their grid, and the positions per image, for each of its calls."""
    grids = [out_hw for _, out_hw in layer.calls]
    for call, (hw, points) in enumerate(zip(grids, points_of_calls(n_points, grids))):
        usual = min(n_points, hw[0] * hw[1])
        yield call_key(layer.name, call), grid_key(hw, None if points == usual else points), points
