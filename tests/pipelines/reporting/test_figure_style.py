"""Style of the figures: labels of layers, axes of shares, texts shown on hover."""

from matplotlib.figure import Figure

from decomp.pipelines.reporting import figure_style

NAMES = [f"features.stage{i // 15}.block{i // 3}.residual_branch.conv{i % 3}" for i in range(60)]


def test_labels_are_short_and_one_for_each_layer():
    for names in (NAMES, [f"a_very_long_name_{'x' * 40}_{i}_{'y' * 40}" for i in range(30)], ["0", "3", "16"]):
        shown = figure_style.labels(names)
        assert len(set(shown)) == len(names) and max(map(len, shown)) <= 30
    assert figure_style.labels(["0", "features.3"]) == ["0", "features.3"]


def test_ticks_of_shares_have_as_many_digits_as_they_need_and_stop_at_all_images():
    assert [figure_style.percent_tick(x) for x in (1, 0.975, 0.9995, 0.07)] == ["100 %", "97.5 %", "99.95 %", "7 %"]
    axes = Figure().add_subplot()
    figure_style.share_axis(axes, [0.97, 1.0])
    assert max(axes.get_yticks()) == 1 and axes.get_ylim()[1] > 1


def test_a_figure_is_drawn_in_text_of_a_readable_size():
    sizes = [value for key, value in figure_style.STYLE.items() if key.endswith("size")]
    assert min(sizes) == figure_style.SMALL == 9  # points: 12 pixels


def test_a_path_is_named_by_its_last_part():
    assert figure_style.last_part("runs/a/") == "a" and figure_style.last_part("C:\\runs\\b") == "b"
