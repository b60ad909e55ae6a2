import torch

from decomp.modules.entries import with_entries


def test_some_entries_are_replaced_in_a_copy():
    x = torch.arange(6.0).view(2, 3)
    assert with_entries(x, (slice(None), 1), torch.tensor([8.0, 9.0])).tolist() == [[0, 8, 2], [3, 9, 5]]
    assert with_entries(x, x > 3, 0.0).tolist() == [[0, 1, 2], [3, 0, 0]]
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
