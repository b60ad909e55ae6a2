"""The table of layers: before and after, without empty columns; layers that cannot be changed, by reason."""

from dataclasses import replace

import pytest

from decomp.pipelines.console.layer_table import LayerSummary, amounts, excluded_lines, layer_lines, layer_rows

SPLIT = LayerSummary("a.conv", "conv", (10, 16), (24, 32), {"spatial": (8, 24)}, 1_810_000, 380_000, 4608, 990, 0.0612)
WHOLE = LayerSummary("head", "linear", (64, 64), (10, 10), {}, 640, 640, 650, 650)


def test_a_row_tells_sizes_of_what_there_was_and_costs_before_and_after():
    header, split, whole = layer_rows([SPLIT, WHOLE])
    assert header == ("layer", "reads", "rank", "writes", "MACs", "", "parameters", "error")
    assert split == (
        "a.conv", "10 of 16", "spatial 8 of 24", "24 of 32", "1.81 → 0.38 M", "(4.8x)", "4.61 → 0.99 k", "6.1 %",
    )  # fmt: skip
    assert whole == ("head", "64", "", "10", "640", "", "650", "")


def test_columns_without_an_entry_are_left_out():
    assert layer_rows([WHOLE])[0] == ("layer", "reads", "writes", "MACs", "parameters")
    assert layer_rows([replace(SPLIT, ranks={}, error=None)])[0] == (
        "layer",
        "reads",
        "writes",
        "MACs",
        "",
        "parameters",
    )


def test_both_splits_and_a_layer_that_vanishes():
    both = replace(SPLIT, ranks={"spatial": (8, 24), "channel": (4, 32)}, macs_after=0)
    row = layer_rows([both])[1]
    assert row[2] == "spatial 8 of 24, channel 4 of 32" and row[4:6] == ("1.81 → 0 M", "4.61 → 0.99 k")


def test_lines_are_the_rows_in_columns():
    first, second, third = layer_lines([SPLIT, WHOLE])
    assert first.startswith("layer ") and second.startswith("a.conv ") and third.startswith("head ")
    assert first.index("reads") + len("reads") == second.index("10 of 16") + len("10 of 16")


@pytest.mark.parametrize(
    "layer, words",
    [
        (SPLIT, "reads 10 of 16 channels, spatial rank 8 of 24, writes 24 of 32 channels"),
        (WHOLE, "unchanged"),
        (replace(WHOLE, writes=(3, 10)), "writes 3 of 10 channels"),
    ],
)
def test_a_replacement_in_words(layer, words):
    assert layer.becomes == words


@pytest.mark.parametrize(
    "before, after, text",
    [
        (1_810_000, 380_000, "1.81 → 0.38 M"), (999, 12, "999 → 12"), (590_000, 590_000, "590 k"),
        (3.2e9, 8e8, "3.2 → 0.8 G"), (0, 0, "0"),
    ],
)  # fmt: skip
def test_amounts_share_a_unit(before, after, text):
    assert amounts(before, after) == text


def test_layers_that_cannot_be_changed_are_grouped_by_reason():
    grouped = dict.fromkeys(("spatial", "channel", "prune"), "grouped")
    left_alone = {f"d{i}": grouped for i in range(6)}
    left_alone |= {"head": {"spatial": "no kernel", "channel": "linear", "prune": "too few rows"}}
    left_alone |= {"stem": {"prune": "reads the image itself"}}
    assert excluded_lines(left_alone, 3) == [
        "cannot be changed: d0, d1, d2, d3 and 2 more (grouped)", "cannot be changed: head (too few rows)",
    ]  # fmt: skip
    assert excluded_lines({}, 3) == []
