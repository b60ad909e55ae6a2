import torch

from decomp.problem.holders import ALONE


def test_one_process_has_the_sums_of_its_own_rows():
    values = torch.ones(2), torch.tensor(3.0)
    assert all(one is other for one, other in zip(ALONE.summed(*values), values))
    assert all(one is other for one, other in zip(ALONE.agreed(*values), values))
