"""Figures as files and as elements of a page: parts of a readable height, nothing where there is nothing to draw."""

import re

import pytest

from decomp.pipelines.reporting import figures
from decomp.pipelines.reporting.collect import NETWORK_COLUMNS
from decomp.pipelines.reporting.tables import Table

ROW = ("run", "original", 10**8, 10, 0.9, 1.0, 1.0, 0.0, 10.0, 9.0, 11.0, 1.0, 1.0, None, 100)


def layers(n):
    rows = [(f"layer{i}", 10**6 * (i + 1), 10**5) for i in range(n)]
    return Table("layers", ("layer", "macs_before", "macs_after"), rows)


def test_a_figure_with_nothing_to_draw_writes_no_file(tmp_path):
    unknown = Table("accuracy", NETWORK_COLUMNS, [(*ROW[:4], None, None, None, *ROW[7:])])
    assert not figures.draw(unknown, tmp_path / "a.png") and not list(tmp_path.iterdir())
    assert figures.draw_for_page(unknown, "a", "words") == []
    assert figures.draw(Table("accuracy", NETWORK_COLUMNS, [ROW]), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("n, sizes", [(1, [1]), (14, [14]), (15, [8, 7]), (60, [10] * 6)])
def test_layers_are_shared_out_to_parts_of_nearly_the_same_height(n, sizes):
    names = [f"layer{i}" for i in range(n)]
    shown = [names[part] for part in figures.parts(layers(n))]
    assert [len(part) for part in shown] == sizes and sum(shown, []) == names


def test_the_panels_of_several_runs_are_parts_of_a_figure():
    table = Table("accuracy", NETWORK_COLUMNS, [ROW, ("other", *ROW[1:])])
    assert list(figures.parts(table)) == [slice(0, 1), slice(1, 2)]
    assert list(figures.parts(Table("accuracy", NETWORK_COLUMNS, [ROW]))) == [None]


def test_panels_are_shared_out_in_whole_lines():
    header = ("layer", "step", "size", "full_size", "error", "output_change", "chosen")
    table = Table("curves", header, [(f"layer{i}", "prune", 1, 1, 0.5, None, 1) for i in range(22)])
    assert [part.stop - part.start for part in figures.parts(table)] == [12, 12]


def test_each_part_is_drawn_for_a_wide_and_for_a_narrow_page():
    drawn = figures.draw_for_page(layers(15), "key", "words")
    assert len(drawn) == 2
    boxes = [float(re.search(r'viewBox="0 0 ([0-9.]+)', picture)[1]) for pair in drawn for picture in pair]
    assert boxes == pytest.approx([72 * 7.6, 72 * 3.4] * 2, rel=1e-3)
    assert "layer7" in drawn[0][0] and "layer8" not in drawn[0][1] and "layer8" in drawn[1][1]
