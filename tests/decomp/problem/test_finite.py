import pytest
import torch

from decomp.problem.finite import count_not_finite


@pytest.mark.parametrize(
    ("bad", "count"),
    [([], 0), ([float("nan")], 1), ([float("inf"), float("-inf")], 2), ([float("inf"), float("nan"), 3.4e38], 2)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_nan_and_infinity_counts(bad, count, dtype):
    values = torch.ones(5, 7, dtype=dtype)
    values[2, : len(bad)] = torch.tensor(bad, dtype=dtype)
    assert count_not_finite(values) == count


def test_entries_too_large_to_be_added_are_finite():
    assert count_not_finite(torch.full((3, 4), 3e38)) == 0
    assert count_not_finite(torch.zeros(0, 4)) == 0
