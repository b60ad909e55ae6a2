"""Figures of whole networks: values and intervals stand where the table says, the texts on hover give them."""

import matplotlib
import numpy as np
import pytest

from decomp.pipelines.measure.intervals import wilson
from decomp.pipelines.reporting import network_figures
from decomp.pipelines.reporting.collect import NETWORK_COLUMNS
from decomp.pipelines.reporting.figure_style import BETWEEN, NARROW, STYLE, TIP
from decomp.pipelines.reporting.tables import Table


def network_rows(n, top1, n_images=1000):
    rows = []
    for i in range(n):
        speedup = 1.5 + 0.5 * i
        for network, factor in (("original", 1.0), ("decomposed", speedup)):
            share = None if top1 is None else top1 - 0.004 * i * (network != "original")
            rows.append(
                (f"runs/family-{i}", network, int(1e8 / factor), 10, share, share, None, None, 10 / factor,
                 9 / factor, 11 / factor, factor, factor, None, n_images)
            )  # fmt: skip
    return Table("accuracy", NETWORK_COLUMNS, rows)


def test_the_names_of_twelve_runs_cover_neither_each_other_nor_a_point():
    with matplotlib.rc_context(STYLE):
        figure = network_figures.accuracy(network_rows(12, 0.93))
        figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 12
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
        marks = [line for line in axes.lines if line.get_marker() in ("o", "s", "^")]
        points = np.concatenate([axes.transData.transform(line.get_xydata()) for line in marks])
        assert len(points) == 13  # the original is the same in all
        assert not any(box.contains(*point) for box in boxes for point in points)


def test_no_tick_stands_for_more_than_all_images_and_without_labels_nothing_is_drawn():
    figure = network_figures.accuracy(network_rows(2, 1.0))
    assert all(max(axes.get_yticks()) <= 1 + 1e-9 for axes in figure.axes)
    assert network_figures.accuracy(network_rows(2, None)) is None


def test_speed_ups_are_bars_and_quartiles_their_whiskers():
    row = ("run", "decomposed", 25, 5, 0.9, 1.0, 1.0, 0.0, 4.0, 2.0, 5.0, 4.0, 2.5, None, 100)
    original = ("run", "original", 100, 5, 0.9, 1.0, 1.0, 0.0, 10.0, 9.0, 11.0, 1.0, 1.0, None, 100)
    (axes,) = network_figures.latency(Table("latency", NETWORK_COLUMNS, [original, row])).axes
    assert [bar.get_width() for bar in axes.patches] == [4.0, 2.5]
    (whiskers,) = [line.get_segments() for line in axes.collections]
    assert whiskers[0][:, 0].tolist() == [2.0, 5.0]  # 10 ms over 5 ms and over 2 ms
    assert network_figures.latency(Table("latency", NETWORK_COLUMNS, [original])) is None


def test_epochs_without_a_loss_are_left_out():
    header = ("epoch", "loss", "validation_loss", "validation_accuracy")
    figure = network_figures.finetuning(Table("finetuning", header, [(0.0, None, 2.0, 0.5), (1.0, 1.0, 1.5, 0.75)]))
    loss, validation = figure.axes[0].lines
    assert loss.get_xydata().tolist() == [[1.0, 1.0]] and validation.get_xydata().tolist() == [[0.0, 2.0], [1.0, 1.5]]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.5, 0.75]


@pytest.mark.parametrize("width", [7.6, NARROW])
def test_accuracy_is_drawn_against_time_first_and_then_against_cost_with_its_interval(width):
    figure = network_figures.accuracy(network_rows(1, 0.93), width)
    time, cost = figure.axes
    assert [line.get_xydata().tolist() for line in time.lines if line.get_marker() in "os"] == [
        [[10.0, 0.93]], [[pytest.approx(10 / 1.5), 0.93]],
    ]  # fmt: skip
    assert [line.get_xdata()[0] for line in cost.lines if line.get_marker() in "os"] == [
        100.0,
        pytest.approx(66.666666),
    ]
    vertical = [c.get_segments()[0][:, 1].tolist() for c in cost.collections]
    assert vertical[0] == pytest.approx(list(wilson(930, 1000)))
    assert "measured time" in time.get_xlabel() and "multiply-accumulates" in cost.get_xlabel()
    assert "1.5x" in [text.get_text() for text in time.texts]


def test_times_of_several_runs_are_shares_of_their_own_originals():
    table = network_rows(2, 0.9)
    slow = [(*row[:8], 3 * row[8], 3 * row[9], 3 * row[10], *row[11:]) for row in table.rows[2:]]
    figure = network_figures.accuracy(Table("accuracy", NETWORK_COLUMNS, [*table.rows[:2], *slow]))
    x = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() in "os"]
    assert x == pytest.approx([100.0, 100 / 2.0, 100 / 1.5])  # a busy machine slows both networks of a run


def test_without_the_number_of_images_there_is_no_interval():
    figure = network_figures.accuracy(network_rows(1, 0.5, n_images=0))
    assert all(np.ptp(c.get_segments()[0][:, 1]) == 0 for c in figure.axes[1].collections)


def test_outputs_that_are_no_scores_are_judged_by_their_change():
    rows = [
        (*row[:4], None, None, None, *row[7:13], 0.02 * i, row[14]) for i, row in enumerate(network_rows(1, 0.5).rows)
    ]
    figure = network_figures.accuracy(Table("accuracy", NETWORK_COLUMNS, rows))
    assert [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_marker() in "os"] == [0.0, 0.02]
    assert figure.axes[0].get_ylabel() == "change of the outputs"
    words = network_figures.network_words(dict(zip(NETWORK_COLUMNS, rows[1])), "output_difference", several=False)
    assert words.startswith("decomposed: change of the outputs 2 %; 6.67 ms")


def test_the_panels_of_several_runs_can_be_drawn_one_by_one():
    table = network_rows(2, 0.9)
    first, second = (network_figures.accuracy(table, part=part) for part in (slice(0, 1), slice(1, 2)))
    assert "measured time" in first.axes[0].get_xlabel() and "multiply" in second.axes[0].get_xlabel()
    assert len(first.axes) == len(second.axes) == len(first.legends) == 1 and second.legends == []


def test_each_class_has_a_mark_for_each_network_and_a_text_for_each_mark():
    rows = [("cat", 10, 9, 7), ("dog", 0, 0, 0), ("owl", 4, 2, 3)]
    table = Table("classes", ("class", "images", "correct_original", "correct_decomposed"), rows)
    (axes,) = network_figures.classes(table).axes
    marks = axes.collections
    assert [dots.get_offsets()[:, 0].tolist() for dots in marks] == [[0.9, 0.5], [0.7, 0.75]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "owl"]  # no dog was tested
    tips = marks[1].get_gid().removeprefix(TIP).split(BETWEEN)
    assert len(tips) == 2 and tips[0].startswith("cat, decomposed: 7 of 10, 70 % (95 % interval 40 to 89)")


def test_of_many_classes_those_that_lost_most_are_shown():
    rows = [(str(i), 100, 90, 90 - i % 50) for i in range(100)]
    table = Table("classes", ("class", "images", "correct_original", "correct_decomposed"), rows)
    shown = network_figures.worst_classes(table)
    assert len(shown) == network_figures.MOST_CLASSES and {row["class"] for row in shown[:2]} == {"49", "99"}


def test_the_legend_of_the_training_is_outside_of_the_curves():
    header = ("epoch", "loss", "validation_loss", "validation_accuracy")
    rows = [(0.0, None, 2.0, 0.5), (1.0, 1.0, 1.5, 0.75)]
    with matplotlib.rc_context(STYLE):
        figure = network_figures.finetuning(Table("finetuning", header, rows))
        figure.canvas.draw()
    (legend,) = figure.legends
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)
