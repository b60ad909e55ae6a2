"""Allowed sizes: multiples where a layer is wide enough, and a grid of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from decomp.allocation.sizes import GRID, allowed_sizes, fitting_multiple, on_grid


def test_the_multiple_is_the_one_asked_for_only_where_a_layer_is_wide():
    assert [fitting_multiple(width, 8) for width in (1, 15, 16, 31, 32, 63, 64, 512)] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert [fitting_multiple(width, 1) for width in (1, 64)] == [1, 1]
    assert [fitting_multiple(width, 12) for width in (95, 96, 48, 24)] == [6, 12, 6, 3]


@given(limit=st.integers(1, 700), multiple=st.sampled_from([1, 2, 4, 8]))
def test_allowed_sizes_are_multiples_and_the_full_size(limit, multiple):
    sizes = allowed_sizes(limit, multiple)
    assert sizes[-1] == limit and sizes[0] >= 1 and all(np.diff(sizes) > 0)
    assert all(size % multiple == 0 for size in sizes[:-1])
    assert len(sizes) == -(-limit // multiple)
    grid = on_grid(sizes)
    assert set(grid) <= set(sizes.tolist()) and {grid[0], grid[-1]} == {sizes[0], limit}


def test_the_grid_is_finer_towards_small_sizes():
    grid = on_grid(allowed_sizes(480, 1))
    gaps = np.diff(grid)
    assert GRID - 4 <= len(grid) <= GRID + 1 and gaps[1] < gaps[-1] and grid[:2] == [1, 10]
    assert on_grid(allowed_sizes(GRID, 1)) == list(range(1, GRID + 1))
