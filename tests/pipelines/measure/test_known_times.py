"""Shortest times in the user's cache: what is kept, for how long, under which key, and files that cannot be used."""

import json
from datetime import date, timedelta

import pytest
from torch import nn

from decomp.graph.tracing import trace
from decomp.pipelines.measure import known_times
from decomp.pipelines.measure.known_times import DAYS, KnownTimes, key_of
from tests.pipelines.digit_runs import Collected

TODAY = date(2026, 3, 1)


@pytest.fixture
def path(tmp_path, monkeypatch):
    place = tmp_path / "cache" / "known.json"
    monkeypatch.setenv(known_times.VARIABLE, str(place))
    return place


def noted(*times, key="a", days=0):
    """Times of a network that another run has kept."""
    known = KnownTimes(Collected(), TODAY + timedelta(days))
    for time in times:
        known.note(key, time)
    known.save()


def known_after(days=0, key="a"):
    return KnownTimes(Collected(), TODAY + timedelta(days)).shortest(key)


def test_the_shortest_time_of_all_runs_is_known(path):
    assert known_after() is None
    noted(5.0, 4.0, 6.0)
    assert known_after() == 4.0 and known_after(key="b") is None
    noted(7.0)
    assert known_after() == 4.0
    noted(3.5)
    assert known_after() == 3.5


def test_a_time_of_this_process_counts_before_it_is_kept(path):
    known = KnownTimes(Collected(), TODAY)
    known.note("a", 2.0)
    assert known.shortest("a") == 2.0 and not path.exists()


def test_what_another_process_keeps_meanwhile_stays(path):
    known = KnownTimes(Collected(), TODAY)
    known.note("a", 2.0)
    noted(1.5)
    noted(9.0, key="b")
    known.save()
    assert known_after() == 1.5 and known_after(key="b") == 9.0


def test_a_time_that_is_not_reached_again_is_forgotten(path):
    noted(2.0)
    noted(2.1, days=DAYS)  # about as short: seen again
    assert known_after(2 * DAYS) == 2.0 and known_after(2 * DAYS + 1) is None
    noted(4.0, days=2 * DAYS)  # the machine has become slower, which does not count as seen
    assert known_after(2 * DAYS) == 2.0 and known_after(2 * DAYS + 1) is None
    noted(4.0, days=2 * DAYS + 1)
    assert known_after(2 * DAYS + 1) == 4.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "the file is cut short"),
        ("", "the file is empty"),
        ('{"format": "decomp run", "format_version": 1}', "must be a 'decomp known times' file, got 'decomp run'"),
        ('{"format": "decomp known times", "format_version": 1}', "must hold times with their days, got something"),
        ('{"format": "decomp known times", "format_version": 1, "entries": {"a": {"milliseconds": -1, "seen": '
         '"2026-03-01"}}}', "must hold times with their days"),
        ('{"format": "decomp known times", "format_version": 1, "entries": {"a": {"milliseconds": 1, "seen": "x"}}}',
         "must hold times with their days"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_not_used_which_is_said_and_it_is_replaced(path, text, words):
    path.parent.mkdir()
    path.write_text(text)
    reporter = Collected()
    known = KnownTimes(reporter, TODAY)
    assert known.shortest("a") is None
    (said,) = reporter.messages
    assert said.startswith(f"known times of networks are not used: {path}: ") and words in said
    known.note("a", 2.0)
    known.save()
    assert known_after() == 2.0 and len(reporter.messages) == 1


def test_a_file_that_cannot_be_written_costs_a_line_and_nothing_else(path):
    path.parent.write_text("a file where the folder should be")
    reporter = Collected()
    known = KnownTimes(reporter, TODAY)
    known.note("a", 2.0)
    known.save()
    assert known.shortest("a") == 2.0
    assert [message[:46] for message in reporter.messages] == ["times of networks are not kept for other runs:"]


def test_nothing_is_read_and_nothing_kept_where_the_user_wants_none(path, monkeypatch):
    noted(2.0)
    before = path.read_text()
    monkeypatch.setenv(known_times.VARIABLE, "off")
    assert known_after() is None
    noted(1.0)
    assert path.read_text() == before


def test_the_file_lies_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv(known_times.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    noted(2.0)
    (entry,) = json.loads((tmp_path / "decomp" / "known_times.json").read_text())["entries"].values()
    assert entry == {"milliseconds": 2.0, "seen": "2026-03-01"}


def traced(channels=3):
    return trace(nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU()).eval(), "net")


def test_networks_of_one_structure_have_one_key_whatever_their_weights(monkeypatch):
    conditions = {"runtime": "eager", "threads": 2}
    key = key_of(traced(), (1, 1, 8, 8), conditions)
    assert key == key_of(traced(), (1, 1, 8, 8), dict(conditions))
    others = [
        key_of(traced(4), (1, 1, 8, 8), conditions), key_of(traced(), (2, 1, 8, 8), conditions),
        key_of(traced(), (1, 1, 8, 8), {**conditions, "threads": 1}),
    ]  # fmt: skip
    monkeypatch.setattr(known_times.os, "cpu_count", lambda: 1234)
    others.append(key_of(traced(), (1, 1, 8, 8), conditions))
    assert len({key, *others}) == 5


def test_a_network_that_was_not_traced_has_no_key_and_is_not_kept(path):
    assert key_of(nn.Conv2d(1, 1, 1), (1, 1, 8, 8), {}) is None
    noted(2.0, key=None)
    assert not path.exists() and known_after(key=None) is None
