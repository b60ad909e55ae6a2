"""Table of the time spent: phases with their sums, and parts that are worth a line."""

from decomp.pipelines.console.time_table import time_lines, time_rows


def row(phase, part, seconds, processor):
    return {"phase": phase, "part": part, "seconds": seconds, "processor_seconds": processor}


ROWS = [
    row("survey", "forward", 60.0, 110.0), row("survey", "", 1.0, 1.5), row("survey", "gradients", 20.0, 30.0),
    row("survey", "prune", 0.5, 0.5), row("plan", "", 0.25, 0.25), row("fit", "refinement", 18.25, 20.0),
]  # fmt: skip


def test_each_phase_has_its_sum_and_its_parts_and_small_parts_are_one_line():
    assert time_rows(ROWS) == [
        ("time spent", "seconds", "processor", "share"),
        ("survey", "81.5", "142.0", "82 %"),
        ("  forward", "60.0", "110.0", "60 %"),
        ("  gradients", "20.0", "30.0", "20 %"),
        ("  rest", "1.5", "2.0", "2 %"),
        ("plan", "0.2", "0.2", "0 %"),
        ("fit", "18.2", "20.0", "18 %"),
        ("  refinement", "18.2", "20.0", "18 %"),
        ("all", "100.0", "162.2", "100 %"),
    ]


def test_a_rest_too_small_for_a_line_has_none_and_no_time_at_all_is_no_error():
    rows = [row("a", "x", 99.5, 1.0), row("a", "", 0.5, 0.1)]
    assert [cells[0] for cells in time_rows(rows)] == ["time spent", "a", "  x", "all"]
    assert time_rows([row("", "", 0.0, 0.0)])[1:] == [("start", "0.0", "0.0", "0 %"), ("all", "0.0", "0.0", "0 %")]


def test_lines_are_aligned():
    lines = time_lines(ROWS)
    assert lines[1] == "survey           81.5      142.0   82 %" and lines[0].startswith("time spent")
