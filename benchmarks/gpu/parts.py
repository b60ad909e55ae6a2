"""Parts of the benchmark on a GPU; each yields rows as soon as a figure is known."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import decomp
from benchmarks import solvers
from benchmarks.gpu.settings import entry
from benchmarks.gpu.tuning import tuning
from decomp.allocation.plan import Plan
from decomp.errors import DecompError
from decomp.graph.network_graph import NetworkGraph
from decomp.pipelines.decomposition.target_search import LEAST, MOST
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import load_network
from decomp.runtimes.choice import runtime
from decomp.runtimes.timing import latencies, random_images
from decomp.surgery.random_network import random_network

LAYOUT = "channels-last"
#: Errors below this share of the responses' variance are left out of the comparison of devices: they are rounding.
LEAST_ERROR = 1e-4


def layer(setting, out):
    """Selection, least squares, split and decomposition of one layer, its rows streamed from a file."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        held_out = setting.rows // 10
        solvers.make_rows(Path(folder), setting.layer, setting.rows + held_out)
        for name, most in (("first", None), ("again, libraries loaded", 5.0)):
            found = solvers.ours(Path(folder), setting.layer, setting.rows, held_out, setting.device, extras=False)
            said = ", ".join(f"{step} {seconds:.2f}" for step, seconds in found["wall"].items())
            yield entry(f"whole step, {name}", sum(found["wall"].values()), "s", most=most, note=said)
        yield entry("held-out error", found["errors"]["whole step"], "of the variance")
        yield entry("peak memory of the device" if setting.device == "cuda" else "peak memory", found["peak"], "GiB")


def network(setting, out):
    """Freezing and decomposition of a large network with random weights, on images of smoothed noise."""
    run = out / "network"
    seconds = {}
    for stage, call in (
        ("freeze", lambda: _frozen(run, setting.network, setting.images, setting)),
        ("decompose", lambda: decomp.decompose(run, speedup=setting.speedup, device=setting.device)),
    ):
        start = time.monotonic()
        result = call()
        seconds[stage] = time.monotonic() - start
        yield entry(stage, seconds[stage], "s")
    yield entry("freeze and decompose", sum(seconds.values()), "s", most=180)
    facts = result.facts
    yield entry("counted speed-up", facts["macs_before"] / facts["macs_after"], "times", least=setting.speedup)
    yield entry("passes over the images", facts["passes"], "")
    if setting.device == "cuda":
        yield entry("peak memory of the device", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def _frozen(run, model, count, setting):
    """Freeze a network with random weights on generated images, where this is not done."""
    images = run.with_suffix(".npz")
    if not images.exists():
        np.savez(images, x_train=noise(count, setting.side), x_test=noise(2, setting.side))
    return decomp.freeze(
        run, model=model, weights="random", data=f"npz:{images}", n_images=count, n_points=setting.points,
        device=setting.device,
    )  # fmt: skip


def noise(count, side):
    """So many 8-bit images of coarse blocks with noise, as large as `side`; three channels."""
    random, block = np.random.default_rng(0), max(2, side // 14)
    coarse = random.integers(16, 240, (count, 3, -(-side // block), -(-side // block)), np.uint8)
    fine = coarse.repeat(block, 2).repeat(block, 3)[:, :, :side, :side]
    return fine + random.integers(0, 16, fine.shape, np.uint8)


def latency(setting, out, name):
    """A plan by measured time in one runtime; a network of its sizes timed again, each time in a new process."""
    base, run = out / "timed", out / f"timed-{name}"
    _frozen(base, setting.timed, setting.timed_images, setting)
    start = time.monotonic()
    try:
        decomp.decompose(
            run, source_run=base, speedup=setting.asked, cost="latency", runtime=name, latency_layout=LAYOUT,
            latency_batch=setting.timed_batch, plan_only=True, device=setting.device,
        )  # fmt: skip
    except DecompError as error:
        yield entry(f"{setting.asked:g}x asked", None, "times", LEAST, MOST, note=str(error))
        return
    yield entry("plan", time.monotonic() - start, "s")
    planned = json.loads((run / "plan.json").read_text(encoding="utf-8"))["latency"]
    yield entry("speed-up of the plan", planned["measured_speedup"], "times", note=planned["precision"])
    found = [_in_new_process(run, name, setting) for _ in range(setting.repetitions)]
    note = f"asked {setting.asked:g}x, measured " + ", ".join(f"{value:.3f}x" for value in found)
    yield entry("measured of asked", statistics.median(found) / setting.asked, "", LEAST, MOST, note=note)


def _in_new_process(run, name, setting):
    if setting.device == "cpu":  # a trial
        return timed(run, name, setting.timed_batch, setting.device)
    command = [sys.executable, "-m", "benchmarks.gpu", "--time", str(run), name, str(setting.timed_batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def timed(run, name, batch, device):
    """Speed-up of a network of a plan's sizes, with random weights, against the original in interleaved rounds."""
    directory = RunDirectory.open(run)
    original = load_network(directory, directory.original_dir)
    plan = Plan.from_json(json.loads(directory.plan_json.read_text(encoding="utf-8")))
    shape = json.loads((directory.original_dir / "structure.json").read_text(encoding="utf-8"))["input_shape"]
    graph = NetworkGraph(original, shape, "original")
    sized = random_network(graph, {one.name: plan.layer(one.name) for one in graph.layers if one.fitted})
    device, made, images = torch.device(device), runtime(name, LAYOUT), (batch, *shape)
    example = random_images(images, device, LAYOUT)
    prepared = {key: made.prepare(each, example) for key, each in (("original", original), ("sized", sized))}
    times = latencies(prepared, images, device, 100, layout=LAYOUT, max_seconds=10.0)
    return statistics.median(times["original"]) / statistics.median(times["sized"])


def agreement(setting, out):
    """One network decomposed on the CPU and, by the same plan, on the device: errors of its layers and output."""
    found, plan = [], out / "agreement-cpu" / "plan.json"
    for place, device in (("cpu", "cpu"), ("device", setting.device)):
        run = out / f"agreement-{place}"
        start = time.monotonic()
        if setting.compared_data is None:
            _frozen(run, setting.compared, setting.compared_images, setting)
        else:
            decomp.freeze(
                run, model=setting.compared, data=setting.compared_data, n_images=setting.compared_images, device=device
            )
        size = {"plan": plan} if found else {"speedup": setting.compared_speedup}
        found.append(errors(decomp.decompose(run, device=device, **size).facts))
        yield entry(f"freeze and decompose, {place}", time.monotonic() - start, "s")
    off = {key: abs(found[1][key] - value) / value for key, value in found[0].items() if value > LEAST_ERROR}
    worst = max(off, key=off.get)
    note = f"of {len(off)} errors: {worst}"
    yield entry("largest difference of an error", off[worst], "of the error", most=1e-3, note=note)
    yield entry("difference of the output's error", off["output"], "of the error", most=1e-3)


def errors(facts):
    """All errors that decompose records, by layer, step and images; and that of the output."""
    listed = {
        f"{one['layer']} {step} {images}": value
        for one in facts["layers"]
        for step, values in one["errors"].items()
        for images, value in values.items()
        if value is not None
    }
    return {**listed, "output": facts["fidelity"]["relative"]}


#: Parts by name in the order in which they run, with a limit in seconds.
PARTS = {
    "layer": (layer, 90),
    "agreement": (agreement, 90),
    "tuning": (tuning, 100),
    "network": (network, 240),
    "latency-eager": (lambda setting, out: latency(setting, out, "eager"), 120),
    "latency-compile": (lambda setting, out: latency(setting, out, "compile"), 150),
}
