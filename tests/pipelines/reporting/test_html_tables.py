"""Tables of the page: every number can be sorted by, texts are escaped, intervals stand beside their shares."""

from html.parser import HTMLParser

from decomp.pipelines.measure.intervals import wilson
from decomp.pipelines.reporting.collect import NETWORK_COLUMNS
from decomp.pipelines.reporting.html_tables import (
    Cell,
    html_cells,
    layers_table,
    networks_table,
    outputs_table,
    text_rows,
)  # fmt: skip
from decomp.pipelines.reporting.tables import Table

ORIGINAL = ("one", "original", 2_500_000, 34_000, 0.9, 0.99, 1.0, 0.0, 3.0, 2.0, 4.0, 1.0, 1.0, None, 200)
SMALL = ("one", "decomposed", 1_250_000, 17_000, 0.85, 0.98, 0.95, 0.1, 2.5, 2.25, 3.0, 2.0, 1.2, None, 200)


class Cells(HTMLParser):
    """Rows of a table as lists of (text, data-sort, data-label)."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tables = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "table":
            self.tables.append(given.get("class", ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(["", given.get("data-sort"), given.get("data-label")])

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1][0] += data


def columns(text):
    head, *rows = Cells(text).rows
    names = [cell[0].replace("\u2011", "-") for cell in head]
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def test_networks_are_given_with_intervals_and_sort_by_the_numbers_themselves():
    found = columns(networks_table(Table("accuracy", NETWORK_COLUMNS, [ORIGINAL, SMALL])))
    low, high = wilson(170, 200)
    assert found["top-1"][1] == [f"85.0 % ({100 * low:.1f}–{100 * high:.1f})", "0.85", "top-1"]
    assert found["time of a batch"][1][:2] == ["2.50 ms (2.25–3.00)", "2.5"]
    assert found["measured speed-up"][1][:2] == ["1.20x", "1.2"] and found["counted speed-up"][1][:2] == [
        "2.00x",
        "2.0",
    ]
    assert found["MACs"][0][:2] == ["2.50 M", "2500000"] and found["parameters"][0][0] == "0.034 M"
    assert found["same top class"][0][0] == "100.0 %"  # with itself: no interval
    assert list(found)[:3] == ["network", "top-1", "measured speed-up"]


def test_columns_without_a_value_are_left_out_and_without_labels_the_likeness_comes_first():
    rows = [(*row[:4], None, None, *row[6:]) for row in (ORIGINAL, SMALL)]
    found = columns(networks_table(Table("accuracy", NETWORK_COLUMNS, rows)))
    assert list(found)[1] == "same top class" and not {"top-1", "top-5", "change of the outputs"} & set(found)
    rows = [
        (*row[:4], None, None, None, None, *row[8:13], value, 0) for row, value in ((ORIGINAL, 0.0), (SMALL, 0.031))
    ]
    found = columns(networks_table(Table("accuracy", NETWORK_COLUMNS, rows)))
    assert [cell[0] for cell in found["change of the outputs"]] == ["0.0 %", "3.1 %"] and "same top class" not in found


def test_several_runs_are_named_and_numbered():
    rows = [ORIGINAL, ("two", *ORIGINAL[1:])]
    found = columns(networks_table(Table("accuracy", NETWORK_COLUMNS, rows)))
    assert [cell[0] for cell in found["network"]] == ["1 one: original", "2 two: original"]


def test_layers_have_their_share_of_the_result_and_the_reasons():
    header = (
        "layer", "kind", "becomes", "macs_before", "macs_after", "params_before", "params_after", "error", "left_alone"
    )  # fmt: skip
    rows = [
        ("a", "conv", "spatial rank 2", 400_000, 100_000, 90, 40, 0.02, None),
        ("b", "linear", "unchanged", 300_000, 300_000, 50, 50, None, "reads <the> image"),
    ]  # fmt: skip
    text = layers_table(Table("layers", header, rows))
    found = columns(text)
    assert found["MACs before → after"][0][:2] == ["400 → 100 k", "400000"]
    assert [cell[0] for cell in found["share"]] == ["25.0 %", "75.0 %"] and found["ratio"][0][:2] == ["4.00x", "4.0"]
    assert [cell[0] for cell in found["error"]] == ["2.0 %", "–"] and found["error"][1][1] is None
    assert found["not applied"][1][0] == "reads <the> image" and "&lt;the&gt;" in text
    assert "not applied" not in columns(layers_table(Table("layers", header, rows[:1])))


def test_each_output_has_a_line():
    header = ("network", "output", "kind", "difference", "divergence_nats", "agreement")
    rows = [("decomposed", "boxes", "values", 0.021, None, None), ("decomposed", "scores", "scores", 0.3, 0.05, 0.9)]
    found = columns(outputs_table(Table("outputs", header, rows)))
    assert [cell[0] for cell in found["output"]] == ["boxes", "scores"]
    assert [cell[0] for cell in found["same top class"]] == ["–", "90.0 %"]
    assert found["change, share of variance"][0][:2] == ["2.10 %", "0.021"]
    values = columns(outputs_table(Table("outputs", header, rows[:1])))
    assert list(values) == ["output", "kind", "change, share of variance"]  # nothing is known of classes


def test_a_long_path_may_be_broken_between_its_parts_only():
    assert "features.<wbr>0.<wbr>branch_<wbr>a</th>" in text_rows("t", ["a", "b"], [["features.0.branch_a", "x.y"]])


def test_texts_are_escaped_and_a_table_of_texts_keeps_its_order():
    text = text_rows("Options", ["option", "value"], [["<a>", "b & c"]])
    assert "&lt;a&gt;" in text and "b &amp; c" in text and Cells(text).tables == [""]
    assert Cells(html_cells("t", ["a"], [[Cell("x", 1.5)]], reflow=True)).tables == ["sortable reflow"]
