"""The benchmark of time by phase: each part counts in one column, and the last finished call of a stage counts."""

from types import SimpleNamespace

import torch

from benchmarks import phase_networks, phases
from decomp.cost.count import cost
from decomp.graph.tracing import trace


def event(stage, times, kind="end"):
    return {"event": kind, "stage": stage, "times": times}


def row(part, processor, seconds=1.0):
    return {"phase": "x", "part": part, "seconds": seconds, "processor_seconds": processor}


def test_parts_count_in_the_column_of_their_work():
    assert phases.group_of("rows and moments: forward") == "forward"
    assert phases.group_of("rows and moments") == "moments"
    assert phases.group_of("approximations: change of the outputs: forward") == "change of outputs"
    assert phases.group_of("approximations") == phases.group_of("curves: spatial") == "curves"
    assert phases.group_of("refinement of the blocks") == "blocks" and phases.group_of("refinement") == "refinement"
    assert phases.group_of("") == phases.group_of("something new") == "rest"


def test_a_row_has_the_last_finished_calls_and_their_sums():
    log = [
        event("freeze", [row("", 2.0)]),
        event("decompose", [row("gradients", 100.0)]),
        event("decompose", [row("gradients", 3.0, 4.0), row("refinement: forward", 5.0), row("", 0.25)]),
        {"event": "stop", "stage": "decompose", "took": 1.0},
    ]
    found = phases.row_of("n", 10, 32, log, 4.1)
    assert (found["freeze"], found["gradients"], found["refinement"], found["rest"]) == (2.0, 3.0, 5.0, 0.2)
    assert (found["all"], found["on the clock"], found["passes"]) == (10.2, 7.0, 4.1)
    assert phases.last_times(log, "finetune") == []
    assert set(phases.FIELDS) == set(found)


def test_the_time_of_a_call_that_was_stopped_counts_with_the_one_that_went_on():
    stopped, ended = event("decompose", [row("gradients", 3.0)], "stop"), event("decompose", [row("refinement", 1.0)])
    earlier = event("decompose", [row("gradients", 100.0)])
    assert phases.last_times([earlier, stopped, ended, stopped], "decompose") == stopped["times"] + ended["times"]


def test_networks_of_their_own_run_at_their_size():
    for name, outputs in (("efficientnet_lite0", (1000,)), ("text_detector", (2, 32, 32))):
        network = getattr(phase_networks, name)().eval()
        with torch.no_grad():
            assert network(torch.zeros(1, 3, 64, 64)).shape == (1, *outputs)
    lite = cost(trace(phase_networks.efficientnet_lite0(), "lite"), (3, 224, 224))
    assert 0.38e9 < lite.macs < 0.42e9 and 4.4e6 < lite.params < 4.8e6


def test_shapes_and_networks_are_asked_for_by_name():
    options = SimpleNamespace(shape=["vgg16"], images=None, size=224, speedup=4.0, networks="a,b")
    assert phases.asked(options) == [("torchvision:vgg16", 60, 128, 2.0)]
    options.images, options.shape = 7, None
    assert phases.asked(options) == [("a", 7, 224, 4.0), ("b", 7, 224, 4.0)]
