"""Figures of tasks: numbers in the heat map, bars that add up, one line per ladder."""

import pytest

from decomp.pipelines.reporting.figure_style import NARROW, WIDE
from decomp.pipelines.reporting.task_figures import accuracy_matrix, for_page, ladder_curves, owner_shares, save

NAMES = ["letters", "digits", "signs"]
ROWS = [{"letters": 0.9}, {"letters": 0.9, "digits": 0.8}, {"letters": 0.9, "digits": None, "signs": 1.0}]
OWNERS = {"conv1": {0: 0.25, 1: 0.5, 2: 0.25}, "conv2": {0: 1.0}}
LADDERS = {
    "letters": [{"released": 0.3, "validation": 0.9}, {"released": 0.6, "validation": 0.7}],
    "digits": [], "signs": [{"released": 0.5, "validation": 0.8}],
}  # fmt: skip


def test_the_heat_map_shows_every_measured_accuracy_and_a_dash_where_there_is_none():
    axes = accuracy_matrix(NAMES, ROWS).axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {
        (0.5, 0.5): "90.0", (1.5, 0.5): "90.0", (2.5, 0.5): "90.0", (1.5, 1.5): "80.0", (2.5, 1.5): "–",
        (2.5, 2.5): "100.0",
    }  # fmt: skip
    assert [tick.get_text() for tick in axes.get_yticklabels()] == NAMES
    assert axes.get_ylim() == (3, 0)  # the first task at the top


def test_a_matrix_without_measured_accuracies_is_drawn():
    assert [text.get_text() for text in accuracy_matrix(["a"], [{"a": None}]).axes[0].texts] == ["–"]


def test_the_bars_of_a_layer_add_up_to_all_of_its_weights():
    axes = owner_shares(OWNERS, NAMES).axes[0]
    ends = [
        max(bar.get_x() + bar.get_width() for bar in axes.patches if round(bar.get_y() + 0.35) == y) for y in (0, 1)
    ]
    assert ends == [1.0, 1.0]
    widths = [round(bar.get_width(), 2) for bar in axes.patches]
    assert widths == [0.5, 0, 0.25, 0, 0, 0, 0.25, 1.0]  # letters, digits, signs, free


def test_every_ladder_with_rungs_is_a_line():
    lines = ladder_curves(LADDERS).axes[0].lines
    assert [line.get_label() for line in lines] == ["letters", "signs"]
    assert list(lines[0].get_xdata()) == [0.3, 0.6] and list(lines[0].get_ydata()) == [0.9, 0.7]
    assert ladder_curves({"a": []}).axes[0].lines[:] == []


@pytest.mark.parametrize("draw, arguments", [(accuracy_matrix, (NAMES, ROWS)), (owner_shares, (OWNERS, NAMES))])
def test_figures_are_files_and_elements_of_both_widths(tmp_path, draw, arguments):
    save(draw, arguments, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    ((wide, slim),) = for_page(draw, arguments, "key", "words")
    assert wide.startswith("<svg") and 'aria-label="words"' in wide and wide != slim and WIDE > NARROW
