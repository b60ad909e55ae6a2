"""Figure of sensitivity: a panel for each layer that begins at all channels."""

from decomp.pipelines.reporting.figure_style import NARROW, TIP
from decomp.pipelines.reporting.sensitivity_figure import sensitivity_curves
from decomp.pipelines.reporting.tables import Table

HEADER = ("layer", "ratio", "kept", "channels", "agreement", "divergence_nats", "output_difference")


def table(n_layers=2, scores=True):
    rows = [
        (f"conv{i}", ratio, round(8 * (1 - ratio)), 8, 1 - ratio / (i + 1) if scores else None, None, ratio * i)
        for i in range(n_layers)
        for ratio in (0.25, 0.75)
    ]
    return Table("sensitivity", HEADER, rows)


def test_a_curve_begins_at_the_original_and_has_a_point_for_each_ratio():
    figure = sensitivity_curves(table())
    (first,) = figure.axes[0].lines
    assert first.get_xdata().tolist() == [0, 0.25, 0.75] and first.get_ydata().tolist() == [1, 0.75, 0.25]
    assert (
        first.get_gid().startswith(f"{TIP}conv0, all channels") and "conv0, 6 of 8 channels: 75.0%" in first.get_gid()
    )


def test_outputs_that_are_no_scores_begin_without_a_change():
    figure = sensitivity_curves(table(scores=False))
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0, 0.25, 0.75]
    assert figure._supylabel.get_text() == "change of the outputs"


def test_parts_have_their_layers_and_unused_panels_are_hidden():
    figure = sensitivity_curves(table(5), width=NARROW, part=slice(1, 4))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["conv1", "conv2", "conv3"] and len(figure.axes) == 4
