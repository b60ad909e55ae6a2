"""The benchmark of time by phase: each part counts in one column, and the last finished call of a stage counts."""

from benchmarks import phases


def event(stage, times, kind="end"):
    return {"event": kind, "stage": stage, "times": times}


def row(part, processor, seconds=1.0):
    return {"phase": "x", "part": part, "seconds": seconds, "processor_seconds": processor}


def test_parts_count_in_the_column_of_their_work():
    assert phases.group_of("rows and moments: forward") == "forward"
    assert phases.group_of("rows and moments") == "moments"
    assert phases.group_of("approximations: change of the outputs: forward") == "change of outputs"
    assert phases.group_of("approximations") == phases.group_of("curves: spatial") == "curves"
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
