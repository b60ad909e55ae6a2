"""The benchmark on a GPU: every part runs at a small size on the CPU; aims, rows and page."""

import json
import sys

import pytest
import torch

from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import page, parts, settings
from benchmarks.gpu.settings import TRIAL, aim, entry, met, read_rows
from decomp.errors import TargetError
from decomp.pipelines.decomposition import timings, whole_networks


def figures(name, out):
    return {row["what"]: row for row in parts.PARTS[name][0](TRIAL, out)}


def test_single_layer_is_timed_step_by_step(tmp_path):
    found = figures("layer", tmp_path)
    first = found["whole step, first"]
    assert sum(float(part.split()[-1]) for part in first["note"].split(", ")) == pytest.approx(first["value"], abs=0.05)
    assert 0 < found["held-out error"]["value"] < 1 and found["peak memory"]["value"] > 0.05
    assert list(tmp_path.iterdir()) == []  # rows and weights are removed


def test_large_network_is_frozen_and_decomposed_to_the_speedup(tmp_path):
    found = figures("network", tmp_path)
    assert found["counted speed-up"]["value"] >= TRIAL.speedup
    assert found["freeze and decompose"]["value"] == found["freeze"]["value"] + found["decompose"]["value"]


def test_loops_are_compared_on_the_same_number_of_images(tmp_path):
    found = figures("tuning", tmp_path)
    ours, plain = found["decomp's loop"]["value"], found["plain loop on the same batches"]["value"]
    assert found["decomp's of the plain loop's"]["value"] == ours / plain and ours > 1


def test_planned_network_is_built_and_timed_again(tmp_path, monkeypatch):
    seen = {}

    def as_large(networks, *_, **__):
        """Times as if a network's parameters were its milliseconds."""
        return {name: [1.0 + sum(p.numel() for p in one.parameters())] * 3 for name, one in networks.items()}

    def latencies(networks, shape, *_, **__):
        seen.update({name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()})
        assert shape == (TRIAL.timed_batch, 1, 28, 28)
        return {"original": [3.0, 3.0, 9.0], "sized": [2.0, 2.0, 1.0]}

    monkeypatch.setattr(whole_networks, "in_new_processes", lambda device: False)  # as on a GPU
    monkeypatch.setattr(timings, "latencies", as_large)
    monkeypatch.setattr(parts, "latencies", latencies)
    found = figures("latency-eager", tmp_path)
    assert found["measured of asked"]["value"] == 1.5 / TRIAL.asked and met(found["measured of asked"]) == "no"
    # As many times fewer parameters as the plan's measurement says.
    ratio = (1 + seen["original"]) / (1 + seen["sized"])
    assert found["speed-up of the plan"]["value"] == pytest.approx(ratio, abs=2e-3) and ratio >= TRIAL.asked


def test_speedup_that_is_refused_has_its_line_and_misses_the_aim(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise TargetError("2x", "is out of reach", fix="ask for less")

    monkeypatch.setattr(parts.decomp, "decompose", refuse)
    (row,) = figures("latency-eager", tmp_path).values()
    assert row["value"] is None and row["note"] == "2x: is out of reach; ask for less." and met(row) == "no"


def test_errors_on_the_same_device_are_equal(tmp_path):
    found = figures("agreement", tmp_path)
    assert found["largest difference of an error"]["value"] == found["difference of the output's error"]["value"] == 0
    assert int(found["largest difference of an error"]["note"].split()[1]) >= 3


@pytest.mark.parametrize(
    ("row", "words", "holds"),
    [
        (entry("a", 5.0, "s", most=5), "at most 5", "yes"),
        (entry("a", 5.1, "s", most=5), "at most 5", "no"),
        (entry("a", 0.94, "", least=0.95), "at least 0.95", "no"),
        (entry("a", 1.0, "", 0.97, 1.1), "0.97 to 1.1", "yes"),
        (entry("a", None, "", 0.97, 1.1), "0.97 to 1.1", "no"),
        (entry("a", 7, ""), "", ""),
    ],
)
def test_figure_is_held_against_its_aim(row, words, holds):
    assert (aim(row), met(row)) == (words, holds)


def test_parts_that_ended_are_not_run_again_and_a_stopped_one_leaves_its_rows(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(driver, "in_own_process", lambda name, *_: ran.append(name))
    driver.append(tmp_path, {"part": "layer", "what": "ended", "value": 1.0, "unit": "s"})
    driver.append(tmp_path, {"part": "tuning", **entry("decomp's loop", 9.0, "images/s")})
    monkeypatch.setattr(sys, "argv", ["gpu", "--trial", "--out", str(tmp_path), "--parts", "layer,tuning"])
    driver.main()
    assert ran == ["tuning"] and "| tuning | decomp's loop | 9 | images/s |" in capsys.readouterr().out


def test_part_that_takes_too_long_is_ended_with_all_it_started(tmp_path, monkeypatch, capsys):
    sleeps = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    popen = driver.subprocess.Popen
    started = []

    def start(command, **options):
        started.append(popen([sys.executable, "-c", sleeps], **options))
        return started[-1]

    monkeypatch.setattr(driver.subprocess, "Popen", start)
    driver.in_own_process("layer", tmp_path, True, 0.3)
    assert started[0].returncode == -9 and "layer: stopped after 0.3 s" in capsys.readouterr().out


def test_without_a_gpu_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match=r"^benchmarks\.gpu: there is no CUDA device here; --trial .*\.$"):
        driver.main()
    assert not (tmp_path / "new").exists()


def test_page_keeps_its_text_and_takes_the_last_of_equal_rows(tmp_path):
    path, rows = tmp_path / "gpu.md", tmp_path / "rows.jsonl"
    path.write_text("# On a GPU\n\nText.\n\n## Measured\n\nold\n", encoding="utf-8")
    about = {"part": "layer", "device": "H100", "torch": "2.11"}
    kept = [{**about, **entry("whole step", value, "s", most=5)} for value in (9.0, 4.0)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    page.write(path, read_rows(rows))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# On a GPU\n\nText.\n\n## Measured\n\nH100, torch 2.11. By `python -m benchmarks.gpu ")
    assert text.count("whole step") == 1 and "| layer | whole step | 4 | s | at most 5 | yes |  |" in text
    assert "old" not in text and read_rows(tmp_path / "none") == []


def test_full_setting_is_for_a_gpu_and_every_part_has_a_limit():
    assert settings.Setting().device == "cuda" and TRIAL.device == "cpu"
    assert sum(limit for _, limit in parts.PARTS.values()) < 900
