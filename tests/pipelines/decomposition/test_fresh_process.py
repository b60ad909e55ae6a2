"""Measurements in new processes: the networks that arrive there, the answer, and failures."""

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from decomp.errors import DecompError
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition import fresh_process
from decomp.pipelines.decomposition.fresh_process import FreshProcess, measure, read_network, write_network
from decomp.pipelines.decomposition.speed_ratio import RoundsRule
from decomp.runtimes.eager import Eager
from decomp.runtimes.onnx import OnnxRuntime
from decomp.runtimes.timing import random_images
from tests.pipelines.digit_runs import plain

SHAPE = (2, 1, 8, 8)


def example():
    return random_images(SHAPE, torch.device("cpu"))


@pytest.fixture(scope="module")
def network():
    return trace(plain().eval(), "net")


@pytest.mark.parametrize("name", ["eager", "onnxruntime"])
def test_a_network_read_in_another_process_computes_what_the_written_one_does(network, name, tmp_path):
    made = Eager()
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")
        made, network = OnnxRuntime(), nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    write_network(network, tmp_path / "net", made, example())
    with torch.inference_mode():
        found, expected = read_network(tmp_path / "net", made, example())(example()), network(example())
    found = torch.as_tensor(found[0]) if isinstance(found, list) else found
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_request_is_measured_with_its_threads_and_the_original_against_itself(network, tmp_path, monkeypatch):
    write_network(network, tmp_path / "net", Eager(), example())
    seen, rule = [], RoundsRule((1.0, 2.0), (0.9, 2.1), 3.0, 1, 4)

    def fake(block, rule):
        seen.append((block(), rule, torch.get_num_threads()))
        return "measured"

    monkeypatch.setattr(fresh_process, "measure_ratio", fake)
    threads = torch.get_num_threads()
    try:
        request = {"runtime": "eager", "layout": "contiguous", "threads": 1, "shape": SHAPE}
        request["rule"] = asdict(rule)
        folders = {name: str(tmp_path / "net") for name in ("original", "planned")}
        assert measure({**request, **folders}) == "measured"
    finally:
        torch.set_num_threads(threads)
    ((times, *others),) = seen
    assert set(times) == {"original", "planned", "again"} and others == [rule, 1]


def test_an_original_that_is_timed_alone_is_prepared_once_and_a_planned_network_beside_it(monkeypatch):
    seen = []
    monkeypatch.setattr(fresh_process, "read_network", lambda folder, *_: seen.append(folder.name) or folder.name)
    monkeypatch.setattr(fresh_process, "block_of_rounds", lambda prepared, *_: prepared)
    monkeypatch.setattr(fresh_process, "measure_ratio", lambda prepared, rule: prepared)
    request = {
        "runtime": "eager", "layout": "contiguous", "threads": torch.get_num_threads(), "shape": SHAPE,
        "rule": asdict(RoundsRule()), "original": "o",
    }  # fmt: skip
    assert measure({**request, "planned": "o"}) == {"original": "o", "planned": "o", "again": "o"} and seen == ["o"]
    assert measure({**request, "planned": "p"}) == {"original": "o", "planned": "p", "again": "o"}
    assert seen == ["o", "o", "p"]


def test_a_copy_of_the_helper_process_measures_and_a_failure_is_told(network):
    """One helper process for all: its start takes seconds."""
    with FreshProcess(Eager(), SHAPE) as fresh:
        folder, ratio = fresh._folder.name, fresh.ratio(network, network, RoundsRule())
        assert ratio.original_ms > 0 and 0.5 < ratio.speedup < 2.0 and len(ratio.interval) == 2
        assert os.listdir(folder) == [os.path.basename(fresh._written.parent)]
        written = fresh._written
        fresh.shape = (2, 3, 8, 8)  # other channels than the network reads
        with pytest.raises(DecompError, match="^measurement: it failed in a process of its own, got RuntimeError"):
            fresh.ratio(network, network, RoundsRule())
        assert fresh._written == written
        fresh._folder.cleanup = lambda: None  # as where this process is killed: the other one removes what it wrote
    assert not os.path.exists(folder) and fresh._process.returncode == 0


def test_a_helper_process_that_ends_is_told_with_its_last_words(network, monkeypatch):
    monkeypatch.setattr(fresh_process, "_PROGRAM", "raise SystemExit('no memory left')")
    with FreshProcess(Eager(), SHAPE) as fresh, pytest.raises(DecompError, match="got no memory left"):
        fresh.ratio(network, network, RoundsRule())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the helper process makes no copies")
def test_ctrl_c_stops_a_measurement_and_removes_the_networks(monkeypatch):
    monkeypatch.setattr(fresh_process, "_PROGRAM", "import os, time; os.fork(); time.sleep(60)")
    since = time.monotonic()
    with pytest.raises(KeyboardInterrupt), FreshProcess(Eager(), SHAPE) as fresh:
        written = Path(fresh._folder.name, "network")
        written.touch()
        raise KeyboardInterrupt
    assert time.monotonic() - since < 30 and not written.parent.exists() and fresh._process.returncode == -9


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the helper process makes no copies")
def test_a_measurement_ends_with_the_process_that_asked_for_it(monkeypatch):
    monkeypatch.setattr(fresh_process, "_answer", lambda request: time.sleep(60))
    since, (read, write), before = time.monotonic(), os.pipe(), os.dup(0)
    os.close(write)  # the input ends
    os.dup2(read, 0)
    try:
        fresh_process._answer_in_a_copy({})
    finally:
        os.dup2(before, 0)
        for place in (read, before):
            os.close(place)
    assert time.monotonic() - since < 30


def test_a_network_that_was_not_traced_is_refused(tmp_path):
    with pytest.raises(DecompError, match="^network: only a traced network can be written as data, got Conv2d"):
        write_network(nn.Conv2d(1, 1, 1), tmp_path / "net", Eager(), example())
