"""HTML page: texts are escaped, figures link to their numbers, options are told apart, nothing is loaded."""

from decomp.pipelines.reporting import figures
from decomp.pipelines.reporting.collect import NETWORK_COLUMNS
from decomp.pipelines.reporting.html_page import (
    CAPTIONS,
    TITLES,
    Section,
    alternative,
    commands_list,
    differences_table,
    figure,
    option_text,
    options_table,
    paragraph,
    render_page,
    rich,
    versions_line,
)  # fmt: skip
from decomp.pipelines.reporting.tables import Table


def test_names_are_escaped_on_the_page():
    sections = [Section("<u>", [paragraph("a & b"), commands_list([("<i>", "cmd <x>")])])]
    text = render_page("<b>run</b>", "<s>", "<em>", [], sections)
    assert not any(tag in text for tag in ("<b>", "<s>", "<em>", "<i>", "<u>", "<x>"))
    assert "a &amp; b" in text and "cmd &lt;x&gt;" in text
    assert rich("try `a <b>` now") == "try <code>a &lt;b&gt;</code> now"


def test_every_figure_has_a_title_and_a_caption():
    assert set(TITLES) == set(CAPTIONS) == {*figures.DRAWINGS, "outputs"}


def test_the_parts_of_a_figure_share_one_caption_with_a_link_to_the_numbers():
    parts = figure("layers", [("<svg>1</svg>", "<svg>2</svg>"), ("<svg>3</svg>", "<svg>4</svg>")], "../numbers/l.csv")
    text = "".join(parts)
    assert text.count("<figure>") == text.count("</figure>") == 2 and text.count("<figcaption>") == 1
    assert 'href="../numbers/l.csv"' in parts[1] and '<div class="slim"><svg>4</svg></div>' in parts[1]
    assert figure("layers", [], "x") == []


def test_a_section_without_content_is_left_out_and_the_page_is_complete():
    text = render_page(
        "run", "verdict", "measured", ["<p>first</p>"], [Section("empty"), Section("full", ["<p>x</p>"])]
    )
    assert "empty" not in text and "<h2>full</h2>" in text and "<title>run: measured</title>" in text
    assert text.index("<h1>verdict</h1>") < text.index("measured</p>") < text.index("<p>first</p>") < text.index("full")
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "max-width: 760px" in text
    assert "<nav" not in text
    many = render_page("run", "v", "", [], [Section(f"part {i}", ["<p>x</p>"]) for i in range(6)])
    assert all(f'<a href="#s{i}">part {i}</a>' in many and f'<section id="s{i}">' in many for i in range(6))
    assert text.count("<style>") == text.count("</style>") == text.count("<script>") == text.count("</script>") == 1


def test_the_text_alternative_of_a_figure_has_its_values():
    row = ("one", "original", 2_500_000, 34_000, 0.9, 1.0, 1.0, 0.0, 3.0, 2.0, 4.0, 1.0, 1.0, None, 100)
    words = alternative(Table("accuracy", NETWORK_COLUMNS, [row]))
    assert "original 3 ms, 2.5 M multiply-accumulates, top-1 90.00 %" in words and words.startswith(TITLES["accuracy"])
    table = Table("finetuning", ("epoch", "loss"), [(0.0, None), (1.0, 0.5)])
    assert alternative(table) == "Fine-tuning: epoch 1; loss 0.5"
    header = ("runtime", "layout", "network", "latency_ms", "shown")
    times = [("eager", "contiguous", "original", 4.0, 1), ("eager", "contiguous", "pruned", None, 1)]
    table = Table("runtimes", header, [*times, ("eager", "contiguous", "original", 9.0, 0)])
    assert alternative(table) == "Time in each runtime: original in eager, contiguous 4 ms"
    assert "2 rows" in alternative(Table("layers", ("layer",), [("a",), ("b",)]))


def test_options_are_a_table_for_each_stage_without_those_that_were_not_given():
    config = {
        "stages": {
            "freeze": {"asked": {"model": "zoo:x", "n_images": 1500, "weights": None, "leaves": []}},
            "decompose": {"asked": {"speedup": 2.5, "steps": ["prune", "spatial"], "keep_first": False}},
            "finetune": {"asked": {}},
        },
        "versions": {"freeze": {"torch": "2.0"}, "decompose": {"torch": "2.1", "numpy": "2"}},
    }
    text = options_table(config)
    assert text.count("<table") == 2 and "weights" not in text and "leaves" not in text
    for name, value in (("n images", "1500"), ("speedup", "2.5"), ("steps", "prune, spatial"), ("keep first", "no")):
        assert f">{name}</th><td>{value}</td>" in text
    assert versions_line(config) == "torch 2.1, numpy 2" and option_text(True) == "yes"


def test_only_options_that_differ_are_listed_and_a_stage_that_a_run_lacks_is_one_column():
    def stages(**options):
        return {"decompose": {"asked": {"selector": "best", **options}}}

    text = differences_table({"one": stages(speedup=2.0), "two": stages(speedup=4.0), "three": stages()})
    assert "decompose: speedup" in text and "selector" not in text
    assert [f">{value}</td>" in text for value in ("2", "4", "not given")] == [True] * 3
    tuned = {**stages(), "finetune": {"asked": {"epochs": 3, "seed": 0}}}
    text = differences_table({"one": stages(), "two": tuned})
    assert ">not done</td>" in text and ">done</td>" in text and "epochs" not in text
    assert differences_table({"one": stages(), "two": stages()}) == "<p>All options are the same.</p>"
