"""Figures of the report: labels do not overlap, values stand where the table says."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from decomp.pipelines.reporting import figures
from decomp.pipelines.reporting.collect import NETWORK_COLUMNS, Table

NAMES = [f"features.stage{i // 15}.block{i // 3}.residual_branch.conv{i % 3}" for i in range(60)]


def test_labels_are_short_and_one_for_each_layer():
    for names in (NAMES, [f"a_very_long_name_{'x' * 40}_{i}_{'y' * 40}" for i in range(30)], ["0", "3", "16"]):
        shown = figures.labels(names)
        assert len(set(shown)) == len(names) and max(map(len, shown)) <= 30
    assert figures.labels(["0", "features.3"]) == ["0", "features.3"]


@pytest.mark.parametrize("name", ["layers", "errors", "channels"])
def test_sixty_layers_have_labels_that_do_not_overlap(name):
    tables = {
        "layers": (("layer", "macs_before", "macs_after"), [(n, 10**6 * (i + 1), 10**6) for i, n in enumerate(NAMES)]),
        "errors": (("layer", "step", "fitted", "held_out"), [(n, "prune", 0.01, 0.01) for n in NAMES]),
        "channels": (("layer", "channel", "kept"), [(n, c, c % 2) for n in NAMES for c in range(8)]),
    }
    header, rows = tables[name]
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.DRAWINGS[name](Table(name, header, rows))
        FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == 60
    boxes.sort(key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in zip(boxes, boxes[1:]))
    assert min(box.x0 for box in boxes) > 0


def network_rows(n, top1):
    rows = []
    for i in range(n):
        speedup = 1.5 + 0.5 * i
        for network, factor in (("original", 1.0), ("decomposed", speedup)):
            share = None if top1 is None else top1 - 0.004 * i * (network != "original")
            rows.append(
                (f"runs/family-{i}", network, int(1e8 / factor), 10, share, share, None, None, 10 / factor,
                 9 / factor, 11 / factor, factor, factor)
            )  # fmt: skip
    return Table("accuracy", NETWORK_COLUMNS, rows)


def test_the_names_of_twelve_runs_cover_neither_each_other_nor_a_point():
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.accuracy(network_rows(12, 0.93))
        figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 13  # twelve runs and the original
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    points = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.lines])
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_no_tick_stands_for_more_than_all_images_and_without_labels_nothing_is_drawn():
    figure = figures.accuracy(network_rows(2, 1.0))
    assert max(figure.axes[0].get_yticks()) <= 1 + 1e-9
    assert figures.accuracy(network_rows(2, None)) is None


def test_bars_are_the_costs_of_the_table():
    rows = [("a", 8_000_000, 2_000_000), ("b", 3_000_000, 0)]
    (axes,) = figures.layer_costs(Table("layers", ("layer", "macs_before", "macs_after"), rows)).axes
    assert [bar.get_width() for bar in axes.patches] == [8, 3, 2, 0]
    assert [text.get_text().strip() for text in axes.texts] == ["4.0x", ""]  # nothing is left of b


def test_speed_ups_are_bars_and_quartiles_their_whiskers():
    row = ("run", "decomposed", 25, 5, 0.9, 1.0, 1.0, 0.0, 4.0, 2.0, 5.0, 4.0, 2.5)
    original = ("run", "original", 100, 5, 0.9, 1.0, 1.0, 0.0, 10.0, 9.0, 11.0, 1.0, 1.0)
    (axes,) = figures.latency(Table("latency", NETWORK_COLUMNS, [original, row])).axes
    assert [bar.get_width() for bar in axes.patches] == [4.0, 2.5]
    (whiskers,) = [line.get_segments() for line in axes.collections]
    assert whiskers[0][:, 0].tolist() == [2.0, 5.0]  # 10 ms over 5 ms and over 2 ms
    assert figures.latency(Table("latency", NETWORK_COLUMNS, [original])) is None


def test_errors_below_the_least_one_are_drawn_at_it():
    rows = [("a", "prune", 0.5, 1e-9), ("a", "refine", 0.5, 0.02), ("b", "before", 0.5, 0.9)]
    table = Table("errors", ("layer", "step", "fitted", "held_out"), rows)
    (axes,) = figures.layer_errors(table).axes
    assert sorted(float(dots.get_offsets()[0, 0]) for dots in axes.collections) == [figures.LEAST_ERROR, 0.02]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]  # b has no step of its own
    assert figures.layer_errors(Table("errors", table.header, rows[2:])) is None


def test_ticks_of_errors_are_percentages_also_within_one_power_of_ten():
    rows = [("a", "prune", 0.02, 0.02), ("a", "refine", 0.06, 0.06)]
    figure = figures.layer_errors(Table("errors", ("layer", "step", "fitted", "held_out"), rows))
    FigureCanvasAgg(figure).draw()
    ticks = figure.axes[0].xaxis.get_ticklabels(which="both")
    shown = [text for text in (tick.get_text() for tick in ticks) if text]
    assert {"2 %", "3 %", "6 %"} <= set(shown) and all(text.endswith(" %") for text in shown)


def test_the_chosen_size_is_marked_on_its_curve():
    header = ("layer", "step", "size", "full_size", "error", "output_change", "chosen")
    rows = [("a", "prune", size, 4, 1 / size, None, int(size == 3)) for size in range(1, 5)]
    figure = figures.error_curves(Table("curves", header, rows))
    curve, mark = figure.axes[0].lines
    assert curve.get_xdata().tolist() == [0.25, 0.5, 0.75, 1.0] and mark.get_xydata().tolist() == [[0.75, 1 / 3]]


def test_kept_channels_are_counted_and_drawn_in_their_order():
    rows = [("a", channel, int(channel in (0, 2, 3))) for channel in range(5)]
    (axes,) = figures.kept_channels(Table("channels", ("layer", "channel", "kept"), rows)).axes
    assert axes.images[0].get_array().tolist() == [[1, 0, 1, 1, 0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  3/5"]


def test_epochs_without_a_loss_are_left_out():
    header = ("epoch", "loss", "validation_loss", "validation_accuracy")
    figure = figures.finetuning(Table("finetuning", header, [(0.0, None, 2.0, 0.5), (1.0, 1.0, 1.5, 0.75)]))
    loss, validation = figure.axes[0].lines
    assert loss.get_xydata().tolist() == [[1.0, 1.0]] and validation.get_xydata().tolist() == [[0.0, 2.0], [1.0, 1.5]]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.5, 0.75]


def test_a_figure_with_nothing_to_draw_writes_no_file(tmp_path):
    assert not figures.draw(network_rows(2, None), tmp_path / "a.png") and not list(tmp_path.iterdir())
    assert figures.draw(network_rows(2, 0.9), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
