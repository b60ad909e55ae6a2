"""Names of criteria: each has its needs and a rule of normalisation."""

from checkout import ROOT

from decomp.criteria.names import CRITERIA, NEEDS, NORMALISATION_OF, NORMALISATIONS


def test_every_criterion_has_needs_and_a_normalisation():
    assert set(NEEDS) == set(NORMALISATION_OF) == set(CRITERIA) and len(set(CRITERIA)) == len(CRITERIA)
    assert set(NEEDS.values()) == {None, "batchnorm", "images", "loss"}
    assert set(NORMALISATION_OF.values()) <= set(NORMALISATIONS)
    of_weights = {"l1", "l2", "largest", "overlap", "fpgm", "group-l1", "group-l2", "random"}
    assert {name for name in CRITERIA if NEEDS[name] is None} == of_weights


def test_the_page_about_criteria_lists_them_all():
    text = (ROOT / "docs" / "criteria.md").read_text("utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    listed = [name.strip(" `") for row in rows for name in row[1].split(",")]
    assert sorted(listed) == sorted(CRITERIA)
    with_images = {name.strip(" `") for row in rows if "images" in row[3] for name in row[1].split(",")}
    assert with_images == {name for name in CRITERIA if NEEDS[name] in ("images", "loss")}
