"""The verdict: cost, time and loss in one sentence, with what is known and no more."""

import pytest

from decomp.pipelines.measure.intervals import paired_difference
from decomp.pipelines.reporting.collect import NETWORK_COLUMNS
from decomp.pipelines.reporting.summary import Summary
from decomp.pipelines.reporting.tables import Table
from decomp.pipelines.reporting.verdict import best_of, faster, title, verdict, warnings


def report(counted=4.0, measured=2.1, before=0.943, after=0.936, changed=None, notes=(), **last):
    first = {"network": "original", "top1": before, "agreement": 1.0, "counted_speedup": 1.0, "measured_speedup": 1.0}
    second = {
        "network": "decomposed", "top1": after, "agreement": 0.97, "counted_speedup": counted,
        "measured_speedup": measured, **last,
    }  # fmt: skip
    conditions = {
        "n_images": 1000, "data": "photos", "batch_size": 64, "device": "CPU", "threads": 2, "layout": "contiguous",
    }  # fmt: skip
    classes = {"changed": {"decomposed": changed}} if changed else {}
    return {"rows": [first, second], "conditions": conditions, "notes": list(notes), "classes": classes}


def test_cost_time_and_loss_are_in_one_sentence():
    low, high = paired_difference(12, 5, 1000)
    assert verdict(report(changed={"lost": 12, "won": 5}), None) == (
        "4.0x fewer multiply-accumulates, 2.1x as fast in eager PyTorch at batch 64 on this CPU with 2 threads, "
        f"0.7 points lost (94.3 → 93.6 %, ±{50 * (high - low):.1f}: within chance)."
    )
    assert 50 * (high - low) < 1  # two independent shares of these would give 2.1
    certain = verdict(report(after=0.843, changed={"lost": 102, "won": 2}), None)
    assert "10.0 points lost" in certain and "chance" not in certain


def test_without_counts_of_changed_images_the_interval_is_that_of_two_independent_shares():
    assert "0.7 points lost (94.3 → 93.6 %, ±2.1: within chance)" in verdict(report(), None)


def test_a_network_that_is_better_or_no_faster_is_said_to_be():
    words = verdict(report(measured=1.01, before=0.9, after=0.93, changed={"lost": 5, "won": 35}), None)
    assert "no faster (1.01x)" in words and "3.0 points won (90.0 → 93.0 %" in words
    assert [faster(x) for x in (0.7, 0.94, 0.95, 1.05, 1.06)] == [
        "slower (0.70x as fast)", "slower (0.94x as fast)", "no faster (0.95x)", "no faster (1.05x)", "1.1x as fast",
    ]  # fmt: skip


def test_without_labels_the_likeness_to_the_original_is_given():
    assert "same top class as the original on 97.0 % (95 % interval" in verdict(report(after=None), None)
    values = verdict(report(after=None, agreement=None, lost=0.0312), None)
    assert values.endswith("outputs differ by 3.1 % of their variance.")


def test_before_evaluate_only_the_count_is_claimed():
    summary = Summary("m", 4.0, 400, 100, 10, 5, {"words": "outputs differ by 2 %\nscores: 1 %"}, [])
    words = verdict(None, summary)
    assert words == ("4.0x fewer multiply-accumulates; outputs differ by 2 %; accuracy and time are not measured yet.")
    assert verdict(None, None) is None
    unknown = report(after=None, agreement=None)  # evaluated without test images
    assert verdict(unknown, summary).endswith("2 threads, outputs differ by 2 %.")


def test_the_title_names_what_was_measured():
    config = {"stages": {"freeze": {"asked": {"model": "zoo:x"}}}}
    assert title(config, None) == "zoo:x, not decomposed yet"
    config["stages"]["decompose"] = {}
    assert title(config, None) == "zoo:x, decomposed: cost counted, accuracy and time not measured"
    config["stages"]["finetune"] = {"facts": {"best_epoch": 0}}  # no epoch improved it
    assert title(config, None) == "zoo:x, decomposed: cost counted, accuracy and time not measured"
    del config["stages"]["finetune"]
    assert title(config, report()) == (
        "zoo:x, decomposed: accuracy on 1,000 test images of photos, time of a batch of 64"
    )


def test_a_speed_up_that_time_does_not_follow_comes_with_commands_to_try():
    (line,) = warnings(report(counted=4.0, measured=1.0), "runs/a", "decomp")
    assert "4.00x and 1.00x" in line and "--layout channels-last" in line and "--cost latency --batch-size 64" in line
    assert "docs/aim-at-latency.md" in line
    assert warnings(report(counted=2.0, measured=1.8), "runs/a", "decomp") == []
    noisy = report(counted=2.0, measured=1.8, notes=["unreliable latencies: x", "other"])
    assert warnings(noisy, "runs/a", "decomp") == ["Unreliable latencies: x."]
    assert "1.8x as fast in eager PyTorch (not reliable, the machine was busy)" in verdict(noisy, None)
    assert "busy" not in verdict(report(), None)


@pytest.mark.parametrize("slow, words", [(1.5, "Most accurate: b, decomposed"), (3.0, "Most accurate and fastest: b")])
def test_of_several_runs_the_most_accurate_and_the_fastest_are_named(slow, words):
    def row(run, top1, speedup):
        return (run, "decomposed", 10, 1, top1, top1, 0.9, 0.0, 1.0, 1.0, 1.0, 2.0, speedup, None, 100)

    text = best_of(Table("accuracy", NETWORK_COLUMNS, [row("a", 0.8, 2.0), row("b", 0.9, slow)]))
    assert text.startswith(words) and ("fastest: a, decomposed: top-1 80.0 %" in text) == (slow < 2)
    assert best_of(Table("accuracy", NETWORK_COLUMNS, [("a", "original", *row("a", 1, 1)[2:])])) == ""


def timed(runtime, speedup, layout="contiguous", batch_size=64):
    conditions = {"runtime": runtime, "layout": layout, "device": "CPU x", "threads": 2, "batch_size": batch_size,
                  "precision": "float32"}  # fmt: skip
    times = [{"network": name, "latency_ms": 1.0, "quartiles_ms": [1.0, 1.0], "speedup": ratio, "reason": ""}
             for name, ratio in (("original", 1.0), ("decomposed", speedup))]  # fmt: skip
    return {"conditions": conditions, "networks": {"original": "a", "decomposed": "b"}, "times": times}


def test_the_verdict_names_each_runtime_that_was_measured_with_this_batch():
    found = report(measured=1.5)
    found["conditions"]["runtime"] = "onnxruntime"
    assert "1.5x as fast in ONNX Runtime at batch 64" in verdict(found, None)
    others = [timed("eager", 2.2), timed("eager", 2.5, "channels-last"), timed("compile", 9.0, batch_size=1)]
    found["latencies"] = [*others, timed("onnxruntime", 1.5)]
    words = "1.5x as fast in ONNX Runtime and 2.2x as fast in eager PyTorch and 2.5x as fast in eager PyTorch with"
    assert f"{words} channels last at batch 64 on this CPU" in verdict(found, None)


def test_of_several_times_on_a_busy_machine_all_are_said_to_be_unreliable():
    found = report(measured=1.1, notes=["unreliable latencies: x"])
    found["latencies"] = [timed("onnxruntime", 2.1), timed("eager", 1.1)]
    words = "1.1x as fast in eager PyTorch and 2.1x as fast in ONNX Runtime (both not reliable, the machine was busy)"
    assert words in verdict(found, None)
    found["latencies"].insert(0, timed("compile", 1.5))
    assert " (all not reliable, the machine was busy)" in verdict(found, None)


def test_other_runtimes_are_not_advised_where_one_was_tried_that_does_not_take_the_network():
    found = report(counted=4.0, measured=1.5)
    refused = timed("onnxruntime", None)
    for time in refused["times"]:
        time |= {"latency_ms": None, "quartiles_ms": None, "speedup": None, "reason": "onnxruntime: no operator"}
    found["latencies"] = [timed("eager", 1.5), refused]
    (line,) = warnings(found, "runs/a", "decomp")
    assert "--runtime all" not in line and "--layout channels-last" in line
    found["latencies"] = [timed("eager", 1.5)]
    assert "--runtime all" in warnings(found, "runs/a", "decomp")[0]


def test_what_to_try_leaves_out_what_was_measured_already_and_names_the_runtime():
    found = report(counted=4.0, measured=1.5)
    (line,) = warnings(found, "runs/a", "decomp")
    assert "1.50x in eager PyTorch" in line and "--runtime all --batch-size 64" in line
    assert "--speedup 1.8x --cost latency --batch-size 64`" in line
    found["conditions"]["runtime"] = "onnxruntime"
    found["latencies"] = [timed("eager", 2.2, "channels-last"), timed("onnxruntime", 1.5)]
    (line,) = warnings(found, "runs/a", "decomp")
    assert "--layout" not in line and "--runtime all" not in line
    assert "--cost latency --batch-size 64 --runtime onnxruntime`" in line


PLANNED = {"speedup": 1.304, "runtime": "onnxruntime", "batch_size": 64, "layout": "contiguous", "threads": 2}


def test_the_promise_of_the_plan_stands_beside_what_was_measured():
    found = report(counted=3.0, measured=1.24)
    found["conditions"] |= {"runtime": "onnxruntime", "planned": PLANNED}
    assert "1.2x as fast in ONNX Runtime (when it was planned: 1.30x) at batch 64" in verdict(found, None)
    # A plan by time that keeps its promise needs no advice to make one.
    assert warnings(found, "runs/a", "decomp") == []
    found["rows"][-1]["measured_speedup"] = 1.1
    assert "--cost latency" in warnings(found, "runs/a", "decomp")[0]
    found["latencies"] = [timed("onnxruntime", 1.1), timed("eager", 2.0)]
    assert "ONNX Runtime (when it was planned: 1.30x) and 2.0x as fast in eager PyTorch at batch" in verdict(
        found, None
    )
    for name, value, words in (
        ("batch_size", 1, "in ONNX Runtime at batch 1"), ("threads", 1, "in ONNX Runtime at batch 64 with 1 thread"),
        ("layout", "channels-last", "in ONNX Runtime with channels last at batch 64"),
    ):  # fmt: skip
        found["conditions"]["planned"] = {**PLANNED, name: value}
        assert verdict(found, None).endswith(f" (when it was planned: 1.30x {words}, not measured here).")
    found["conditions"]["planned"] = {**PLANNED, "speedup": None}  # sizes that were edited
    assert "planned" not in verdict(found, None)


def test_the_count_is_compared_with_the_fastest_runtime_and_a_plan_is_proposed_for_it():
    found = report(counted=3.0, measured=1.15)
    fast = timed("onnxruntime", 1.41)
    for time in fast["times"]:
        time["latency_ms"] = 0.1
    found["latencies"] = [fast, timed("eager", 1.15)]
    (line,) = warnings(found, "runs/a", "decomp")
    assert "3.00x and 1.41x in ONNX Runtime" in line
    assert "--speedup 1.7x --cost latency --batch-size 64 --runtime onnxruntime`" in line
    assert "evaluate --run runs/a --layout channels-last --batch-size 64`" in line
    fast["times"][1]["speedup"] = 2.9
    assert warnings(found, "runs/a", "decomp") == []


def test_the_verdict_begins_with_a_capital_letter():
    assert verdict(report(counted=0.8), None).startswith("No fewer multiply-accumulates, 2.1x as fast")
    assert verdict(None, Summary("m", 1.3, 100, 120, 5, 5, {}, [])).startswith("No fewer multiply-accumulates; acc")
