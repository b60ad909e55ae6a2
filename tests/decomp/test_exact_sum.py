from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decomp import exact_sum
from decomp.exact_sum import ExactSum


def added(terms, shape=None):
    total = ExactSum(terms[0].shape if shape is None else shape)
    for term in terms:
        total.add(term)
    return total


def float32_terms(n=60, seed=0):
    """Terms whose sizes differ by up to 2^40, so that a plain sum in float64 depends on their order."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 2.0 ** torch.randint(-20, 20, (n, 3, 5), generator=generator)
    return list((torch.randn(n, 3, 5, generator=generator) * sizes).unbind())


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(60)), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_any_order_and_any_groups_of_float32_terms_give_the_same_bits(order, cuts):
    terms = float32_terms()
    wanted, edges = added(terms).rounded(), [0, *sorted(cuts), 60]
    total = ExactSum((3, 5))
    for start, stop in zip(edges, edges[1:]):
        total.merge(added([terms[i] for i in order[start:stop]], (3, 5)))
    assert torch.equal(total.rounded(), wanted)


def test_a_plain_sum_of_these_terms_depends_on_their_order():
    terms = [term.double() for term in float32_terms()]
    assert not torch.equal(sum(terms), sum(reversed(terms)))


def test_the_sum_of_float32_terms_is_the_exact_one_rounded_once():
    terms = float32_terms(seed=1)
    found = added(terms).rounded()
    for place, value in enumerate(found.flatten().tolist()):
        exact = sum(Fraction(float(term.flatten()[place])) for term in terms)
        assert value == float(exact)


def test_what_float64_would_lose_is_kept():
    large, small = torch.tensor([1e30]), torch.tensor([1.0])
    assert added([large, small, -large]).rounded().tolist() == [1.0]


@pytest.mark.parametrize("entries", [1, 4, 15, 100])
def test_entries_are_added_in_parts_of_any_size(entries, monkeypatch):
    terms = float32_terms()
    wanted = added(terms).rounded()
    monkeypatch.setattr(exact_sum, "ENTRIES", entries)
    assert torch.equal(added(terms).rounded(), wanted)


def test_numbers_without_axes_and_no_terms_have_a_sum():
    assert added([torch.tensor(0.5), torch.tensor(1.25, dtype=torch.float64)]).rounded().item() == 1.75
    assert ExactSum((2, 0)).rounded().shape == (2, 0) and ExactSum((2,)).rounded().tolist() == [0.0, 0.0]


def test_what_is_not_a_number_stays_in_its_entry():
    found = added([torch.tensor([1.0, float("nan")]), torch.tensor([2.0, 1.0])]).rounded()
    assert float(found[0]) == 3.0 and found[1].isnan()


def test_terms_are_not_changed_and_may_be_transposed():
    term = torch.arange(6.0).reshape(2, 3).T
    before = term.clone()
    total = added([term, term])
    assert torch.equal(total.rounded(), 2 * before) and torch.equal(term, before)
