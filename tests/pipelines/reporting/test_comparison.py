"""Networks of several runs in a terminal: the measure that all have, and the best in words."""

from decomp.pipelines.reporting.collect import NETWORK_COLUMNS
from decomp.pipelines.reporting.comparison import comparison_lines
from decomp.pipelines.reporting.tables import Table

ROWS = [
    ("a", "original", 100, 10, 0.9, 0.99, 1.0, 0.0, 3.0, 2.0, 4.0, 1.0, 1.0, 0.0, 200),
    ("a", "decomposed", 25, 5, 0.85, 0.98, 0.95, 0.1, 2.5, 2.25, 3.0, 4.0, 1.25, 0.05, 200),
    ("b", "fine-tuned", 50, 5, 0.88, 0.98, 0.97, 0.1, 2.0, 2.25, 3.0, 2.0, 1.5, 0.125, 200),
]


def without(*names):
    places = [NETWORK_COLUMNS.index(name) for name in names]
    rows = [tuple(None if place in places else value for place, value in enumerate(row)) for row in ROWS]
    return comparison_lines(Table("networks", NETWORK_COLUMNS, rows))


def test_networks_are_listed_with_accuracy_and_both_speedups_and_the_best_named():
    header, *rows, best = without()
    assert header.split() == ["run", "network", "top-1", "measured", "counted"]
    assert [row.split()[:4] for row in rows] == [
        ["a", "original", "90.0", "%"], ["a", "decomposed", "85.0", "%"], ["b", "fine-tuned", "88.0", "%"],
    ]  # fmt: skip
    assert [row.split()[-2:] for row in rows] == [["1.00x", "1.00x"], ["1.25x", "4.00x"], ["1.50x", "2.00x"]]
    assert best.startswith("Most accurate and fastest: b, fine-tuned: top-1 88")


def test_without_labels_the_closeness_to_the_original_is_listed():
    header, *rows, best = without("top1")
    assert "same top class" in header and "97.0 %" in rows[2] and "same top class 97" in best
    header, *rows = without("top1", "agreement")
    assert "outputs differ by" in header and "12 %" in rows[2] and len(rows) == len(ROWS)
