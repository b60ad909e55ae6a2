import math

import pytest
import torch

from decomp.errors import UsageError
from decomp.schemes.overlap_metrics import dead_filters, live_overlaps, overlaps


def test_the_overlap_is_the_sum_of_absolute_cosines_over_the_number_of_filters():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 3.0]])
    diagonal = 1 / math.sqrt(2)
    expected = [diagonal / 3, diagonal / 3, 2 * diagonal / 3]
    assert torch.allclose(overlaps(rows), torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_opposite_filters_overlap_fully_and_signed_sums_cancel():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert torch.allclose(overlaps(rows), torch.full((3,), 2 / 3, dtype=torch.float64))
    assert overlaps(rows, "signed").tolist()[0] == 0.0


def test_the_length_of_a_filter_does_not_change_the_overlap_but_the_signed_one():
    rows = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    longer = rows.clone()
    longer[2] *= 50
    assert torch.allclose(overlaps(rows), overlaps(longer), atol=1e-12)
    assert not torch.allclose(overlaps(rows, "signed"), overlaps(longer, "signed"), rtol=0.1)


def test_a_dead_filter_is_found_and_its_overlap_is_counted_in_no_mean():
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    rows[1] = 0
    assert overlaps(rows)[1] == 1.0
    assert torch.equal(live_overlaps(rows), overlaps(rows)[[0, 2, 3]])
    assert dead_filters(rows).tolist() == [False, True, False, False]
    assert not dead_filters(rows.half() * 1e-4)[0]


def test_random_directions_overlap_as_the_dimension_says():
    generator = torch.Generator().manual_seed(0)
    for dimension, expected in ((9, 0.266), (144, 0.066)):
        mean = overlaps(torch.randn(400, dimension, generator=generator)).mean() * 400 / 399
        # sqrt(2/(πd)) is the limit for large d; the exact mean at d = 9 is 0.273.
        assert abs(float(mean) - expected) < 0.01


def test_an_unknown_metric_is_refused():
    with pytest.raises(UsageError, match="metric: must be one of absolute, signed, got 'cosine'"):
        overlaps(torch.ones(2, 2), "cosine")
