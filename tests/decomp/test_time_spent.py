"""Time spent: each second counts once, for the innermost part of the phase, also in threads."""

import time

import pytest

from decomp import time_spent
from decomp.time_spent import TimeSpent, current, part


@pytest.fixture
def clock(monkeypatch):
    """Both clocks, moved by hand: the processor does two seconds in each second on the wall."""
    now = [0.0]
    monkeypatch.setattr(time_spent.time, "perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move, lambda: 2 * now[0]


def test_time_counts_for_the_innermost_part_of_its_phase(clock):
    move, processor = clock
    with TimeSpent(processor).recording() as spent:
        move(1)
        spent.phase("survey")
        with part("rows"):
            move(2)
            with part("forward"):
                move(4)
            move(8)
        move(16)
        spent.phase("fit")
        with part("rows"):
            move(32)
    move(64)  # after the recording
    assert spent.seconds == {
        ("", ""): 1, ("survey", "rows"): 10, ("survey", "rows: forward"): 4, ("survey", ""): 16, ("fit", ""): 0,
        ("fit", "rows"): 32,
    }  # fmt: skip
    assert spent.processor_seconds == {key: 2 * value for key, value in spent.seconds.items()}
    assert sum(spent.seconds.values()) == 63


def test_the_part_in_work_is_the_outermost_one():
    spent = TimeSpent()
    assert spent.now == ""
    with spent.part("rows"), spent.part("forward"):
        assert spent.now == "rows"
    assert spent.now == ""


def test_a_part_that_fails_ends_too(clock):
    move, processor = clock
    with TimeSpent(processor).recording() as spent:
        with pytest.raises(ZeroDivisionError), part("rows"):
            move(1)
            raise ZeroDivisionError
        move(2)
    assert spent.seconds == {("", ""): 2, ("", "rows"): 1}


def test_rows_are_in_the_order_of_the_phases_with_the_longest_part_first(clock):
    move, processor = clock
    with TimeSpent(processor).recording() as spent:
        for phase, parts in (("b", {"x": 1, "y": 3}), ("a", {"x": 2})):
            spent.phase(phase)
            for name, seconds in parts.items():
                with part(name):
                    move(seconds)
        rows = [row for row in spent.rows() if row["seconds"]]
    assert [(row["phase"], row["part"], row["seconds"]) for row in rows] == [
        ("b", "y", 3),
        ("b", "x", 1),
        ("a", "x", 2),
    ]
    assert [row["processor_seconds"] for row in rows] == [6, 2, 4]


def test_the_wall_time_of_threads_is_divided_by_their_processor_time(clock):
    move, processor = clock
    with TimeSpent(processor).recording() as spent:
        others = []
        for name, seconds in (("curves", 3.0), ("curves", 1.0), ("", 4.0)):
            others.append(TimeSpent(lambda: 0.0))
            others[-1]._add(name, 0.0, seconds)
        with part("survey"):
            move(6)  # 12 s of the processors, of which the threads recorded 8
            spent.absorb(others)
            move(1)
    assert spent.seconds["", "survey: curves"] == 3 and spent.processor_seconds["", "survey: curves"] == 4
    assert spent.seconds["", "survey"] == 3 + 1 and spent.processor_seconds["", "survey"] == 4 + 4 + 2
    assert sum(spent.seconds.values()) == 7 and sum(spent.processor_seconds.values()) == 14


def test_without_a_recording_a_part_does_nothing():
    assert current() is None
    with part("rows"):
        assert current() is None
    with TimeSpent().recording() as spent:
        assert current() is spent
    assert current() is None


def test_processor_seconds_are_those_of_this_process():
    with TimeSpent().recording() as spent:
        with part("work"):
            until = time.process_time() + 0.02
            while time.process_time() < until:
                pass
        with part("sleep"):
            time.sleep(0.02)
    assert spent.processor_seconds["", "work"] >= 0.02 > spent.processor_seconds["", "sleep"]
    assert spent.seconds["", "sleep"] >= 0.02
