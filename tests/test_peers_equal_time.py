"""Comparison with other tools at equal measured time, on tools and times defined here."""

import pytest
import torch
from torch import nn

from benchmarks.peers import driver, equal_page, equal_time, worker
from benchmarks.peers.methods import BY_TIME, EQUAL_TIME, METHODS, named

FAMILY = {"network": "zoo:x", "data": "digits", "seed": 0, "method": "torch-pruning/l2-global-+bn"}
OURS = {**FAMILY, "method": "decomp/by-time"}


def searched(law, target=2.0):
    """Counted speed-ups in the order in which they are made, where `law` gives the time of each."""
    points = {}
    while asked := equal_time.next_speedups(points, target):
        points |= {speedup: law(speedup) for speedup in asked}
    return points


def test_the_search_finds_the_counted_speedup_that_measures_the_target():
    points = searched(lambda counted: counted**0.6)
    counted = min(points, key=lambda one: abs(points[one] - 2))
    assert counted == pytest.approx(2 ** (1 / 0.6), rel=0.05)
    assert len(points) == len(equal_time.GRID) + 1


def test_a_slow_tool_is_asked_for_more_and_a_fast_one_for_less():
    assert max(searched(lambda counted: 1 + 0.15 * counted)) > max(equal_time.GRID)
    assert min(searched(lambda counted: 1.5 * counted)) < min(equal_time.GRID)


def test_a_target_out_of_reach_ends_the_search():
    points = searched(lambda counted: min(1.4, counted))
    assert len(points) <= len(equal_time.GRID) + equal_time.MORE and max(points) <= equal_time.MOST


def test_a_speedup_that_the_tool_does_not_reach_is_not_asked_for_again():
    assert equal_time.next_speedups({}, 2.0, {4.0}) == [2.5]
    assert equal_time.next_speedups({2.5: 1.5}, 2.0, {4.0, 3.75}) == []  # half as much again as 2.5 is 3.75
    assert equal_time.next_speedups({}, 2.0, {2.5, 4.0}) == []
    rows = [
        {**FAMILY, "speedup": 4.5, "error": "no"},
        {**FAMILY, "speedup": 3.0},
        {**OURS, "speedup": 2.0, "error": "no"},
    ]
    assert equal_time.failed_of(dict(enumerate(rows)), FAMILY) == {4.5}


def test_steps_in_time_end_the_search_at_the_closest():
    points = searched(lambda counted: 1.5 if counted < 3.4 else 2.7)
    assert len(points) == len(equal_time.GRID) + equal_time.MORE
    timed = {k: {**FAMILY, "epochs": 0, "speedup": k, "measured_speedup": v} for k, v in points.items()}
    assert equal_time.chosen(timed, FAMILY, 2.0)["speedup"] < 3.4  # 1.5 is closer to 2 than 2.6


def test_other_methods_and_seeds_and_trained_networks_are_no_points():
    row = {**FAMILY, "epochs": 0, "speedup": 2.0, "measured_speedup": 1.5}
    others = [{**row, "method": "other"}, {**row, "seed": 1}, {**row, "epochs": 5}]
    assert equal_time.points_of(dict(enumerate([row, *others])), FAMILY) == {2.0: 1.5}


def test_a_network_on_a_busy_machine_is_timed_again_but_not_for_ever(tmp_path):
    row = {**FAMILY, "epochs": 0, "speedup": 2.0}
    assert equal_time.to_time(tmp_path, [row]) == []  # there is no network
    path = worker.file_of(tmp_path, row)
    path.parent.mkdir()
    path.touch()
    assert equal_time.to_time(tmp_path, [row]) == [row]
    for tries in range(1, equal_time.TRIES + 1):
        driver.append(tmp_path / equal_time.FILE, {**row, "measured_speedup": 1.5, "busy": True, "tries": tries})
        assert bool(equal_time.to_time(tmp_path, [row])) == (tries < equal_time.TRIES)
    driver.append(tmp_path / equal_time.FILE, {**row, "measured_speedup": 1.5, "busy": False, "tries": 1})
    assert equal_time.to_time(tmp_path, [row]) == []


def test_a_network_of_half_the_layers_is_measured_as_faster():
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)

    def network(depth):
        return nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(depth)]).eval()

    found = equal_time.ratio(network(12), network(3), (16, 16, 16))
    assert found["measured_speedup"] > 1.5 and set(found) >= {"low", "high", "busy"}


def test_a_network_is_held_against_the_shortest_time_of_its_original():
    row = {**FAMILY, "epochs": 0, "speedup": 2.0}
    others = [
        {**row, "original_ms": 0.4},
        {**OURS, "original_ms": 0.3},
        {**row, "network": "other", "original_ms": 0.1},
    ]
    assert equal_time.fastest_original(dict(enumerate(others)), row) == 0.3
    assert equal_time.fastest_original({0: row}, row) is None


def filled(method, speedup, measured, top1, epochs=0, seed=0):
    key = {**FAMILY, "method": method, "seed": seed, "speedup": speedup, "epochs": epochs}
    row = {**key, "counted": speedup, "top1": top1, "original_top1": 0.95}
    return row, {**key, "measured_speedup": measured, "low": 1.9, "high": 2.1, "busy": False}


@pytest.fixture
def folder(tmp_path):
    networks = [
        filled("decomp/by-time", 2.0, 2.03, 0.94), filled("torch-pruning/l2-global-+bn", 3.0, 1.5, 0.93),
        filled("torch-pruning/l2-global-+bn", 4.5, 1.99, 0.91),
        filled("torch-pruning/taylor-global-+bn", 4.5, 2.0, 0.80),
    ]  # fmt: skip
    trained = [
        filled("decomp/by-time", 2.0, 0, 0.945, epochs=5), filled("torch-pruning/l2-global-+bn", 4.5, 0, 0.94, epochs=5)
    ]  # fmt: skip
    for row, time in networks:
        driver.append(tmp_path / "results.jsonl", row)
        driver.append(tmp_path / equal_time.FILE, time)
    for row, _ in trained:
        driver.append(tmp_path / "results.jsonl", row)
    return tmp_path


def families():
    names = ("decomp/by-time", "torch-pruning/l2-global-+bn", "torch-pruning/taylor-global-+bn")
    return [{**FAMILY, "method": name} for name in names]


def test_the_page_compares_the_networks_closest_to_the_time(folder):
    equal_page.write(folder, 2.0, families(), [5], folder / "page.md")
    text = (folder / "page.md").read_text()
    best = "the best of the others (torch-pruning l2 global +bn, measured 1.99x)"
    assert f"with nothing trained: decomp (measured 2.03x) loses 1.00 points, {best} 4.00, 0.25 of it." in text
    assert f"after 5 epochs of training: decomp (measured 2.03x) loses 0.50 points, {best} 1.00" in text
    assert "| torch-pruning | l2 global +bn | 4.50x | 1.99x | 1.90–2.10 | 4.00 | 1.00 |" in text
    assert "| torch-pruning | taylor global +bn | 4.50x | 2.00x | 1.90–2.10 | 15.00 |  |" in text
    assert "3.00x" not in text  # another network of the same method, not at the time
    assert (folder / "page.png").stat().st_size > 1000


def test_the_comparison_stands_under_its_heading_of_a_guide(folder):
    guide = folder / "guide.md"
    guide.write_text(f"# Guide\n\n## {equal_page.SECTION}\n\nold\n\n## Behind\n\nlast\n")
    equal_page.write(folder, 2.0, families(), [5], into=guide)
    text = guide.read_text()
    assert text.startswith(f"# Guide\n\n## {equal_page.SECTION}\n\n") and text.endswith("\n\n## Behind\n\nlast\n")
    assert "old" not in text and "loses 1.00 points" in text and f"\n### {FAMILY['network']}\n" in text
    assert "| torch-pruning | l2 global +bn | 4.50x | 1.99x | 1.90–2.10 | 4.00 | 1.00 |" in text
    assert "--equal-time 2`" in text and "Failed" not in text
    driver.append(folder / "results.jsonl", {**families()[0], "speedup": 9.0, "epochs": 0, "error": "no such network"})
    equal_page.write(folder, 2.0, families(), [5], into=guide)
    assert "Failed:\n\n- " in guide.read_text() and "no such network" in guide.read_text()


def test_seeds_are_shown_as_mean_and_range(folder):
    row, time = filled("decomp/by-time", 2.0, 2.01, 0.92, seed=1)
    driver.append(folder / "results.jsonl", row)
    driver.append(folder / equal_time.FILE, time)
    made, timed = driver.read(folder / "results.jsonl"), equal_time.timed_rows(folder)
    both = [{**OURS, "seed": seed} for seed in (0, 1)]
    found = equal_page.entries(made, timed, both, 2.0, [5])
    assert "| decomp | by time | 2.00x | 2.02x | 1.90–2.10 | 2.00 (1.00–3.00) |  |" in equal_page.table(found, [5])


def test_the_chosen_networks_alone_are_trained(folder, monkeypatch):
    made = []
    monkeypatch.setattr(driver, "run", lambda out, rows, **options: made.append((rows, options)))
    for tried in (2.5, 4.0):  # with that at 4.5 times the search has ended
        driver.append(folder / equal_time.FILE, filled("torch-pruning/l2-global-+bn", tried, tried / 2.25, 0)[1])
    equal_time.run(folder, families()[:2], 2.0, [5], train_images=60, wrap="nice")
    (rows, options) = made[-1]
    assert len(made) == 1 and options["wrap"] == "nice"
    assert [(row["method"], row["speedup"], row["epochs"], row["train_images"]) for row in rows] == [
        ("decomp/by-time", 2.0, 5, 60), ("torch-pruning/l2-global-+bn", 4.5, 5, 60),
    ]  # fmt: skip


def test_methods_by_time_have_names_of_their_own():
    assert not set(BY_TIME) & set(METHODS) and set(EQUAL_TIME) <= set(BY_TIME) | set(METHODS)
    assert named("decomp/by-time") == ("decomp", "by time")
    assert all(" " not in key for key in BY_TIME)
