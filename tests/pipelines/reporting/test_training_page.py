"""Sections about trainings: their numbers in words, and nothing for runs that were not trained."""

import re

from decomp.pipelines.reporting.tables import Table
from decomp.pipelines.reporting.training_page import events_table, results_table, training_sections
from decomp.pipelines.reporting.training_tables import EVENT_COLUMNS

RESULT = ("runs/a", "repr", 1200, 0.9, 0.85, 7, 0.95, 0.86, 1.234, 100, 1000)
EVENTS = Table(
    "events", EVENT_COLUMNS,
    [
        (4, "drop", 19, 0.05, 0.04, None, 0.925, 0.373, "a: 13, b: 6"),
        (6, "restore", 19, 0.06, 0.02, 5e-9, None, None, "a: 19"),
    ],
)  # fmt: skip


def texts(html):
    body = html.partition("<tbody>")[2]
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall("<t[dh] .*?</t[dh]>", body)]


def test_a_training_is_a_line_with_its_accuracies_and_their_intervals():
    cells = texts(results_table([RESULT]))
    assert cells[:2] == ["runs/a", "repr"] and cells[2].startswith("85.0 % (8") and cells[3] == "90.0 %"
    assert cells[4] == "7" and cells[5].startswith("86.0 % (") and cells[6:] == ["95.0 %", "1,200", "1.23"]
    assert texts(results_table([("runs/b", "standard", None, *[None] * 6, 10, 0)]))[2:] == ["–"] * 7


def test_an_event_is_a_line_with_overlap_and_accuracy_around_it():
    cells = texts(events_table(EVENTS))
    assert cells[:7] == ["4", "dropped", "19", "a: 13, b: 6", "0.05 → 0.04", "–", "92.5 % → 37.3 %"]
    assert cells[7:] == ["6", "back", "19", "a: 19", "0.06 → 0.02", "5.0e-09", "–"]


def test_sections_are_there_as_far_as_there_is_something_in_them():
    assert training_sections([], {"events": EVENTS}, {}, "figures") == []
    drawn = {"training": [("<svg>1</svg>", "<svg>2</svg>")]}
    sections = training_sections([RESULT], {"events": EVENTS}, drawn, "figures")
    assert [bool(section.parts) for section in sections] == [True, True, False]
    assert any('href="figures/training.csv"' in part for part in sections[0].parts)
