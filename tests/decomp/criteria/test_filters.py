"""Criteria of filters against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from decomp.criteria.filters import FILTERS, filter_overlap, filter_rows, fpgm, l1, l2, largest
from decomp.criteria.names import FILTER_CRITERIA

ROWS = torch.tensor([[3.0, -4.0], [0.0, 5.0], [1.0, 1.0]], dtype=torch.float64)


def test_norms_are_those_of_the_rows():
    assert l1(ROWS).tolist() == [7, 5, 2]
    assert l2(ROWS).tolist() == pytest.approx([5, 5, math.sqrt(2)], rel=1e-15)
    assert largest(ROWS).tolist() == [-7, -5, -2]


@pytest.mark.parametrize("criterion", FILTERS)
def test_large_layers_get_the_same_numbers(criterion, monkeypatch):
    rows = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    whole = FILTERS[criterion](rows)
    monkeypatch.setattr("decomp.criteria.filters._PART", 100)
    monkeypatch.setattr("decomp.criteria.filters._LARGE", 0)
    parts = FILTERS[criterion](rows)
    assert parts.dtype == torch.float64
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)


def test_overlap_is_the_mean_absolute_cosine_to_the_others_over_all_filters():
    # cosines: (0,1) −0.8, (0,2) −1/(5√2), (1,2) 1/√2
    a, b, c = 0.8, 1 / (5 * math.sqrt(2)), 1 / math.sqrt(2)
    wanted = [(a + b) / 3, (a + c) / 3, (b + c) / 3]
    assert filter_overlap(ROWS).tolist() == pytest.approx(wanted)
    assert FILTERS["overlap"](ROWS).tolist() == pytest.approx([-x for x in wanted])
    assert filter_overlap(7 * ROWS.view(3, 2, 1, 1)).tolist() == pytest.approx(wanted)


def test_a_filter_of_zeros_overlaps_more_than_any_other_and_counts_for_none():
    rows = torch.cat([ROWS, torch.zeros(1, 2)])
    assert filter_overlap(rows)[3] == 1
    assert filter_overlap(rows)[:3].tolist() == pytest.approx((filter_overlap(ROWS) * 3 / 4).tolist())
    same = torch.ones(50, 4)
    assert filter_overlap(same).tolist() == pytest.approx([49 / 50] * 50)


def test_the_filter_nearest_to_the_geometric_median_goes_first():
    rows = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [3.0, 3.0]], dtype=torch.float64)
    distances = fpgm(rows)
    assert distances.argmin() == 3
    assert distances[0] == pytest.approx(20 + math.sqrt(18))


def test_every_named_criterion_of_weights_has_a_function():
    assert tuple(FILTERS) == FILTER_CRITERIA


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Linear(5, 6),
        nn.ConvTranspose2d(4, 6, 2), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ConvTranspose2d(6, 6, 2, groups=6),
    ],
)  # fmt: skip
def test_rows_are_the_weights_by_which_an_output_depends_on_the_inputs(layer):
    """The absolute weights of a row, applied to ones, add up to what the output takes of an input of ones."""
    with torch.no_grad():
        layer.weight.abs_()
        layer.bias.zero_()
        if isinstance(layer, nn.Linear):
            wanted = layer(torch.ones(1, 5))[0]
        elif isinstance(layer, nn.ConvTranspose2d):
            # one pixel is spread over the kernel
            wanted = layer(torch.ones(1, layer.in_channels, 1, 1))[0].sum(dim=(1, 2))
        else:
            wanted = layer(torch.ones(1, 4, 3, 3))[0, :, 0, 0]
    assert l1(filter_rows(layer)).tolist() == pytest.approx(wanted.tolist())


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Linear(4, 6), nn.ConvTranspose2d(4, 6, 2)])
def test_columns_of_removed_inputs_do_not_count(layer):
    columns = torch.tensor([True, False, True, False])
    without = filter_rows(layer, columns)
    with torch.no_grad():
        (layer.weight if isinstance(layer, nn.ConvTranspose2d) else layer.weight.transpose(0, 1))[~columns] = 0
    assert torch.equal(l1(without), l1(filter_rows(layer)))
    assert without.shape[1] == filter_rows(layer).shape[1] // 2
