import torch

from decomp.exact_sum import ExactSum
from decomp.problem.holders import ALONE


def test_one_process_has_the_sums_of_its_own_rows():
    sums = ExactSum((2,)), ExactSum(())
    for total, terms in zip(sums, ((torch.ones(2), torch.tensor([2.0, 3.0])), (torch.tensor(4.0),))):
        for term in terms:
            total.add(term)
    assert [value.tolist() for value in ALONE.summed(*sums)] == [[3.0, 4.0], 4.0]
    assert ALONE.each([lambda: 3, lambda: "a"]) == [3, "a"]
    values = torch.ones(2), torch.tensor(3.0)
    assert all(one is other for one, other in zip(ALONE.agreed(*values), values))
