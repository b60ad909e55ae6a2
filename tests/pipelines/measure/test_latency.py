"""Latency of networks in several runtimes: choice, times, table and the words about them."""

import pytest
import torch
from torch import nn

from decomp.errors import DecompError
from decomp.pipelines.measure import latency
from decomp.pipelines.measure.latency import Measurement, NetworkTime
from decomp.runtimes import names

CPU = torch.device("cpu")


class Detector(nn.Module):
    """Boxes and scores by name, in a list."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        maps = self.conv(images)
        return [{"boxes": maps.mean((2, 3)), "scores": maps.amax((1, 2, 3))}]


def asked(name="eager", layout="contiguous", batch_size=2):
    return latency.asked_conditions(name, layout, CPU, batch_size, 5)


def test_networks_of_any_output_are_timed_against_the_original(monkeypatch):
    times = {"original": [4.0, 8.0, 6.0], "decomposed": [2.0, 3.0, 2.5]}
    monkeypatch.setattr(latency, "latencies", lambda networks, shape, *rest, **options: times)
    networks, digests = {"original": Detector(), "decomposed": Detector()}, {"original": "a", "decomposed": "b"}
    found = latency.measure_latency(networks, digests, (3, 4, 4), CPU, asked())
    assert found.times == [
        NetworkTime("original", 6.0, (5.0, 7.0), 1.0), NetworkTime("decomposed", 2.5, (2.25, 2.75), 2.4),
    ]  # fmt: skip
    assert found.conditions["rounds"] == 3 and found.conditions["batch_size"] == 2
    assert Measurement.of(found.to_json()) == found
    assert found.matches(asked(), digests) and not found.matches(asked(layout="channels-last"), digests)
    assert not found.matches(asked(), {"original": "a"})


def test_a_detector_really_runs():
    found = latency.measure_latency({"original": Detector()}, {"original": "a"}, (3, 4, 4), CPU, asked())
    assert found.times[0].latency_ms > 0 and found.times[0].speedup == 1.0


def test_all_are_the_installed_ones_and_those_that_are_not_are_named(monkeypatch):
    monkeypatch.setattr(latency, "lacking", lambda name: ("openvino",) if name == "openvino" else ())
    monkeypatch.setattr(latency, "require_installed", lambda name: None)
    pairs, notes = latency.chosen_runtimes(("all",), CPU, "channels-last")
    assert pairs == [("eager", "channels-last"), ("compile", "channels-last"), ("onnxruntime", "contiguous")]
    assert notes[0] == 'not installed, so not timed: openvino (pip install "decomp[openvino]")'
    assert notes[1] == "onnxruntime orders the numbers in memory itself: its images are contiguous"
    assert latency.chosen_runtimes(("all",), torch.device("cuda"), "contiguous")[0] == [
        ("eager", "contiguous"), ("compile", "contiguous"),
    ]  # fmt: skip


def test_a_runtime_that_is_named_must_be_installed_and_run_on_the_device(monkeypatch):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DecompError, match=r'onnxruntime, onnx, onnxscript, not installed; .*\[onnx\]"'):
        latency.chosen_runtimes(("onnxruntime",), CPU, "contiguous")
    monkeypatch.undo()
    monkeypatch.setattr(latency, "require_installed", lambda name: None)
    with pytest.raises(DecompError, match="^openvino: .* on cpu only"):
        latency.chosen_runtimes(("openvino",), torch.device("cuda"), "contiguous")


def measured(name, *times, digests=("a", "b"), **conditions):
    known = {"runtime": name, "layout": "contiguous", "device": "CPU x", "threads": 1, "batch_size": 1,
             "precision": "float32", **conditions}  # fmt: skip
    labels = dict(zip(("original", "decomposed"), digests))
    return Measurement(known, labels, list(times))


def test_the_table_has_a_row_for_each_runtime_and_network_and_the_fastest_way_is_said():
    eager = measured(
        "eager", NetworkTime("original", 4.0, (3.0, 5.0), 1.0), NetworkTime("decomposed", 1.0, (0.9, 1.1), 4.0)
    )
    onnx = measured(
        "onnxruntime", NetworkTime("original", 2.0, (2.0, 2.0), 1.0), NetworkTime("decomposed", reason="onnx: not")
    )
    lines = latency.latency_lines([eager, onnx])
    assert [line.split() for line in lines[1:5]] == [
        ["eager", "contiguous", "original", "4", "ms", "3–5", "ms", "1.00x"],
        ["eager", "contiguous", "decomposed", "1", "ms", "0.9–1.1", "ms", "4.00x"],
        ["onnxruntime", "contiguous", "original", "2", "ms", "2–2", "ms", "1.00x"],
        ["onnxruntime", "contiguous", "decomposed", "-", "-", "-"],
    ]
    assert lines[5] == (
        "fastest of these: original in onnxruntime, contiguous, 2 ms; decomposed in eager, contiguous, 1 ms"
    )
    assert onnx.notes() == ["no time of the decomposed network in onnx: not"]
    assert eager.notes()[0].startswith("unreliable latencies: half the rounds of a network spread over 50 %")
    assert latency.latency_lines([eager]) == []


def test_times_of_other_networks_threads_or_batch_sizes_are_not_compared():
    last = measured("eager")
    others = [measured("compile"), measured("compile", digests=("a",)), measured("compile", threads=2),
              measured("compile", batch_size=64), measured("compile", digests=("a", "c"))]  # fmt: skip
    assert latency.comparable([*others, last], last) == [*others[:2], last]
