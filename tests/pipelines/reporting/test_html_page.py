"""HTML page of a report: texts are escaped, options are told apart."""

from decomp.pipelines.reporting import figures
from decomp.pipelines.reporting.collect import NETWORK_COLUMNS, Table
from decomp.pipelines.reporting.html_page import CAPTIONS, TITLES, differences, render_page, run_lines


def test_names_are_escaped_on_the_page():
    text = render_page("<b>run</b>", ["a & b"], None, [], [("<i>", "cmd <x>")], None, "report")
    assert "<b>" not in text and "<i>" not in text and "a &amp; b" in text and "cmd &lt;x&gt;" in text


def test_every_figure_has_a_title_and_a_caption():
    assert set(figures.DRAWINGS) == set(TITLES) == set(CAPTIONS)


def test_a_figure_is_embedded_and_links_to_its_numbers():
    table = Table("layers", ("layer",), [("a",)])
    text = render_page("t", [], None, [(table, b"png")], [], None, "../numbers")
    assert 'src="data:image/png;base64,cG5n"' in text and 'href="../numbers/layers.csv"' in text


def test_missing_values_of_networks_are_dashes_and_several_runs_are_named():
    row = ("one", "original", 2_500_000, 34_000, None, None, 0.5, 0.1, 3.0, 2.0, 4.0, 1.0, 1.0)
    alone = render_page("t", [], Table("accuracy", NETWORK_COLUMNS, [row], ["<note>"]), [], [], None, "n")
    assert ">-</td>" in alone and ">50.00%</td>" in alone and ">2.50 M</td>" in alone and ">0.034 M</td>" in alone
    assert ">original</td>" in alone and "&lt;note&gt;" in alone
    both = render_page("t", [], Table("accuracy", NETWORK_COLUMNS, [row, ("two", *row[1:])]), [], [], None, "n")
    assert ">one: original</td>" in both and ">two: original</td>" in both


def test_the_lines_of_a_run_give_options_and_versions():
    config = {
        "stages": {
            "freeze": {"asked": {"model": "zoo:x", "data": "digits"}, "facts": {"n_images": 1500, "n_points": 10}},
            "decompose": {"asked": {"speedup": 2.5, "steps": ["prune", "spatial"], "skip": [], "keep_first": False}},
        },
        "versions": {"freeze": {"torch": "2.0"}, "decompose": {"torch": "2.1"}},
    }
    headline, frozen, decomposed, versions = run_lines(config, None)
    assert headline == "zoo:x, not decomposed yet" and versions == "Versions: torch 2.1."
    assert frozen == "Frozen from 1,500 images of digits, 10 positions for each image and grid."
    assert decomposed == "Decomposed with speedup 2.5; steps prune, spatial; keep first no."


def test_only_options_that_differ_are_listed():
    def stages(**options):
        return {"decompose": {"asked": {"selector": "best", **options}}}

    lines = differences({"one": stages(speedup=2.0), "two": stages(speedup=4.0), "three": stages()})
    assert lines == [
        "one: decompose speedup 2", "two: decompose speedup 4", "three: none of the options in which the runs differ",
    ]  # fmt: skip
    assert differences({"one": stages(), "two": stages()}) == ["All options are the same."]
