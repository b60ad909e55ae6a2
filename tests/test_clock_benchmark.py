"""The benchmark of asked and measured time: which repetitions count, which keep the promise, what is missing."""

import json
import sys

import numpy as np
import pytest

from benchmarks import clock, clock_images, clock_page, clock_planning, clock_shapes
from decomp.cost.count import cost
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from tests.pipelines.digit_runs import plain


def row(measured, busy=False, **others):
    """A repetition of a plan for twice the speed."""
    kept = {"network": "n", "runtime": "eager", "asked": 2, "planned": 2.0, "table_error": 0.1, "seconds": 9.0}
    return {**kept, "measured_speedup": measured, "busy": busy, **others}


def test_promise_is_kept_between_97_and_110_percent():
    rows = [row(1.93), row(1.95), row(2.19), row(2.21)]
    (entry,) = clock_page.summary(rows)
    assert entry["kept"] == "2 of 4" and (entry["low"], entry["high"]) == (1.93, 2.21)
    assert clock_page.verdict(rows).startswith("Kept: 2 of 4 repetitions within 0.97 to 1.10 of what was asked.")


def test_busy_repetitions_are_marked_and_count_only_when_asked():
    rows = [row(2.0), row(9.0, True), row(9.0, True)]
    (entry,), (with_busy,) = clock_page.summary(rows), clock_page.summary(rows, True)
    assert (entry["kept"], entry["busy"], entry["measured"]) == ("1 of 1", 2, 2.0)
    assert (with_busy["kept"], with_busy["measured"]) == ("1 of 3", 9.0)
    assert "2 on a busy machine are left out." in clock_page.verdict(rows)


def test_repetitions_of_a_plan_made_on_a_busy_machine_do_not_count():
    rows = [row(2.0, plan_busy=False), row(1.2, plan_busy=True), row(1.3, busy=True, plan_busy=True)]
    (entry,) = clock_page.summary(rows)
    assert (entry["kept"], entry["busy"], entry["measured"]) == ("1 of 1", 2, 2.0)
    assert "2 on a busy machine are left out (2 of them of plans that the command called uncertain each time)" in (
        clock_page.verdict(rows)
    )


def test_plans_that_were_made_again_are_counted_and_the_last_one_is_shown():
    tries = [{"planned": 2.1, "plan_busy": True}, {"planned": 2.0, "plan_busy": False}]
    old = [row(1.5, planned=2.1, plan_busy=True)]
    rows = [*old, row(2.0, planned=2.0, tries=tries), row(2.0, planned=2.0, tries=tries), row(2.0, asked=1.9)]
    first, second = clock_page.summary(rows)
    assert (first["plans"], first["planned"], first["kept"], first["busy"]) == (2, 2.0, "2 of 2", 1)
    assert second["plans"] == 1
    assert "1 plan was made again, as the command called the one before uncertain." in clock_page.verdict(rows)


def test_errors_of_the_table_count_once_for_each_plan_and_refusals_have_their_line():
    rows = [row(2.0), row(2.0), row(3.0, asked=3, table_error=-0.3), row(4.1, asked=4, slower=1.5, faster=2.0)]
    rows.append({"network": "n", "runtime": "eager", "asked": 5, "refused": "at most 2x was measured"})
    said = clock_page.verdict(rows)
    assert "Refused: 1." in said and "is off by 10 % in the median and 30 % at most" in said
    assert clock_page.notes(rows) == [
        "- n in eager at 4x: the closest sizes measured 1.50x and 2.00x.",
        "- n in eager at 5x: refused. at most 2x was measured",
    ]
    assert len(clock_page.summary(rows)) == 3


def test_each_repetition_that_failed_has_a_line_with_the_reason():
    signs = ["the original takes 1.90 times as long as at other times"]
    rows = [
        row(2.0),
        row(1.85, planned=2.04, plan_original_ms=0.3678, original_ms=0.3813),
        row(9.0, True, planned=2.04, signs=signs),
        row(8.0, True, planned=2.04),
        row(7.0, planned=2.04, plan_busy=True, plan_signs=["the speed-up differs by 9 %"]),
        row(1.8, planned=2.04, code="before"),
    ]
    assert clock_page.notes(rows) == [
        "- n in eager at 2x: measured 1.85x, planned 2.04x; promise broken, on a machine without a sign of being busy; "
        "the original took 0.368 ms in the plan, 0.381 ms here.",
        f"- n in eager at 2x: measured 9.00x, planned 2.04x; not counted, busy: {signs[0]}.",
        "- n in eager at 2x: measured 8.00x, planned 2.04x; not counted, busy: the signs were not kept.",
        "- n in eager at 2x: measured 7.00x, planned 2.04x; not counted, as the command called its plan uncertain: the "
        "speed-up differs by 9 %.",
        "- n in eager at 2x, before: measured 1.80x, planned 2.04x; promise broken, on a machine without a sign of "
        "being busy.",
    ]


def test_rows_of_several_codes_stay_apart_and_have_a_column_and_a_verdict_each():
    rows = [row(2.0), row(1.5, code="before"), row(2.1, code="before")]
    first, second = clock_page.summary(rows)
    assert (first["code"], first["kept"], second["code"], second["kept"]) == ("", "1 of 1", "before", "1 of 2")
    text = clock_page.page(rows, 2, False, clock.__doc__)
    assert "- without a label: Kept: 1 of 1 repetitions" in text and "- before: Kept: 1 of 2 repetitions" in text
    assert "| code | network |" in text and "| before | n | eager | 2 | 1 | 2 | 1.8 |" in text
    alone = clock_page.page(rows[:1], 2, False, clock.__doc__)
    assert "\n\nKept: 1 of 1 repetitions" in alone and "| network | runtime |" in alone and "code:" not in alone


def test_page_has_the_protocol_the_table_and_its_picture(tmp_path):
    rows, path = [row(2.0), row(2.1)], tmp_path / "clock.md"
    clock_page.write(path, clock_page.page(rows, 2, False, clock.__doc__), rows, False)
    text = path.read_text()
    assert "| n | eager | 2 | 1 | 2 | 2.05 |" in text
    assert "2 threads" in text and "A repetition keeps the promise" in text
    assert "(clock.png)" in text and (tmp_path / "clock.png").stat().st_size > 1000


def planned_in(seconds, cost, **others):
    row = {"network": "n", "images": 9, "asked": 2.0, "cost": cost, "seconds": seconds, "processor seconds": 70.0}
    return {**row, **others}


def test_planning_time_is_compared_with_that_of_the_same_network_images_and_target():
    rows = [planned_in(40.0, "macs"), planned_in(20.0, "eager"), planned_in(99.0, "eager", images=5)]
    lines = clock_planning.table(rows).splitlines()
    assert lines[2:] == [
        "| n | 9 | 2 | macs | 40 | 40 | 70 | 1 |", "| n | 9 | 2 | eager | 20 | 60 | 140 | 1.5 |",
        "| n | 5 | 2 | eager | 99 |  |  |  |",
    ]  # fmt: skip
    text = clock_page.page([row(2.0)], 2, False, clock.__doc__, rows)
    assert "## Time of planning" in text and lines[3] in text
    assert "Time of planning" not in clock_page.page([row(2.0)], 2, False, "Protocol: none.")


def test_processor_seconds_are_those_of_the_command_and_a_failed_one_ends_the_benchmark(monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys\nsum(range(3_000_000))\nsys.exit(int(sys.argv[1]))")
    monkeypatch.setattr(clock_planning, "CLI", program)
    seconds, processor = clock_planning.timed("0")
    assert 0.02 < processor and seconds > 0
    with pytest.raises(SystemExit, match="^decomp 3 ended with status 3$"):
        clock_planning.timed("3")


def test_planning_is_measured_once_for_each_cost_and_goes_on_with_those_missing(tmp_path, monkeypatch, capsys):
    called = []

    def timed(*arguments):
        runtime = arguments[arguments.index("--runtime") + 1] if "--runtime" in arguments else ""
        source = arguments[arguments.index("--from") + 1].rpartition("/")[2]
        called.append((arguments[0], arguments[arguments.index("--cost") + 1], runtime, source))
        return (20.0, 30.0) if runtime else (10.0, 15.0)

    monkeypatch.setattr(clock_planning, "timed", timed)
    monkeypatch.setattr(clock_planning, "stage", lambda log, name, *_: called.append((name, "", "")))
    command = ["clock_planning", "--network", "zoo:a", "--images", "5", "--out", str(tmp_path)]
    for runtimes in ("eager", "eager,compile"):
        monkeypatch.setattr(sys, "argv", [*command, "--runtimes", runtimes])
        clock_planning.main()
    froze, surveyed = ("freeze", "", ""), "planning-zoo-a-5-2x-macs"
    first = [froze, ("decompose", "macs", "", "planning-zoo-a-5"), ("decompose", "latency", "eager", surveyed)]
    assert called == [*first, froze, ("decompose", "latency", "compile", surveyed)]
    assert "| zoo:a | 5 | 2 | compile | 20 | 30 | 45 | 3 |" in capsys.readouterr().out


class Recorded(clock.Clock):
    """The benchmark with processes that answer at once."""

    def __init__(self, out, *arguments, refused="", uncertain=0):
        super().__init__(clock.parsed(["--out", str(out), "--networks", "zoo:a", "--runtimes", "eager", *arguments]))
        self.refused, self.called, self.uncertain = refused, [], uncertain
        self.code = {"code": self.options.label} if self.options.label else {}

    def child(self, *arguments):
        self.called.append(arguments[0])
        return {"measured_speedup": 2.0, "busy": False}

    def decomp(self, *arguments):
        self.called.append(arguments[0] + " again" * ("--redo" in arguments))
        if arguments[0] == "decompose" and not self.refused:
            run = self.out / self.label({"network": "zoo:a", "runtime": "eager", "asked": 2, **self.code})
            (run / "model").mkdir(parents=True, exist_ok=True)
            (run / "model" / "structure.json").touch()
            self.uncertain -= 1
            latency = {
                "measured_speedup": round(2.01 + 0.01 * self.uncertain, 3),
                "table_error": 0.2,
                "original_ms": 5.0,
            }
            (run / "plan.json").write_text(json.dumps({"latency": {**latency, "busy": self.uncertain >= 0}}))
        return self.refused if arguments[0] == "decompose" else ""


def test_an_interrupted_benchmark_goes_on_with_the_repetitions_that_are_missing(tmp_path):
    first = Recorded(tmp_path, "--asked", "2", "--repetitions", "2")
    first.run()
    assert first.called == ["freeze", "decompose", "--time", "--time"]
    (tmp_path / "zoo-a").mkdir()
    (tmp_path / "zoo-a" / "frozen.h5").touch()
    more = Recorded(tmp_path, "--asked", "2", "--repetitions", "3")
    more.run()
    assert more.called == ["--time"]
    rows = clock.read_rows(tmp_path / "rows.jsonl")
    assert len(rows) == 3 and rows[0]["planned"] == 2.0 and rows[0]["table_error"] == 0.2


def test_another_label_of_the_code_has_plans_and_rows_of_its_own(tmp_path):
    Recorded(tmp_path, "--asked", "2", "--repetitions", "1").run()
    labelled = Recorded(tmp_path, "--asked", "2", "--repetitions", "1", "--label", "after")
    labelled.run()
    assert labelled.called == ["freeze", "decompose", "--time"]
    for label in ((), ("--label", "after")):
        again = Recorded(tmp_path, "--asked", "2", "--repetitions", "1", *label)
        again.run()
        assert not again.called
    assert [one.get("code") for one in clock.read_rows(tmp_path / "rows.jsonl")] == [None, "after"]


def test_rows_of_a_folder_without_a_label_get_the_one_that_is_given(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rows.jsonl").write_text(json.dumps(row(2.0)) + "\n" + json.dumps(row(2.1, code="own")) + "\n")
    options = clock.parsed(["--out", str(tmp_path), "--label", "now", "--also", f"{tmp_path / 'old'}=before,x"])
    assert clock.folders_of(options) == [(tmp_path, "now"), (tmp_path / "old", "before"), (clock.Path("x"), "")]
    assert [one["code"] for one in clock.rows_of(tmp_path / "old", "before")] == ["before", "own"]
    assert [one.get("code") for one in clock.rows_of(tmp_path / "old", "")] == [None, "own"]


@pytest.mark.parametrize(("uncertain", "made", "busy"), [(1, 2, False), (2, 3, False), (5, 3, True)])
def test_a_plan_that_the_command_calls_uncertain_is_made_again_at_most_twice(tmp_path, uncertain, made, busy):
    benchmark = Recorded(tmp_path, "--asked", "2", "--repetitions", "1", uncertain=uncertain)
    benchmark.run()
    assert benchmark.called == ["freeze", "decompose", *["freeze", "decompose again"] * (made - 1), "--time"]
    (found,) = clock.read_rows(tmp_path / "rows.jsonl")
    assert [one["plan_busy"] for one in found["tries"]] == [True] * (made - 1) + [busy] and found["plan_busy"] == busy
    assert found["planned"] == found["tries"][-1]["planned"]
    more = Recorded(tmp_path, "--asked", "2", "--repetitions", "1")
    more.run()
    assert not more.called


def test_a_refusal_on_a_busy_machine_is_tried_again_and_then_recorded_once(tmp_path):
    refused = "error: at most 2x was measured; the machine was busy: it"
    Recorded(tmp_path, "--asked", "3", refused=refused).run()
    benchmark = Recorded(tmp_path, "--asked", "3", refused=refused)
    benchmark.run()
    assert not benchmark.called
    (found,) = clock.read_rows(tmp_path / "rows.jsonl")
    assert found["refused"] == refused and len(found["tries"]) == 3


def test_an_uncertain_plan_of_an_older_folder_is_made_again_and_its_rows_are_not_those_of_the_new_one(
    tmp_path,
):
    old = row(1.5, network="zoo:a", planned=2.5, plan_busy=True)
    (tmp_path / "rows.jsonl").write_text(json.dumps(old) + "\n")
    benchmark = Recorded(tmp_path, "--asked", "2", "--repetitions", "1")
    benchmark.run()
    assert benchmark.called == ["freeze", "decompose", "--time"]
    assert [one["planned"] for one in clock.read_rows(tmp_path / "rows.jsonl")] == [2.5, 2.0]


def test_commands_of_the_benchmark_know_the_times_of_this_benchmark_alone(tmp_path):
    assert Recorded(tmp_path).environment()["DECOMP_KNOWN_TIMES"] == str(tmp_path / "known_times.json")


def test_a_refused_plan_is_recorded_and_not_tried_again(tmp_path):
    for called in (["freeze", "decompose"], []):
        benchmark = Recorded(tmp_path, "--asked", "3", refused="at most 2x")
        benchmark.run()
        assert benchmark.called == called
    assert clock.read_rows(tmp_path / "rows.jsonl")[0]["refused"] == "at most 2x"


def test_a_repetition_is_held_against_the_shortest_time_of_the_original_in_its_runtime(tmp_path):
    benchmark = Recorded(tmp_path)
    assert benchmark.fastest({"network": "n", "runtime": "eager", "asked": 2}) is None
    for time, others in ((5.0, {}), (4.0, {"asked": 3}), (1.0, {"runtime": "compile"}), (2.0, {"network": "m"})):
        benchmark.append(row(2.0, original_ms=time, **others))
    key = {"network": "n", "runtime": "eager", "asked": 2}
    assert benchmark.fastest(key) == 4.0
    (tmp_path / "n-eager-2x.tries.json").write_text(json.dumps([{"plan_original_ms": 3.5}, {"refused": "at most"}]))
    assert benchmark.fastest(key) == 3.5 and benchmark.fastest({**key, "asked": 3}) == 4.0  # its plan counts too


def test_no_step_begins_when_the_minutes_are_over(tmp_path, monkeypatch, capsys):
    benchmark = Recorded(tmp_path, "--asked", "2", "--minutes", "1")
    clock.Clock.require_time(benchmark)
    monkeypatch.setattr(clock.time, "monotonic", lambda: benchmark.start + 61)
    with pytest.raises(clock.OutOfTime):
        clock.Clock.require_time(benchmark)
    monkeypatch.setattr(benchmark, "child", lambda *_: clock.Clock.require_time(benchmark))
    benchmark.run()
    assert "minutes are over; the same command goes on" in capsys.readouterr().out


def test_quick_changes_defaults_and_not_what_is_given(monkeypatch):
    quick = clock.parsed(["--quick", "--repetitions", "4", "--threads", "2"])
    assert (quick.images, quick.repetitions, quick.minutes, quick.threads) == (200, 4, 3.3, 2)
    monkeypatch.setattr(sys, "argv", ["clock"])
    assert clock.parsed().images == 1000 and clock.parsed().minutes == 0


def test_images_without_fashion_mnist_are_the_same_at_every_call(monkeypatch, tmp_path):
    images = clock_images.images()
    assert images.shape == (600, 28, 28) and images.dtype == np.uint8 and (images == clock_images.images()).all()
    assert 30 < images.std() < 70
    monkeypatch.setattr(clock, "DEBIAN_FASHION", tmp_path / "absent")
    assert clock.data_of("auto").endswith("clock_images.py:images") and clock.data_of("digits") == "digits"


def test_losses_by_formula_fall_to_zero_at_full_size_and_weigh_layers_by_their_work():
    graph = NetworkGraph(trace(plain().eval(), "net"), (1, 8, 8), "net")
    whole = cost(graph.module, (1, 8, 8)).per_layer
    curves = clock_shapes.curves_of(graph, whole)
    found = {layer.name: dict(curves[layer.name].by_size())["channel_rank"] for layer in graph.layers}
    known = {name: curve for name, curve in found.items() if curve is not None}
    assert len(known) > 1
    for name, curve in known.items():
        share = (whole[name] / sum(whole.values())) ** 0.5
        assert curve[0] == pytest.approx(share) and curve[-1] == 0 and (np.diff(curve) < 0).all()
        assert len(curve) == graph.layer(name).out_channels + 1
