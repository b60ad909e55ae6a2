"""Measured cost of choices of channels: as a share of the original's time, each choice once."""

import pytest
import torch
from networks import block

from decomp.errors import DecompError, UsageError
from decomp.pipelines.pruning import measured
from decomp.pipelines.pruning.measured import MeasuredCost, require_runtime
from decomp.pipelines.pruning.plan_file import prune_options
from decomp.pipelines.pruning.removal import remove
from decomp.pipelines.pruning.unfolded import unfolded
from decomp.runtimes import names
from tests.pipelines.digit_runs import Collected


@pytest.fixture
def clock(monkeypatch):
    """Times by the number of filters of conv1, as if each took a millisecond; counts the measurements."""
    calls = []

    def latencies(networks, shape, device, rounds, **options):
        calls.append((shape, options["layout"]))
        return {name: [1.0 * module.conv1.out_channels] * 3 for name, module in networks.items()}

    monkeypatch.setattr(measured, "latencies", latencies)
    return calls


def options(**changes):
    return prune_options(**{"speedup": 2, "cost": "latency", "latency_batch": 3, **changes})


def test_a_choice_is_measured_once_beside_the_original(clock):
    source, told = unfolded(block(), "block", (3, 8, 8)), Collected()
    chosen = options(latency_layout="channels-last")
    cost = MeasuredCost(source, chosen, torch.device("cpu"), told)
    assert cost({"conv1": list(range(12))}) == 1.0 and not clock
    assert cost({"conv1": [0, 3, 4]}) == cost({"conv1": [1, 2, 3]}) == 0.25
    assert clock == [((3, 3, 8, 8), "channels-last")]
    assert told.messages == ["measured in eager with 3 of 12 channels: 4.00x as fast as the original"]


def test_a_speedup_of_the_clock_is_met_and_told(clock):
    source = unfolded(block(), "block", (3, 8, 8))
    made = remove(source, options(), device=torch.device("cpu"), reporter=Collected())
    assert len(made.keep["conv1"]) == 6 and made.measured == 2.0


def test_time_is_measured_in_the_runtime_that_is_asked_for(clock, monkeypatch):
    source, prepared = unfolded(block(), "block", (3, 8, 8)), []

    class Noted:
        name = "onnxruntime"

        def prepare(self, module, example):
            prepared.append((module.conv1.out_channels, tuple(example.shape)))
            return module

    monkeypatch.setattr(measured, "runtime", lambda name, layout: Noted())
    monkeypatch.setattr(measured, "require_installed", lambda name: None)
    told = Collected()
    cost = MeasuredCost(source, options(runtime="onnxruntime"), torch.device("cpu"), told)
    assert cost({"conv1": [0, 3, 4]}) == 0.25 and prepared == [(12, (3, 3, 8, 8)), (3, (3, 3, 8, 8))]
    assert told.messages == ["measured in onnxruntime with 3 of 12 channels: 4.00x as fast as the original"]


def test_a_runtime_that_cannot_measure_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(DecompError, match=r"needs onnxruntime, onnx, onnxscript, not installed; pip install"):
        require_runtime(options(runtime="onnxruntime"), torch.device("cpu"))
    monkeypatch.undo()
    with pytest.raises(DecompError, match="is measured on cpu only, got the device cuda"):
        require_runtime(options(runtime="onnxruntime"), torch.device("cuda"))
    with pytest.raises(UsageError, match="--layout: must be one of contiguous, got 'channels-last'"):
        options(runtime="onnxruntime", latency_layout="channels-last")
    with pytest.raises(UsageError, match="--runtime: decides only where the cost is latency, got onnxruntime"):
        options(cost="macs", latency_batch=64, runtime="onnxruntime")
    require_runtime(options(cost="macs", latency_batch=64), torch.device("cuda"))  # nothing is measured
