import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from decomp.graph.union_find import UnionFind


def test_integers_are_added_one_after_the_other_each_in_its_own_set():
    sets = UnionFind()
    assert sets.add(3).tolist() == [0, 1, 2] and sets.add(0).tolist() == [] and sets.add(2).tolist() == [3, 4]
    assert len(sets) == 5 and sets.representatives().tolist() == [0, 1, 2, 3, 4]


def test_arrays_are_united_place_by_place():
    sets = UnionFind()
    sets.add(6)
    sets.unite(np.array([0, 1]), np.array([4, 5]))
    assert sets.representatives().tolist() == [0, 1, 2, 3, 0, 1]


pairs = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20)


@given(pairs, st.randoms())
def test_the_representative_is_the_lowest_number_that_unions_reach_in_any_order(unions, random):
    reached = {i: {i} for i in range(12)}
    for a, b in unions:
        joined = reached[a] | reached[b]
        for i in joined:
            reached[i] = joined
    for _ in range(2):
        sets = UnionFind()
        sets.add(12)
        for a, b in unions:
            sets.unite(np.array([a]), np.array([b]))
        assert sets.representatives().tolist() == [min(reached[i]) for i in range(12)]
        assert [sets.find(i) for i in range(12)] == [min(reached[i]) for i in range(12)]
        random.shuffle(unions)
