"""Memory and disk of a stage: shared out in bounds, and the result the same whatever there is of them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from decomp.data.formats.network_file import load
from decomp.errors import UsageError
from decomp.execution import footprint
from decomp.pipelines.decomposition import memory as workspace
from decomp.pipelines.decomposition import session as subject
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import Collected, Residual

MIB, GIB = workspace.MIB, workspace.GIB
FOOT = footprint.Footprint([1.0], live=2 * MIB, total=10 * MIB, largest=MIB)


def limits(memory, **options):
    memory = None if memory is None else int(memory)
    settings = {"solver": 50 * MIB, "rows": MIB, "batch_size": 100, "folder": ".", **options}
    return workspace.set_limits(Residual(), FOOT, memory=memory, **settings)


def test_the_shares_stay_within_the_memory():
    for memory in (1.1 * GIB, 2 * GIB, 64 * GIB):
        found = limits(memory)
        image = FOOT.live + 2 * FOOT.largest + MIB
        together = max(found.batch_size * image, found.backward_batch * 3 * FOOT.total, found.solving - 50 * MIB)
        assert workspace.LIBRARIES + 50 * MIB + together + found.kept_memory + found.rows_memory <= memory
        assert 1 <= found.backward_batch <= found.batch_size <= 100
    assert found.batch_size == found.backward_batch == 100
    assert limits(1.1 * GIB).batch_size < 100


def test_too_little_memory_is_refused_with_what_is_needed():
    with pytest.raises(UsageError, match=r"--memory: decompose needs at least 1GiB .* got 0.5GiB; give --memory 1GiB"):
        limits(GIB // 2)
    assert limits(GIB).batch_size >= 1


def test_without_a_limit_it_is_half_of_the_machine_or_what_is_needed(monkeypatch):
    monkeypatch.setattr(workspace, "machine_memory", lambda: 8 * GIB)
    assert limits(None) == limits(4 * GIB)
    monkeypatch.setattr(workspace, "machine_memory", lambda: GIB)  # half of it is too little
    assert limits(None).batch_size == 2


def test_the_machine_has_the_memory_that_it_says():
    told = workspace.machine_memory()
    assert 2**28 < told < 2**50


def test_a_stage_that_goes_on_goes_on_as_it_began():
    begun = limits(2 * GIB).deciding()
    again = limits(1.5 * GIB, before=begun)
    assert again.deciding() == begun != limits(1.5 * GIB).deciding()
    assert again.kept_memory < limits(2 * GIB).kept_memory
    with pytest.raises(UsageError, match="needs at least"):
        limits(GIB, before=begun)  # such batches do not fit


def room(run, memory):
    with subject.opened(run, torch.device("cpu"), memory=memory, batch_size=20) as opened:
        return opened.space.limits


def least_with(run, wanted):
    """The least memory, to a tenth of a MiB, for which the limits are as wanted."""
    low, high = workspace.LIBRARIES, 4 * GIB
    while high - low > MIB // 10:
        middle = (low + high) // 2
        try:
            good = wanted(room(run, middle))
        except UsageError:
            good = False
        low, high = (low, middle) if good else (middle, high)
    return high


def decomposed(run, folder, memory):
    shutil.copytree(run.path, folder)
    told = Collected()
    result = decompose(folder, speedup=2.5, memory=memory, batch_size=20, reporter=told)
    return RunDirectory(folder), result.facts


@pytest.mark.usefixtures("one_thread", "known_networks")
@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_the_result_does_not_depend_on_the_memory(run, tmp_path):
    """Spilled to the disk, the same bytes. In smaller batches sums are taken in another order: the same to 1e-6."""
    plenty, facts = decomposed(run, tmp_path / "plenty", 8 * GIB)
    assert facts["spilled_bytes"] == 0
    tight = least_with(run, lambda limits: limits.batch_size == limits.backward_batch == 20)
    spilling, spilled = decomposed(run, tmp_path / "spilling", tight)
    assert spilled["spilled_bytes"] > 400 * 8 * 64 * 4 / 2 and spilled["passes"] == facts["passes"]
    assert results_of(spilling) == results_of(plenty)

    least = least_with(run, lambda limits: True)
    assert room(run, least).batch_size < 10
    alone, _ = decomposed(run, tmp_path / "alone", least)
    assert json.loads(alone.plan_json.read_text())["layers"] == json.loads(plenty.plan_json.read_text())["layers"]
    x = torch.randn(50, 1, 8, 8)
    with torch.no_grad():
        wanted, got = load(plenty.model_dir)(x), load(alone.model_dir)(x)
    assert (got - wanted).norm() <= 1e-6 * wanted.norm()
    for path in (plenty.path, spilling.path, alone.path):
        assert not [name for name in path.iterdir() if "scratch" in name.name]


def results_of(run):
    found = {str(p.relative_to(run.path)): p.read_bytes() for p in sorted(run.path.rglob("*.safetensors"))}
    return {**found, "plan": run.plan_json.read_bytes(), "structure": (run.model_dir / "structure.json").read_bytes()}


NETWORK = """
from torch import nn

def build():
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)]
    layers += [nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)]
    return nn.Sequential(*layers)
"""


def peak_of(command, run):
    """Give a command in a process of its own; the most memory that it held, in bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "decomp.cli", *command], cwd=run.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *_, last = (run / "log.jsonl").read_text().splitlines()
    return json.loads(last)["peak_memory_mib"] * MIB


def peaks_of(folder, name, size, memory):
    """The peaks of freeze and decompose on square images of a size."""
    run = folder / name
    images = np.random.default_rng(0).normal(size=(200, 3, size, size)).astype(np.float32)
    np.savez(folder / f"{name}.npz", x_train=images)
    network = ["--model", "nets.py:build", "--data", f"npz:{name}.npz", "--images", "200", "--points", "4"]
    limit = ["--run", name, "--memory", f"{memory // MIB}MiB", "--threads", "1", "--quiet"]
    plan = ["--speedup", "2x", "--steps", "prune", "--no-refine"]
    return np.array([peak_of(["freeze", *network, *limit], run), peak_of(["decompose", *plan, *limit], run)])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell how much memory was held")
def test_the_memory_that_a_stage_really_holds_is_bounded(tmp_path):
    """Values of 150 MiB between two layers, in stages that may take 60 MiB beside their libraries."""
    (tmp_path / "nets.py").write_text(NETWORK)
    libraries = peaks_of(tmp_path, "small", 8, 16 * GIB)
    plenty, tight = (
        peaks_of(tmp_path, name, 80, memory) - libraries
        for name, memory in (("plenty", 16 * GIB), ("tight", workspace.LIBRARIES + 60 * MIB))
    )
    print(f"\nMiB beside the libraries: {(plenty / MIB).round()} with plenty, {(tight / MIB).round()} with 60")
    assert (tight <= 60 * MIB).all() and (plenty > 120 * MIB).all()
