"""Commands in two processes: the same results as in one, the same bytes when repeated, and an orderly end."""

import json
import re

import pytest
from pytest import approx
from safetensors.torch import load_file

from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.forked import frozen_values

TRAIN = "train --model net.py:build --data digits --batch-size 101 --device cpu"
FINETUNE = "finetune --epochs 2 --batch-size 51 --seed 3 --device cpu"


def distance(one, other):
    """Relative distance of all weights, as one vector."""
    one, other = load_file(one), load_file(other)
    squares = [
        ((one[name].double() - other[name].double()) ** 2).sum() for name in one if one[name].is_floating_point()
    ]
    norms = [(one[name].double() ** 2).sum() for name in one if one[name].is_floating_point()]
    return float(sum(squares) / sum(norms)) ** 0.5


@pytest.fixture(scope="module")
def trained(jobs):
    """Weights of one training in one process and in two."""
    jobs.well(1, f"{TRAIN} --epochs 2 --out one.safetensors")
    text = jobs.well(2, f"{TRAIN} --epochs 2 --out two.safetensors")
    return jobs.folder / "one.safetensors", jobs.folder / "two.safetensors", text


@pytest.fixture(scope="module")
def decomposed(jobs, trained):
    jobs.well(1, "freeze --model net.py:build --weights one.safetensors --data digits --images 100 --run base")
    jobs.well(1, "decompose --run base --speedup 2x --allocation uniform")
    return "base"


def test_two_processes_train_the_weights_of_one(trained):
    one, two, _ = trained
    assert distance(one, two) < 1e-6
    records = [json.loads(file.with_suffix(".json").read_text()) for file in (one, two)]
    assert records[0]["accuracy"] == records[1]["accuracy"]


def test_only_the_first_process_prints(trained):
    *_, text = trained
    assert text.count("loading") == text.count("epoch 1 of 2") == text.count("weights: two.safetensors") == 1
    assert "decomp-process" not in text


def test_the_same_number_of_processes_gives_the_same_bytes(jobs, trained):
    jobs.well(2, f"{TRAIN} --epochs 2 --out again.safetensors")
    assert (jobs.folder / "again.safetensors").read_bytes() == trained[1].read_bytes()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_in_one_line_and_another_number_goes_on(jobs, trained, rank):
    line = f"{TRAIN} --epochs 4 --out killed{rank}.safetensors"
    codes, text = jobs.command(2, line, kill={"after": "epoch 2 of 4", "rank": rank})
    assert codes[rank] == -9 and codes[1 - rank] > 0
    assert text.count("error:") == 1 and "Traceback" not in text
    assert "another one of this job has ended; start the same torchrun command again to go on." in text
    assert re.search("resuming after epoch [23] of 4", jobs.well(1, line))
    if rank == 1:
        jobs.well(1, f"{TRAIN} --epochs 4 --out whole.safetensors")
        # Two processes sum in another order than one; training lets the difference grow (4e-5 on another processor).
        assert distance(jobs.folder / "whole.safetensors", jobs.folder / "killed1.safetensors") < 2e-4


def test_two_processes_tune_with_and_without_labels_as_one(jobs, decomposed):
    for labels in ("train", "none"):
        for n in (1, 2):
            jobs.well(n, f"{FINETUNE} --run base --labels {labels} --redo")
            tuned = jobs.folder / "base" / "finetune" / "last" / "weights.safetensors"
            tuned.rename(jobs.folder / f"{labels}{n}.safetensors")
        one, two = (jobs.folder / f"{labels}{n}.safetensors" for n in (1, 2))
        assert 0 < distance(one, jobs.folder / "base" / "model" / "weights.safetensors")
        assert distance(one, two) < 1e-6


def test_two_processes_record_the_frozen_points_of_one_bit_for_bit(jobs, trained):
    records = []
    for n in (1, 2):
        # Three batches: in the last round one process has none.
        line = f"freeze --model net.py:build --weights one.safetensors --data digits --images 250 --run frozen{n}"
        jobs.well(n, f"{line} --device cpu")
        records.append(RunDirectory(jobs.folder / f"frozen{n}").config("freeze"))
    assert records[0] == records[1] and records[0]["facts"]["n_images"] == 250
    one, two = (frozen_values(jobs.folder / f"frozen{n}") for n in (1, 2))
    assert one == two and len(one) > 3
    assert "already frozen" in jobs.well(2, f"{line} --device cpu")


def test_two_processes_measure_the_shares_of_one(jobs, decomposed):
    rows = []
    for n in (1, 2):
        jobs.well(n, f"evaluate --run {decomposed} --repeats 2 --batch-size 2 --device cpu --redo")
        report = json.loads((jobs.folder / decomposed / "report.json").read_text())
        rows.append((report["rows"], report["classes"], report["conditions"]["n_images"]))
    (one, classes, n_images), (two, other_classes, other_n) = rows
    assert classes == other_classes and n_images == other_n > 0
    for before, after in zip(one, two):
        for name in ("top1", "top5", "agreement"):
            assert before[name] == after[name]
        assert after["divergence"] == approx(before["divergence"], rel=1e-5, abs=1e-12)
        assert after["lost"] == approx(before["lost"], rel=1e-5, abs=1e-12)


def test_a_mistake_is_printed_once_and_without_a_folder_of_ours(jobs, decomposed):
    codes, text = jobs.command(2, "finetune --run base --labels train --data digits --device cpu")
    assert codes == [2, 2] and text.count("error:") == 1 and "decomp-process" not in text
    codes, text = jobs.command(2, "finetune --run nowhere --device cpu")
    assert min(codes) > 0 and text.count("error:") == 1 and "nowhere" in text
    codes, text = jobs.command(2, "decompose --run base --speedup 200x --redo")
    assert codes == [1, 1] and text.count("error:") == 1 and "decomp-process" not in text
    codes, text = jobs.command(2, "prune --run base")
    assert min(codes) > 0 and text.count("error: prune:") == 1 and "start it without torchrun" in text
