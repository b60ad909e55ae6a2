"""Benchmark of networks in 8 bits: what its table and its verdict say of given rows."""

import argparse

import pytest

from benchmarks import int8
from benchmarks.common import put_section

ROWS = [
    {"network": "zoo:a", "speedup": 1, "counted": 1.0, "float": 0.95, "int8": 0.948, "error": 0.001},
    {"network": "zoo:a", "speedup": 2, "counted": 2.01, "float": 0.94, "int8": 0.937, "error": 0.001},
    {"network": "zoo:a", "speedup": 4, "counted": 4.0, "float": 0.93, "int8": 0.923, "error": 0.002},
    {"network": "zoo:b", "speedup": 2, "counted": 2.0, "float": 0.9, "int8": 0.8, "error": 0.002},
]


def test_what_8_bits_cost_is_compared_with_what_they_cost_the_original():
    words = int8.verdict(ROWS)  # 0.1 and 0.5 points more than the original's 0.2; of the other network it is not known
    assert "+0.30 points in the median and +0.50 at most (zoo:a at 4x)" in words
    assert int8.verdict(ROWS[:1]) == ""


def test_a_time_is_relative_to_the_original_in_float():
    found = int8.faster([4.0, 4.0, 8.0], [2.0, 1.0, 2.0])
    assert found == {"ms": 2.0, "faster": 2.0, "low": 2.0, "high": 4.0}


def test_the_table_has_points_with_their_error_and_times_where_they_are_measured():
    time = {"ms": 1.0, "faster": 1.5, "low": 1.4, "high": 1.6}
    text = int8.table(ROWS[:2], {"zoo:a": {"2 int8": time}})
    first, second = text.splitlines()[2:]
    assert first == "| zoo:a | 1.00x | 95.00% | 94.80% | +0.20 ± 0.10 |  |  |"
    assert second == "| zoo:a, decomposed | 2.01x | 94.00% | 93.70% | +0.30 ± 0.10 |  | 1.50x (1.40–1.60) |"


def test_the_section_of_a_guide_is_replaced_and_the_others_stay(tmp_path):
    page = tmp_path / "guide.md"
    page.write_text("# Guide\n\n## Before\n\nfirst\n\n## In 8 bits\n\nold words\n\n| old |\n\n## Behind\n\nlast\n")
    for _ in range(2):
        put_section(page, int8.SECTION, int8.section(ROWS[:2], {}, 1000))
    text = page.read_text()
    assert text.startswith("# Guide\n\n## Before\n\nfirst\n\n## In 8 bits\n\n`decomp export")
    assert text.endswith("\n\n## Behind\n\nlast\n") and "old" not in text and text.count("goes on top") == 1
    assert "| zoo:a, decomposed | 2.01x | 94.00% | 93.70% | +0.30 ± 0.10 |\n" in text and "1,000 images" in text
    put_section(page, "Behind", "new")  # the last one
    assert page.read_text().endswith("\n## Behind\n\nnew\n")
    with pytest.raises(SystemExit, match="must have the heading 'Absent'"):
        put_section(page, "Absent", "text")


def test_a_busy_machine_is_said():
    assert "was busy while these were timed: zoo:a." in int8.page(ROWS, {"zoo:a": {"waited": 0.5}}, 1000)
    assert "was busy" not in int8.page(ROWS, {"zoo:a": {"waited": 0.0}}, 1000)


def test_files_of_original_and_decomposed_network_are_those_that_export_writes(tmp_path):
    options = argparse.Namespace(out=tmp_path, networks="zoo:a", speedups="2,4")
    benchmark = int8.Benchmark(options)
    assert benchmark.asked() == [("zoo:a", 1), ("zoo:a", 2), ("zoo:a", 4)]
    assert benchmark.files("zoo:a", 1)["int8"] == tmp_path / "zoo-a-frozen" / "export" / "original.int8.onnx"
    assert benchmark.files("zoo:a", 4)["float"] == tmp_path / "zoo-a-4x" / "export" / "decomposed.onnx"
