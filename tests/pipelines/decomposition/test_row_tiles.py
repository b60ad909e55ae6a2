import pytest
import torch

from decomp.pipelines.decomposition import row_tiles
from decomp.pipelines.decomposition.row_tiles import Layout, tiles
from decomp.problem.moments import TILE_ROWS


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(row_tiles, "TILE_ROWS", 4)
    monkeypatch.setattr(row_tiles, "BLOCK_ROWS", 8)


def batches(n_images, size, points):
    X = torch.arange(n_images * points * 6.0).reshape(n_images, points, 1, 2, 3)
    Y = -torch.arange(n_images * points * 2.0).reshape(n_images, points, 2)
    for start in range(0, n_images, size):
        stop = min(start + size, n_images)
        yield start, stop, (X[start:stop], Y[start:stop])


@pytest.mark.parametrize("size", [1, 3, 20])
def test_tiles_are_the_same_for_any_batch_size_and_fitted_rows_come_first(small, size):
    found = list(tiles(batches(7, size, 3), 5, [range(7)], 3))
    assert [(fitted, len(Y)) for fitted, (_, Y) in found] == [(True, 4)] * 3 + [(True, 3), (False, 4), (False, 2)]
    X, Y = (torch.cat(parts) for parts in zip(*(rows for _, rows in found)))
    assert torch.equal(X.flatten(), torch.arange(7 * 3 * 6.0)) and torch.equal(Y.flatten(), -torch.arange(7 * 3 * 2.0))


def test_rows_in_front_of_a_whole_block_belong_to_the_process_in_which_it_begins(small):
    # Nine images of three rows: 0..11, 12..14, 15..26; blocks begin at 0, 8, 16 and 24.
    layout = Layout([range(4), range(4, 5), range(5, 9)], 3)
    assert [layout.rows(rank) for rank in range(3)] == [range(12), range(12, 15), range(15, 27)]
    assert [layout.head(rank) for rank in range(3)] == [0, 3, 1]
    assert [layout.target(rank) for rank in (1, 2)] == [0, 0]
    assert layout.gets_rows and layout.senders() == [1, 2]


def test_rows_are_counted_from_the_first_image_of_their_kind(small):
    # Of the held-out images 5..8 the first process has none.
    layout = Layout([range(5, 5), range(5, 8), range(8, 9)], 3)
    assert [layout.rows(rank) for rank in range(3)] == [range(0), range(9), range(9, 12)]
    assert [layout.head(rank) for rank in range(3)] == [0, 0, 3] and layout.target(2) == 1


@pytest.mark.parametrize("size", [100, 700, 2048, 5000])
def test_tiles_have_the_rows_of_moments(size):
    X, Y = torch.arange(6100 * 2.0).reshape(6100, 1, 2, 1, 1), torch.arange(6100.0).reshape(6100, 1, 1)
    batches = ((a, min(a + size, 6100), (X[a : a + size], Y[a : a + size])) for a in range(0, 6100, size))
    found = list(tiles(batches, 5000, [range(6100)], 1))
    lengths = [(True, TILE_ROWS), (True, TILE_ROWS), (True, 5000 - 2 * TILE_ROWS), (False, 1100)]
    assert [(fitted, len(rows[1])) for fitted, rows in found] == lengths
    assert torch.equal(torch.cat([rows[0] for _, rows in found]), X.flatten(0, 1))
