"""Target of a compression in words, and the time that its plan promises."""

import pytest

from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.target import promise, promise_of_run, target_words

LATENCY = {
    "runtime": "onnxruntime", "batch_size": 1, "layout": "contiguous", "device": "CPU x", "threads": 2,
    "measured_speedup": 1.304, "original_ms": 24.0,
}  # fmt: skip
PROMISE = {
    "runtime": "onnxruntime", "batch_size": 1, "layout": "contiguous", "device": "CPU x", "threads": 2,
    "speedup": 1.304,
}  # fmt: skip
PRUNED = {"speedup": 1.5, "cost": "latency", "runtime": "openvino", "latency_batch": 8, "latency_layout": "contiguous"}


@pytest.mark.parametrize(
    "record, words",
    [
        ({"asked": {"speedup": 4.0}}, "4x"),
        ({"asked": {"speedup": 2.5, "cost": "params"}}, "2.5x in parameters"),
        (
            {"asked": {"speedup": 1.3, "cost": "latency", "runtime": "eager", "latency_batch": 64}},
            "1.3x in measured time in eager at batch 64",
        ),
        # A plan that was given: its own record says for which runtime it was made.
        ({"asked": {"speedup": 1.3, "cost": "latency", "runtime": None}}, "1.3x in measured time"),
        (
            {"asked": {"speedup": 1.3, "cost": "latency", "runtime": None}, "latency": LATENCY},
            "1.3x in measured time in onnxruntime at batch 1",
        ),
        ({"asked": {"ratio": 0.5}}, ""),
    ],
)
def test_a_target_is_told_with_its_quantity(record, words):
    assert target_words(record) == words


def test_the_promise_is_the_time_that_was_measured_for_the_plan_unless_its_sizes_were_edited():
    assert promise({"latency": LATENCY}) == PROMISE
    assert promise({"latency": {**LATENCY, "other_sizes": True}}) == {**PROMISE, "speedup": None}
    assert promise({"asked": {"speedup": 4.0}, "latency": {}}) == promise({}) == {}


def test_a_pruned_run_promises_what_was_measured_when_it_was_chosen(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    assert promise_of_run(run) == {}
    run.update_config("prune", {"asked": PRUNED, "measured": 1.52})
    assert promise_of_run(run) == {
        "speedup": 1.52, "runtime": "openvino", "batch_size": 8, "layout": "contiguous", "device": None,
        "threads": None,
    }  # fmt: skip
    run.update_config("prune", {"asked": {"speedup": 2.0, "latency_batch": None}, "measured": None})
    assert promise_of_run(run) == {}
