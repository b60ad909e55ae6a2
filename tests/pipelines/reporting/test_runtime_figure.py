"""Figure of measured time in each runtime: bars of the medians, whiskers of the quartiles, those that compare."""

import pytest

from decomp.pipelines.reporting.collect import RUNTIME_COLUMNS
from decomp.pipelines.reporting.figure_style import NARROW, TIP
from decomp.pipelines.reporting.runtime_figure import runtimes
from decomp.pipelines.reporting.tables import Table

SHARED = {"version": "1", "device": "CPU", "threads": 2, "batch_size": 1, "precision": "float32", "rounds": 30}


def table(*rows):
    """Rows of (runtime, layout, network, median or None, shown); quartiles are 0.5 ms to either side."""
    made = []
    for runtime, layout, network, time, shown in rows:
        times = (
            {} if time is None else {"latency_ms": time, "latency_low_ms": time - 0.5, "latency_high_ms": time + 0.5}
        )
        row = {"runtime": runtime, "layout": layout, "network": network, "shown": shown, "speedup": 4.0, **times}
        made.append(tuple({**SHARED, **row}.get(name) for name in RUNTIME_COLUMNS))
    return Table("runtimes", RUNTIME_COLUMNS, made)


def eager_and_onnx(shown=1, last=1.0):
    return table(
        ("eager", "contiguous", "original", 8.0, 1), ("eager", "contiguous", "decomposed", 2.0, 1),
        ("onnxruntime", "contiguous", "original", 4.0, shown), ("onnxruntime", "contiguous", "decomposed", last, shown),
    )  # fmt: skip


@pytest.mark.parametrize("width", [7.6, NARROW])
def test_each_network_has_a_bar_in_each_runtime_with_the_quartiles_as_whiskers(width):
    (axes,) = runtimes(eager_and_onnx(), width).axes
    assert [bar.get_width() for bar in axes.patches] == [8.0, 2.0, 4.0, 1.0]
    assert [c.get_segments()[0][:, 0].tolist() for c in axes.collections] == [
        [7.5, 8.5], [1.5, 2.5], [3.5, 4.5], [0.5, 1.5],
    ]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == ["8 ms", "2 ms, 4.00x", "4 ms", "1 ms, 4.00x"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eager", "onnxruntime"]
    assert axes.patches[1].get_gid() == f"{TIP}decomposed in eager: 2 ms (1.5 to 2.5), 4.00x"
    centres = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert centres == sorted(centres, reverse=True) and -0.5 < centres[1] < 0 and -1.5 < centres[3] < -1
    assert axes.get_xlabel() == "milliseconds for a batch of 1"


def test_a_single_runtime_and_times_of_other_networks_are_no_figure():
    assert runtimes(eager_and_onnx(shown=0)) is None


def test_two_layouts_of_one_runtime_are_two_groups():
    figure = runtimes(
        table(("eager", "contiguous", "original", 8.0, 1), ("eager", "channels-last", "original", 6.0, 1))
    )
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["eager", "eager,\nchannels last"]


def test_a_network_that_a_runtime_does_not_take_has_words_in_place_of_a_bar():
    (axes,) = runtimes(eager_and_onnx(last=None)).axes
    assert [bar.get_width() for bar in axes.patches] == [8.0, 2.0, 4.0]
    assert axes.texts[-1].get_text() == "decomposed: not measured"


def test_no_whisker_or_label_lies_outside():
    figure = runtimes(eager_and_onnx())
    (axes,) = figure.axes
    figure.canvas.draw()
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in axes.texts)
