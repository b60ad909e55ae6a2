"""Limits of memory and disk in a stage, and the same result with any of them."""

import json
import platform
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx, nn

from decomp.data.formats.network_file import load
from decomp.errors import UsageError
from decomp.execution.footprint import Footprint
from decomp.graph.layer import Layer
from decomp.pipelines.decomposition import memory
from decomp.pipelines.decomposition.session import open_run
from decomp.pipelines.measure import memory as machine
from decomp.pipelines.measure.memory import GIB, MIB
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import Collected, Residual

FOOT = Footprint([1.0], live=2 * MIB, total=10 * MIB, largest=MIB)


def limits(n_bytes, **options):
    n_bytes = None if n_bytes is None else int(n_bytes)
    resources = Resources(options.pop("device", torch.device("cpu")), n_bytes)
    settings = {"solver": 50 * MIB, "rows": MIB, "folder": ".", **options}
    return memory.set_limits(Residual(), FOOT, resources, **settings)


def test_all_parts_together_stay_within_the_memory():
    for n_bytes in (1.1 * GIB, 2 * GIB, 64 * GIB):
        found = limits(n_bytes)
        image = FOOT.live + 2 * FOOT.largest + MIB
        together = max(found.batch_size * image, found.backward_batch * 3 * FOOT.total, found.fit_bytes - 50 * MIB)
        assert memory.LIBRARIES + 50 * MIB + together + found.store_in_memory + found.rows_in_memory <= n_bytes
        assert 1 <= found.backward_batch <= found.batch_size <= 100
    assert found.batch_size == found.backward_batch == 100
    assert limits(1.1 * GIB).batch_size < 100


def test_too_little_memory_is_refused_with_the_least_that_is_enough():
    with pytest.raises(UsageError, match=r"--memory: decompose needs at least 1GiB .* got 512MiB; give --memory 1GiB"):
        limits(GIB // 2)
    assert limits(GIB).batch_size >= 1


def test_without_a_limit_it_is_half_of_the_machine_or_the_least_that_is_enough(monkeypatch):
    monkeypatch.setattr(machine, "machine_memory", lambda: 8 * GIB)
    assert limits(None) == limits(4 * GIB)
    monkeypatch.setattr(machine, "machine_memory", lambda: GIB)  # half of it is too little
    assert limits(None).batch_size == 2


def test_on_a_gpu_it_is_no_more_than_a_share_of_what_is_free_there(monkeypatch):
    monkeypatch.setattr(machine, "machine_memory", lambda: 64 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    gpu = torch.device("cuda", 0)
    assert limits(None, device=gpu) == limits(0.8 * 10 * GIB, device=gpu) == limits(0.8 * 10 * GIB)
    assert limits(2 * GIB, device=gpu) == limits(2 * GIB) != limits(None, device=gpu) != limits(None)


def test_a_resumed_stage_continues_with_the_limits_it_began_with(monkeypatch):
    # Other processes may write meanwhile.
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=200 * GIB))
    begun = limits(2 * GIB).to_json()
    again = limits(1.5 * GIB, before=begun)
    assert again.to_json() == begun != limits(1.5 * GIB).to_json()
    assert begun["keep"] == limits(2 * GIB).store_bytes
    assert limits(1.5 * GIB, before={**begun, "keep": 12_345}).store_bytes == 12_345
    assert again.store_in_memory < limits(2 * GIB).store_in_memory
    with pytest.raises(UsageError, match="needs at least"):
        limits(GIB, before=begun)  # such batches do not fit


def test_a_layer_takes_matrices_of_its_columns_and_rows_of_its_points():
    conv = Layer("0", "n0", "conv", 0, 4, 6, (3, 2), (8, 8), (2, 2))
    columns, outputs, points = 4 * 3 * 2, 6, 2 * 2  # of ten points only four lie on the map
    fixed = 14 * 8 * columns**2 + 4 * 2048 * (columns + outputs) * 4
    assert memory.problem_bytes(conv, 100, 10) == fixed + 8 * 100 * points * outputs
    assert memory.row_bytes(conv, 10) == 3 * 4 * points * (columns + outputs)


def stage_memory(tmp_path, module):
    work = [1 / len(module.graph.nodes)] * len(module.graph.nodes)
    sizes = memory.MemoryLimits(2, 2, store_bytes=1000, store_in_memory=100, rows_in_memory=10, fit_bytes=0)
    return memory.StageMemory(module, Footprint(work, 1, 1, 1), sizes, tmp_path)


def test_a_replay_gets_its_share_of_the_stores_and_its_work_is_counted(tmp_path):
    module = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()).eval())
    stage, images = stage_memory(tmp_path, module), torch.randn(5, 1, 4, 4)
    replay = stage.replay(module, lambda start, stop: images[start:stop], 5, "cpu", share=0.5)
    assert (replay.batch_size, replay.store.limit, replay.store.memory) == (2, 500, 50)
    rows = stage.row_store()
    assert (rows.limit, rows.memory) == (1000, 10) and rows.folder != replay.store.folder
    list(replay.outputs())
    last_node_is_not_run = (len(module.graph.nodes) - 1) / len(module.graph.nodes)
    assert stage.forward_images == pytest.approx(5 * last_node_is_not_run)
    stage.count_passes(3)
    rows.put(0, {"x": torch.zeros(100)})
    assert stage.most_on_disk == 400 and len(list(tmp_path.rglob("*0"))) > 0
    before = stage.forward_images
    stage.clear()
    assert stage.forward_images == before == pytest.approx(3 + 5 * last_node_is_not_run)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def limits_of(run, n_bytes):
    with open_run(run, Resources(torch.device("cpu"), n_bytes, 20)) as opened:
        return opened.memory.limits


def least_with(run, wanted):
    """The least memory, to a tenth of a MiB, for which the limits are as wanted."""
    low, high = memory.LIBRARIES, 4 * GIB
    while high - low > MIB // 10:
        middle = (low + high) // 2
        try:
            good = wanted(limits_of(run, middle))
        except UsageError:
            good = False
        low, high = (low, middle) if good else (middle, high)
    return high


def decomposed(run, folder, n_bytes):
    shutil.copytree(run.path, folder)
    result = decompose(folder, speedup=2.5, memory=n_bytes, batch_size=20, reporter=Collected())
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
    assert limits_of(run, least).batch_size < 10
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
    """Run a command in a process of its own; its peak memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "decomp.cli", *command], cwd=run.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *_, last = (run / "log.jsonl").read_text().splitlines()
    return json.loads(last)["peak_memory_mib"] * MIB


def peaks_of(folder, name, size, n_bytes):
    """The peaks of freeze and decompose on square images of a size."""
    run = folder / name
    images = np.random.default_rng(0).normal(size=(200, 3, size, size)).astype(np.float32)
    np.savez(folder / f"{name}.npz", x_train=images)
    network = ["--model", "nets.py:build", "--data", f"npz:{name}.npz", "--images", "200", "--points", "4"]
    limit = ["--run", name, "--memory", f"{n_bytes // MIB}MiB", "--threads", "1", "--quiet"]
    plan = ["--speedup", "2x", "--steps", "prune", "--no-refine"]
    return np.array([peak_of(["freeze", *network, *limit], run), peak_of(["decompose", *plan, *limit], run)])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the system gives no peak memory of a process")
def test_the_peak_memory_of_a_stage_is_bounded(tmp_path):
    """Values of 150 MiB between two layers, in stages with 60 MiB beside their libraries."""
    (tmp_path / "nets.py").write_text(NETWORK)
    libraries = peaks_of(tmp_path, "small", 8, 16 * GIB)
    plenty, tight = (
        peaks_of(tmp_path, name, 80, n_bytes) - libraries
        for name, n_bytes in (("plenty", 16 * GIB), ("tight", memory.LIBRARIES + 60 * MIB))
    )
    print(f"\nMiB beside the libraries: {(plenty / MIB).round()} with plenty, {(tight / MIB).round()} with 60")
    assert (tight <= 60 * MIB).all() and (plenty > 120 * MIB).all()


def test_processes_on_one_machine_divide_its_memory_and_disk_where_none_is_given(monkeypatch):
    monkeypatch.setattr(machine, "machine_memory", lambda: 64 * GIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=400 * GIB))
    alone, given = limits(None), limits(4 * GIB)
    monkeypatch.setattr(machine, "n_on_this_machine", lambda: 4)
    shared = limits(None)
    assert shared.store_bytes == 50 * GIB == alone.store_bytes / 4
    assert shared.store_in_memory == limits(8 * GIB).store_in_memory < alone.store_in_memory / 4
    assert limits(4 * GIB).store_in_memory == given.store_in_memory


FAULTS = """
import resource, sys, torch
from decomp.pipelines.decomposition import memory
limit = memory.Resources(torch.device("cpu"), LIMIT, 1)
memory.set_limits(torch.nn.Conv2d(1, 1, 1), memory.Footprint([1.0], 1, 1, 1), limit, folder=".")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.zeros(16 << 20, dtype=torch.uint8).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library keeps or returns memory by its own rules")
def test_freed_memory_is_used_again_where_no_limit_is_given():
    def pages(limit):
        command = [sys.executable, "-c", FAULTS.replace("LIMIT", limit)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    kept, returned = pages("None"), pages(str(2 * GIB))
    assert kept <= returned / 3
