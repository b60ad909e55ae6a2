"""Comparison with other tools at equal measured time, in ONNX Runtime at a batch of one image.

    .peers/bin/python -m benchmarks.peers --equal-time 2 --epochs 5 --train-images 6000 --out runs/equal-time

Protocol: networks, images, training and evaluation are those of the comparison at equal multiply-accumulates
(docs/peers.md). The other tools know no target of time. Each makes networks at several counted speed-ups; all of them
are timed in ONNX Runtime in interleaved rounds, in which the original runs twice, until the median ratio is known to
about one percent. The next counted speed-up is interpolated between the two networks whose times enclose the target,
until one is within three percent of it or three more have been made; the closest is taken. This package is asked for
the time once, by `--cost latency --runtime onnxruntime`; *all steps*, its plan by multiply-accumulates, is searched as
the others are. Timing and planning run on two threads with nothing else running, everything else on one. A network on
which the machine was busy is timed again. Measured again by the same command, an interrupted comparison goes on.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.peers import driver
from benchmarks.peers.by_time import RUNTIME, THREADS
from benchmarks.peers.methods import BY_TIME
from benchmarks.peers.worker import file_of

#: Counted speed-ups that are made first, and the range in which is searched.
GRID, LEAST, MOST = (2.5, 4.0), 1.2, 16.0
#: Distance from the target, relative to it, at which the search ends; networks made after the grid.
CLOSE, MORE = 0.03, 3
#: Times that a network is timed at most where the machine is busy.
TRIES = 3
FILE = "times.jsonl"
WORKER = (sys.executable, "-m", "benchmarks.peers.equal_time")


def next_speedups(points, target, failed=()):
    """Counted speed-ups at which the next networks are to be made; none where the search has ended.

    Parameters
    ----------
    points : dict of float to float
        Measured speed-up by the counted one that was asked for.
    target : float
    failed : collection of float
        Counted speed-ups at which the tool makes no network.
    """
    missing = [speedup for speedup in GRID if speedup not in points and speedup not in failed]
    if missing:
        return missing
    if not points or closeness(points, target) <= CLOSE or len(points) + len(failed) >= len(GRID) + MORE:
        return []
    below = [one for one in points.items() if one[1] < target]
    above = [one for one in points.items() if one[1] >= target]
    if not above:
        found = 1.5 * max(points)
    elif not below:
        found = 1 + (min(points) - 1) / 2
    else:
        (a, low), (b, high) = max(below), min(above)
        share = math.log(target / low) / math.log(high / low)
        found = math.exp((1 - share) * math.log(a) + share * math.log(b))
    found = round(found, 2)
    return [found] if LEAST <= found <= MOST and found not in points and found not in failed else []


def closeness(points, target):
    """Relative distance of the closest measured speed-up from the target."""
    return min(abs(value / target - 1) for value in points.values())


def points_of(timed, row):
    """The networks of a row's method that were made so far: measured speed-up by the one that was asked for."""
    return {
        one["speedup"]: one["measured_speedup"]
        for one in timed.values()
        if all(one[name] == row[name] for name in ("network", "data", "seed", "method")) and not one["epochs"]
    }


def failed_of(made, row):
    """The speed-ups that were asked of a row's method in vain."""
    return {
        one["speedup"]
        for one in made.values()
        if all(one[name] == row[name] for name in ("network", "data", "seed", "method")) and "error" in one
    }


def timed_rows(out):
    """The measurements, by the key of their row; of several of one network the last."""
    return driver.read(Path(out) / FILE)


def chosen(timed, row, target):
    """The row of a method's network that is closest to the target; None where none was timed."""
    points = points_of(timed, row)
    if row["method"] in BY_TIME:
        return {**row, "speedup": target} if target in points else None
    return {**row, "speedup": min(points, key=lambda one: abs(points[one] / target - 1))} if points else None


def run(out, families, target, epochs, *, train_images=None, wrap="", wrap_time="", retry=False):
    """Make and time what is missing, then train the networks at the target.

    Parameters
    ----------
    out : path
    families : list of dict
        Rows without a speed-up: network, data, seed, method.
    target : float
        Measured speed-up.
    epochs : sequence of int
        Lengths of training of the chosen networks.
    train_images : int, optional
    wrap, wrap_time : str
        Commands in front of the processes that compute, and of those in which time is measured.
    retry : bool
        Make anew what failed.
    """
    untrained = [{**family, "epochs": 0} for family in families]
    for _ in range(1 + MORE):
        timed = timed_rows(out)
        made = driver.read(Path(out) / "results.jsonl")
        asked = [
            {**row, "speedup": s}
            for row in untrained for s in _asked(timed, row, target, set() if retry else failed_of(made, row))
        ]  # fmt: skip
        if not asked:
            break
        first = [row for row in asked if row["method"] not in BY_TIME]
        driver.run(out, first, wrap=wrap, retry=retry)
        for row in (row for row in asked if row["method"] in BY_TIME):
            prepared = "decomp/all-steps"  # leaves the frozen points and error curves that all of our rows share
            driver.run(out, [{**row, "method": prepared, "speedup": 2.0}], wrap=wrap)
            if driver.key_of(row) not in driver.read(Path(out) / "results.jsonl"):
                _process(wrap_time, "--plan", json.dumps(row), "--out", str(out))
        driver.run(out, [row for row in asked if row["method"] in BY_TIME], wrap=wrap, retry=retry)
        while to_time(out, asked):
            if _process(wrap_time, "--time", json.dumps(asked), "--out", str(out)):
                raise SystemExit("the networks could not be timed; the lines above say why")
    timed = timed_rows(out)
    best = [row for row in (chosen(timed, row, target) for row in untrained) if row]
    for count in epochs:
        rows = [{**row, "epochs": count, **({"train_images": train_images} if train_images else {})} for row in best]
        driver.run(out, rows, wrap=wrap, retry=retry)


def _asked(timed, row, target, failed):
    points = points_of(timed, row)
    if row["method"] in BY_TIME:
        return [] if target in points or target in failed else [target]
    return next_speedups(points, target, failed)


def _process(wrap, *arguments):
    return subprocess.run([*shlex.split(wrap), *WORKER, *arguments], check=False).returncode


def to_time(out, asked):
    """The rows whose networks are there and not timed yet, or on a busy machine fewer than :data:`TRIES` times."""
    timed = timed_rows(out)
    found = []
    for row in asked:
        one = timed.get(driver.key_of(row))
        if file_of(out, row).exists() and (one is None or one["busy"] and one["tries"] < TRIES):
            found.append(row)
    return found


def time_networks(out, asked, seconds=150.0):
    """Time the networks that are missing, one after the other; none begins after so many seconds."""
    from benchmarks.peers.timing import folded
    from decomp.data import models

    torch.set_num_threads(THREADS)
    start, originals = time.monotonic(), {}
    for row in to_time(out, asked):
        if time.monotonic() - start > seconds:
            return
        if row["network"] not in originals:
            loaded = models.load_model(row["network"])
            originals[row["network"]] = folded(loaded.module.eval()), loaded.input_shape
        original, shape = originals[row["network"]]
        timed = timed_rows(out)
        before = timed.get(driver.key_of(row), {"tries": 0})
        network = folded(torch.load(file_of(out, row), weights_only=False).eval())
        found = ratio(original, network, shape, fastest_original(timed, row))
        line = {**row, **found, "tries": before["tries"] + 1, "threads": THREADS}
        driver.append(Path(out) / FILE, line)
        print(f"{row['network']} {row['method']} {row['speedup']:g}x: {found['measured_speedup']:.2f}x", flush=True)


def fastest_original(timed, row):
    """The shortest time of a row's original in all measurements; None where there is none."""
    same = [one for one in timed.values() if one["network"] == row["network"] and "original_ms" in one]
    return min((one["original_ms"] for one in same), default=None)


def ratio(original, network, shape, fastest=None):
    """How many times faster a network is than the original in the runtime, as plain data.

    `fastest` is the original's shortest time so far, in milliseconds: a machine that is slower is called busy.
    """
    from decomp.pipelines.decomposition.speed_ratio import RoundsRule, measure_ratio
    from decomp.pipelines.decomposition.timings import block_of_rounds
    from decomp.runtimes.choice import runtime
    from decomp.runtimes.timing import random_images

    shape, device, made = (1, *shape), torch.device("cpu"), runtime(RUNTIME, "contiguous")
    example = random_images(shape, device)
    prepared = {"original": made.prepare(original, example), "planned": made.prepare(network, example)}
    prepared["again"] = prepared["original"]
    return measure_ratio(
        block_of_rounds(prepared, shape, device, "contiguous"),
        RoundsRule(fewest_blocks=3, fastest=fastest),
    ).to_json()


def main():
    """What a process does in which nothing else may run: plan for a time, or time networks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--plan", type=json.loads)
    parser.add_argument("--time", type=json.loads)
    options = parser.parse_args()
    out = options.out.resolve()
    if options.plan:
        from benchmarks.peers import by_time
        from benchmarks.peers.worker import shared_folder

        row = options.plan
        by_time.plan(row["speedup"], shared_folder(out, row), **BY_TIME[row["method"]].options)
    else:
        time_networks(out, options.time)


if __name__ == "__main__":
    main()
