"""The benchmark of asked and measured time: which repetitions count, and which keep the promise."""

from benchmarks import clock


def row(measured, load=0.0, spread=0.05):
    """A repetition of a plan for twice the speed."""
    kept = {"network": "n", "runtime": "eager", "asked": 2, "planned": 2.0}
    return {**kept, "measured": measured, "load": load, "spread": spread}


def test_ratio_is_of_medians_and_spread_of_the_original():
    found = clock.ratio({"original": [8.0, 10.0, 10.0, 12.0, 90.0], "decomposed": [5.0, 5.0, 4.0, 80.0, 5.0]})
    assert found == {"measured": 2.0, "spread": 0.2}


def test_promise_is_kept_between_97_and_110_percent():
    (entry,) = clock.summary([row(1.93), row(1.95), row(2.19), row(2.21)])
    assert entry["kept"] == "2 of 4" and (entry["low"], entry["high"]) == (1.93, 2.21)


def test_busy_repetitions_are_marked_and_count_only_when_asked():
    rows = [row(2.0), row(9.0, load=3.0), row(9.0, spread=0.5)]
    (entry,), (with_busy,) = clock.summary(rows), clock.summary(rows, with_busy=True)
    assert (entry["repetitions"], entry["busy"], entry["measured"]) == (1, 2, 2.0)
    assert (with_busy["kept"], with_busy["measured"]) == ("1 of 3", 9.0)


def test_refused_speedup_has_its_line_and_no_figure():
    (entry,) = clock.summary([{"network": "n", "runtime": "eager", "asked": 3, "refused": "at most 2x"}])
    assert entry["refused"] == "at most 2x" and "measured" not in entry and entry["repetitions"] == 0


def test_processors_in_use_are_those_that_are_neither_idle_nor_wait_for_disks(monkeypatch):
    before, after = "cpu  100 0 50 1000 30 0 10 0 0 0\n", "cpu  190 0 60 1090 40 0 10 0 0 0\n"
    assert clock.busy_jiffies(before) == (160, 1190) and clock.busy_jiffies(after) == (260, 1390)
    texts = iter([before, after])
    monkeypatch.setattr(clock.Path, "exists", lambda path: True)
    monkeypatch.setattr(clock.Path, "read_text", lambda path: next(texts))
    monkeypatch.setattr(clock.os, "cpu_count", lambda: 4)
    assert clock.processors_in_use(0) == 2.0  # 100 of 200
