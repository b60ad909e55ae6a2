"""Contention for the processors: what Linux counts for each thread, and its share of the elapsed time."""

from decomp.pipelines.measure import contention


def thread(folder, number, text):
    (folder / str(number)).mkdir()
    (folder / str(number) / "schedstat").write_text(text)


def test_waits_of_all_threads_are_added_and_unreadable_ones_are_left_out(tmp_path):
    thread(tmp_path, 1, "900 1500000000 3\n")
    thread(tmp_path, 2, "900 500000000 3\n")
    (tmp_path / "3").mkdir()
    thread(tmp_path, 4, "\n")
    assert contention.waited_seconds(tmp_path) == 2.0


def test_a_system_without_such_counts_says_nothing_and_a_share_of_zero(tmp_path, monkeypatch):
    assert contention.waited_seconds(tmp_path / "absent") is None
    monkeypatch.setattr(contention, "waited_seconds", lambda: None)
    assert contention.Contention().share() == 0.0


def test_share_is_of_the_time_since_it_was_made(monkeypatch):
    waits, clock = iter([1.0, 1.5]), iter([10.0, 12.0])
    monkeypatch.setattr(contention, "waited_seconds", lambda: next(waits))
    monkeypatch.setattr(contention.time, "perf_counter", lambda: next(clock))
    assert contention.Contention().share() == 0.25
