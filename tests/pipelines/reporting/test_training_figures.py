"""Figures of trainings: curves stand where the table says, grey is where filters are absent, dark where dropped."""

import numpy as np

from decomp.pipelines.reporting.figure_style import NARROW
from decomp.pipelines.reporting.tables import Table
from decomp.pipelines.reporting.training_figures import filters, training
from decomp.pipelines.reporting.training_tables import TRAINING_COLUMNS

ROWS = [
    ("runs/a", 0, None, 0.1, 1.0, 1.0, ""), ("runs/a", 1, 2.0, 0.5, 1.0, 1.0, ""),
    ("runs/a", 2, 1.5, 0.4, 1.0, 0.7, "drop"), ("runs/a", 3, 1.0, 0.8, 1.0, 1.0, "restore"),
]  # fmt: skip
OTHER = [("runs/b", e, None if e == 0 else 3.0 - e, 0.2 * e, 1.0, 1.0, "") for e in range(4)]


def curves(axes):
    return [line for line in axes.lines if line.get_label()[0] != "_"]


def test_loss_and_accuracy_of_every_run_are_lines():
    figure = training(Table("training", TRAINING_COLUMNS, ROWS + OTHER))
    loss, accuracy = figure.axes
    assert [line.get_label() for line in curves(loss)] == ["a", "b"]
    assert curves(loss)[0].get_xydata().tolist() == [[1, 2.0], [2, 1.5], [3, 1.0]]
    assert curves(accuracy)[1].get_xydata()[:, 0].tolist() == [0, 1, 2, 3]
    assert curves(loss)[0].get_linestyle() != curves(loss)[1].get_linestyle()
    assert len(figure.legends) == 1
    assert not training(Table("training", TRAINING_COLUMNS, ROWS), NARROW).legends


def test_grey_is_the_epoch_without_some_filters_and_lines_are_its_ends():
    loss = training(Table("training", TRAINING_COLUMNS, ROWS + OTHER)).axes[0]
    (band,) = loss.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (1, 2)
    assert [line.get_xdata()[0] for line in loss.lines if line.get_label()[0] == "_"] == [1, 2]
    assert not training(Table("training", TRAINING_COLUMNS, OTHER)).axes[0].patches


def test_the_map_is_the_table_with_the_share_of_each_layer():
    rows = [("a", 0, 0, 1), ("a", 1, 1, 1), ("b.conv", 0, 0, 1), ("b.conv", 1, 1, 1), ("b.conv", 2, 1, 0)]
    figure = filters(Table("filters", ("layer", "filter", "epoch 2", "epoch 5"), rows))
    (axes,) = figure.axes
    (image,) = axes.images
    assert np.array_equal(image.get_array(), [[0, 1], [1, 1], [0, 1], [1, 1], [1, 0]])
    assert [text.get_text() for text in axes.texts] == ["50 %", "33 %", "33 %"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["after\nepoch 2", "after\nepoch 5"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b.conv"]
