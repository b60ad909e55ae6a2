"""A stage that is killed or interrupted anywhere and run again gives the bytes of an uninterrupted run."""

import random
import re
import shutil

import pytest

from tests.pipelines.forked import STAGES, litter, results

KILLED, INTERRUPTED = -9, 130


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.fault("killed on the way", "SIGKILL at a disk step or a random moment, twice in every stage of one run")
def test_killed_twice_in_every_stage_the_weights_are_the_same(stages, whole, record_property):
    """Eight kills on the way of one run: each stage at one of its disk steps, and after some of its time."""
    ended, wanted = whole
    draw, run, kills = random.Random(6), stages.folder / "killed", 0
    for stage in STAGES:
        before = stages.start(stage, run, kill_at=draw.randint(1, ended[stage].steps))
        assert before.code == KILLED, before.text
        before = stages.start(stage, run, kill_after=draw.uniform(0, 0.8 * ended[stage].seconds))
        assert before.code in (KILLED, 0), before.text
        kills += 1 + (before.code == KILLED)
        stages.resume(stage, run)
    assert_same(results(run), wanted)
    record_property("times", kills)


@pytest.mark.fault("interrupted", "SIGINT half-way through every stage")
def test_ctrl_c_stops_with_the_command_that_continues(stages, whole, record_property):
    ended, wanted = whole
    run = stages.folder / "interrupted"
    for stage in STAGES:
        before = stages.start(stage, run, signal_at=ended[stage].steps // 2)
        assert before.code == INTERRUPTED and "Traceback" not in before.text
        *_, last = before.text.strip().splitlines()
        assert re.match(r"stopped; (nothing of this command is kept. To begin again|kept: .*. To go on): decomp ", last)
        assert str(run) in last
        assert litter(run) == []
        stages.resume(stage, run)
    assert_same(results(run), wanted)
    record_property("times", len(STAGES))


@pytest.fixture(scope="module")
def prepared(stages, whole):
    """For each stage a run in which all stages before it are done."""
    run, copies = stages.folder / "prepared", {}
    for stage in STAGES:
        copies[stage] = stages.folder / f"before-{stage}"
        if run.exists():
            shutil.copytree(run, copies[stage])
        stages.start(stage, run)
    return copies


def begin(prepared, stage, run):
    shutil.rmtree(run, ignore_errors=True)
    if prepared[stage].exists():
        shutil.copytree(prepared[stage], run)


@pytest.mark.fault("killed at a disk step", "SIGKILL before every rename, flush, removal of every stage in turn")
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_every_disk_step(stages, whole, prepared, stage, record_property):
    ended, wanted = whole
    run, kills = stages.folder / f"every-{stage}", 0
    for step in range(1, ended[stage].steps + 1):
        begin(prepared, stage, run)
        assert stages.start(stage, run, kill_at=step).code == KILLED
        stages.finish(stage, run)
        assert_same(results(run), wanted)
        kills += 1
    record_property("times", kills)
    print(f"\n{stage}: killed at {kills} disk steps, {kills} survived")


@pytest.mark.fault("killed at any moment", "SIGKILL after a random time, and again while it recovers")
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments(stages, whole, prepared, stage, record_property):
    ended, wanted = whole
    draw, run, kills = random.Random(stage), stages.folder / f"random-{stage}", 0
    tries, longest = 0, ended[stage].seconds
    while kills < 15:
        tries += 1
        assert tries <= 40, "the moments must lie within the stage"
        begin(prepared, stage, run)
        for attempt in ("fresh", "recovering"):
            disturbed = stages.start(stage, run, kill_after=draw.uniform(0, longest))
            kills += disturbed.code == KILLED
            if disturbed.code == 0 and attempt == "fresh":  # the machine has become faster since the first run
                longest = min(longest, disturbed.seconds)
        stages.finish(stage, run)
        assert_same(results(run), wanted)
    record_property("times", kills)
    print(f"\n{stage}: killed at {kills} random moments, {kills} survived")
