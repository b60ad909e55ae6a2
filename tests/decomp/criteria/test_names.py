"""Names of criteria: each has its needs and a rule of normalisation."""

from decomp.criteria.names import CRITERIA, NEEDS, NORMALISATION_OF, NORMALISATIONS


def test_every_criterion_has_needs_and_a_normalisation():
    assert set(NEEDS) == set(NORMALISATION_OF) == set(CRITERIA) and len(set(CRITERIA)) == len(CRITERIA)
    assert set(NEEDS.values()) == {None, "batchnorm", "images", "loss"}
    assert set(NORMALISATION_OF.values()) <= set(NORMALISATIONS)
    assert {name for name in CRITERIA if NEEDS[name] is None} == {"l1", "l2", "largest", "overlap", "fpgm", "random"}
