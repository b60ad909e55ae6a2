"""Figures of layers: labels do not overlap, values stand where the table says, parts share one scale."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from decomp.pipelines.reporting import layer_figures
from decomp.pipelines.reporting.figure_style import STYLE, TIP
from decomp.pipelines.reporting.figures import DRAWINGS
from decomp.pipelines.reporting.tables import Table

NAMES = [f"features.stage{i // 15}.block{i // 3}.residual_branch.conv{i % 3}" for i in range(60)]


@pytest.mark.parametrize("name", ["layers", "errors", "channels"])
def test_sixty_layers_have_labels_that_do_not_overlap(name):
    tables = {
        "layers": (("layer", "macs_before", "macs_after"), [(n, 10**6 * (i + 1), 10**6) for i, n in enumerate(NAMES)]),
        "errors": (("layer", "step", "fitted", "held_out"), [(n, "prune", 0.01, 0.01) for n in NAMES]),
        "channels": (("layer", "channel", "kept"), [(n, c, c % 2) for n in NAMES for c in range(8)]),
    }
    header, rows = tables[name]
    with matplotlib.rc_context(STYLE):
        figure = DRAWINGS[name](Table(name, header, rows))
        FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == 60
    boxes.sort(key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in zip(boxes, boxes[1:]))
    assert min(box.x0 for box in boxes) > 0


def test_bars_are_the_costs_of_the_table():
    rows = [("a", 8_000_000, 2_000_000), ("b", 3_000_000, 0)]
    (axes,) = layer_figures.layer_costs(Table("layers", ("layer", "macs_before", "macs_after"), rows)).axes
    assert [bar.get_width() for bar in axes.patches] == [8, 3, 2, 0]
    assert [text.get_text().strip() for text in axes.texts] == ["4.0x", ""]  # nothing is left of b
    assert axes.patches[0].get_gid() == f"{TIP}a: 8 M → 2 M multiply-accumulates (4.00x)"


def test_errors_below_the_least_one_are_drawn_at_it():
    rows = [("a", "prune", 0.5, 1e-9), ("a", "refine", 0.5, 0.02), ("b", "before", 0.5, 0.9)]
    table = Table("errors", ("layer", "step", "fitted", "held_out"), rows)
    (axes,) = layer_figures.layer_errors(table).axes
    assert [dots.get_gid() for dots in axes.collections] == [
        f"{TIP}a, channel pruning: 0.000 %, held-out images", f"{TIP}a, refinement: 2.000 %, held-out images",
    ]  # fmt: skip
    assert sorted(float(dots.get_offsets()[0, 0]) for dots in axes.collections) == [layer_figures.LEAST_ERROR, 0.02]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]  # b has no step of its own
    assert layer_figures.layer_errors(Table("errors", table.header, rows[2:])) is None


def test_ticks_of_errors_are_percentages_also_within_one_power_of_ten():
    rows = [("a", "prune", 0.02, 0.02), ("a", "refine", 0.06, 0.06)]
    figure = layer_figures.layer_errors(Table("errors", ("layer", "step", "fitted", "held_out"), rows))
    FigureCanvasAgg(figure).draw()
    ticks = figure.axes[0].xaxis.get_ticklabels(which="both")
    shown = [text for text in (tick.get_text() for tick in ticks) if text]
    assert {"2 %", "3 %", "6 %"} <= set(shown) and all(text.endswith(" %") for text in shown)


def test_the_chosen_size_is_marked_on_its_curve():
    header = ("layer", "step", "size", "full_size", "error", "output_change", "chosen")
    rows = [("a", "prune", size, 4, 1 / size, None, int(size == 3)) for size in range(1, 5)]
    figure = layer_figures.error_curves(Table("curves", header, rows))
    curve, mark = figure.axes[0].lines
    assert curve.get_xdata().tolist() == [0.25, 0.5, 0.75, 1.0] and mark.get_xydata().tolist() == [[0.75, 1 / 3]]


def test_kept_channels_are_counted_and_drawn_in_their_order():
    rows = [("a", channel, int(channel in (0, 2, 3))) for channel in range(5)]
    (axes,) = layer_figures.kept_channels(Table("channels", ("layer", "channel", "kept"), rows)).axes
    assert axes.images[0].get_array().tolist() == [[1, 0, 1, 1, 0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  3/5"]


def test_parts_of_a_figure_show_their_layers_on_the_scale_of_all():
    rows = [(n, 10**6 * (i + 1), 10**6) for i, n in enumerate(NAMES)]
    table = Table("layers", ("layer", "macs_before", "macs_after"), rows)
    (whole,), (part,) = (layer_figures.layer_costs(table, part=p).axes for p in (slice(None), slice(0, 20)))
    assert part.get_xlim() == whole.get_xlim()
    assert [bar.get_width() for bar in part.patches[:20]] == [i + 1 for i in range(20)]
    names = [label.get_text() for label in whole.get_yticklabels()]
    assert [label.get_text() for label in part.get_yticklabels()] == names[:20]


def test_the_first_part_has_the_legend_of_all_parts():
    rows = [("a", "prune", 0.5, 0.1), ("b", "spatial", 0.5, 0.2)]
    table = Table("errors", ("layer", "step", "fitted", "held_out"), rows)
    first, second = (layer_figures.layer_errors(table, part=part) for part in (slice(0, 1), slice(1, 2)))
    (legend,) = first.legends
    assert [text.get_text() for text in legend.get_texts()] == ["channel pruning", "spatial decomposition"]
    assert second.legends == [] and second.axes[0].get_xlim() == first.axes[0].get_xlim()


def test_removed_channels_are_transparent():
    rows = [("a", channel, int(channel in (0, 2, 3))) for channel in range(5)]
    (axes,) = layer_figures.kept_channels(Table("channels", ("layer", "channel", "kept"), rows)).axes
    colours = axes.images[0].to_rgba(axes.images[0].get_array())[0]
    assert np.asarray(colours)[:, 3].tolist() == [1, 0, 1, 1, 0]
    assert axes.patches[0].get_gid() == f"{TIP}a: 3 of 5 input channels kept"
