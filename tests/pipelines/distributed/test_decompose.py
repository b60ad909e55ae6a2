"""`decompose` in two processes: the plan and weights of one, the same bytes when repeated, and an orderly end."""

import shutil

import numpy as np
import pytest

from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.distributed.test_jobs import distance

LINE = "decompose --speedup 2x -v --device cpu --run"


@pytest.fixture(scope="module")
def made(jobs):
    """The runs that one process, and two of them, have made of the same frozen points; and what the two printed."""
    jobs.well(
        1, "train --model net.py:build --data digits --batch-size 101 --device cpu --epochs 1 --out d.safetensors"
    )
    freeze = "freeze --model net.py:build --weights d.safetensors --data digits --images 520 --device cpu --run"
    jobs.well(1, f"{freeze} points")
    for name in ("one", "two", "again", "killed0", "killed1"):
        shutil.copytree(jobs.folder / "points", jobs.folder / name)
    jobs.well(1, f"{LINE} one")
    text = jobs.well(2, f"{LINE} two")
    return RunDirectory(jobs.folder / "one"), RunDirectory(jobs.folder / "two"), text


def weights(run):
    return run.model_dir / "weights.safetensors"


def files(run):
    """Bytes of everything that was computed, by path."""
    found = [*run.layers_dir.rglob("*"), *run.model_dir.rglob("*"), run.plan_json, run.curves]
    return {path.relative_to(run.path): path.read_bytes() for path in found if path.is_file()}


def test_two_processes_make_the_plan_and_the_weights_of_one(made):
    one, two, _ = made
    assert one.plan_json.read_bytes() == two.plan_json.read_bytes()
    assert distance(weights(one), weights(two)) < 1e-6
    with np.load(one.curves) as before, np.load(two.curves) as after:
        numbers = [name for name in before if before[name].dtype.kind == "f"]
        assert len(numbers) > 6 and set(before) == set(after)
        for name in numbers:
            assert np.allclose(before[name], after[name], rtol=1e-8, atol=1e-12)


def test_two_processes_report_the_errors_and_the_closeness_of_one(made):
    before, after = (run.config("decompose") for run in made[:2])
    assert before["layers"][0]["rows"] == after["layers"][0]["rows"] == 4680
    for one, two in zip(before["layers"], after["layers"], strict=True):
        for step, errors in one["errors"].items():
            assert two["errors"][step] == pytest.approx(errors, rel=1e-5, abs=1e-9)
    for name in ("images", "relative", "kl", "agreement"):
        assert after["fidelity"][name] == pytest.approx(before["fidelity"][name], rel=1e-5)
        assert after["fidelity"]["fitted"][name] == pytest.approx(before["fidelity"]["fitted"][name], rel=1e-5)
    assert after["passes"] == pytest.approx(before["passes"], abs=0.2)


def test_only_the_first_process_prints_and_it_says_what_was_exchanged(made):
    *_, text = made
    assert text.count("loading") == text.count("error curves: 3 layers") == text.count("decomposed") == 1
    assert "2 processes, each gave " in text and "decomp-process" not in text


def test_two_processes_make_the_same_bytes_again(jobs, made):
    jobs.well(2, f"{LINE} again")
    assert files(RunDirectory(jobs.folder / "again")) == files(made[1])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_in_one_line_and_another_number_goes_on(jobs, made, rank):
    run = RunDirectory(jobs.folder / f"killed{rank}")
    codes, text = jobs.command(2, f"{LINE} {run.path}", kill={"after": "4: reads", "rank": rank})
    assert codes[rank] == -9 and codes[1 - rank] > 0
    assert text.count("error:") == 1 and "Traceback" not in text
    assert "another one of this job has ended; start the same torchrun command again to go on." in text
    assert run.plan_json.is_file() and not run.model_dir.exists()
    n = (2, 1)[rank]
    jobs.well(n, f"{LINE} {run.path}")
    assert distance(weights(run), weights(made[0])) < 1e-6
    if n == 2:
        assert files(run) == files(made[1])


def test_what_several_processes_do_not_share_is_refused_with_a_way_out(jobs, made):
    asked = ("2x,3x", "2x --evaluate", "2x --export pt2", "2x --refine-blocks")
    for option in ("--max-drop 1%", *(f"--speedup {words}" for words in asked)):
        codes, text = jobs.command(2, f"decompose --run points {option}")
        assert min(codes) > 0 and text.count("error:") == 1
        assert "works in one process, got 2 processes of torchrun; leave it out, or start the command without" in text


def test_the_points_of_another_run_and_a_plan_reach_processes_that_do_not_see_them(jobs, made):
    one, *_ = made
    jobs.well(2, f"decompose --run planned --from points --plan {one.plan_json} --device cpu")
    assert distance(weights(one), weights(RunDirectory(jobs.folder / "planned"))) < 1e-6
