"""`decompose` in two processes: the plan and weights of one, the same bytes when repeated, and an orderly end."""

import shutil

import pytest

from decomp.pipelines.run.directory import RunDirectory

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


def test_two_processes_make_the_bytes_of_one(made):
    one, two, _ = made
    assert len(files(one)) > 6 and files(one) == files(two)


def test_two_processes_report_the_errors_and_the_closeness_of_one(made):
    before, after = (run.config("decompose") for run in made[:2])
    assert before["layers"][0]["rows"] == after["layers"][0]["rows"] == 4680
    for one, two in zip(before["layers"], after["layers"], strict=True):
        for step, errors in one["errors"].items():
            assert two["errors"][step] == errors
    for name in ("images", "relative", "kl", "agreement"):
        assert after["fidelity"][name] == before["fidelity"][name]
        assert after["fidelity"]["fitted"][name] == before["fidelity"]["fitted"][name]
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
    assert files(run) == files(made[0])


def test_two_processes_make_several_speedups_evaluate_and_export_them(jobs, made):
    line = "decompose --run points --speedup 2x,3x --evaluate --export safetensors --device cpu"
    text = jobs.well(2, line)
    members = [RunDirectory(jobs.folder / f"points-{speedup}x") for speedup in (2, 3)]
    assert files(members[0]) == files(made[0])
    assert all(run.report_json.is_file() and (run.export_dir / "decomposed.safetensors").is_file() for run in members)
    assert (jobs.folder / "points-comparison" / "compare.html").is_file()
    assert text.count("points-3x: exporting") == 1 and "decomp-process" not in text
    again = jobs.well(2, line)  # nothing is left to do, in any process
    assert "error curves" not in again and "decomposed" in again


def test_two_processes_find_the_largest_speedup_within_a_loss(jobs, made):
    text = jobs.well(2, "decompose --run points --max-drop 95% --device cpu")
    assert "largest speed-up within a loss of 95 %: 3x" in text and text.count("points of accuracy lost (") == 3


def test_two_processes_refine_blocks_as_one_does(jobs, made):
    for name in ("refined1", "refined2"):
        shutil.copytree(jobs.folder / "points", jobs.folder / name)
        text = jobs.well(int(name[-1]), f"decompose --speedup 2x --device cpu --run {name}")
        assert text.count("1 of 1 block refined") == text.count("; change of the outputs on") == 1
    one, two = (RunDirectory(jobs.folder / name) for name in ("refined1", "refined2"))
    assert files(one) == files(two)


def test_the_points_of_another_run_and_a_plan_reach_processes_that_do_not_see_them(jobs, made):
    one, *_ = made
    jobs.well(2, f"decompose --run planned --from points --plan {one.plan_json} --device cpu")
    assert weights(one).read_bytes() == weights(RunDirectory(jobs.folder / "planned")).read_bytes()


NARROW_AND_WIDE = """
import torch
from torch import nn

def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 48, 3, stride=2, padding=1), nn.ReLU6(), nn.Conv2d(48, 288, 1), nn.ReLU6(),
            nn.Conv2d(288, 288, 3, padding=1, groups=288), nn.ReLU6(), nn.Conv2d(288, 24, 1), nn.Flatten(),
            nn.Linear(384, 10),
        )
"""


def test_two_processes_make_the_bytes_of_one_of_layers_with_more_inputs_or_responses_than_rows(jobs):
    (jobs.folder / "wide.py").write_text(NARROW_AND_WIDE)
    freeze = "freeze --model wide.py:build --weights random --data digits --images 120 --points 1 --no-mix"
    jobs.well(1, f"{freeze} --device cpu --run wide1")
    shutil.copytree(jobs.folder / "wide1", jobs.folder / "wide2")
    for n in (1, 2):
        jobs.well(n, f"decompose --speedup 2x --no-refine-blocks --device cpu --run wide{n}")
    one, two = (RunDirectory(jobs.folder / f"wide{n}") for n in (1, 2))
    # 288 inputs of 108 rows, which are kept, and 288 responses of 48 inputs; the second process has 20 of 120 images.
    assert one.config("decompose")["layers"][3]["rows"] == 108
    assert len(files(one)) > 6 and files(one) == files(two)
