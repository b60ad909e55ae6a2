"""Time of planning for measured time beside that of planning for multiply-accumulates, on the same frozen points.

    python -m benchmarks.clock_planning --network torchvision:vgg16 --images 30 --out runs/clock-large

The network is frozen once. For multiply-accumulates ``decompose --plan-only`` begins anew from the frozen points, in a
process of its own: it surveys all layers and makes the plan. For each runtime the same command takes the error curves
of that survey and makes a plan by measured time; its own seconds are those of this process, and the seconds of the
survey are added, which every plan needs. Networks of torchvision have random weights and images of noise at 224 pixels,
and in time a batch of one image. Rows are appended to planning.jsonl, and one that is there is not measured again;
benchmarks.clock puts them on its page. A survey takes longer with more images, and the rest of planning for measured
time hardly, so that few images are the harder case.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import CLI, markdown, stage
from benchmarks.memory import images as noise

SIDE = 224
FIELDS = ("network", "images", "asked", "cost", "own seconds", "seconds", "processor seconds", "times as long")


def freeze(out, network, count, threads):
    """The frozen run of a network."""
    run = out / f"planning-{network.replace(':', '-')}-{count}"
    if network.startswith("zoo:"):
        source = ("--data", "fashion-mnist")
    else:
        file = out / f"noise-{count}.npz"
        if not file.exists():
            np.savez(file, x_train=noise(count, SIDE), x_test=noise(10, SIDE))
        source = ("--data", f"npz:{file}", "--weights", "random")
    stage(
        out / "planning-stages.json", "freeze", "--model", network, *source, "--images", str(count), "--run", str(run),
        "--threads", str(threads), "--quiet",
    )  # fmt: skip
    return run


def run_of(out, row):
    """The run directory of a row."""
    return out / f"planning-{row['network'].replace(':', '-')}-{row['images']}-{row['asked']:g}x-{row['cost']}"


def measure(out, source, row, threads):
    """Plan once for a cost, in a new run that takes what another one has; the row with the seconds of that alone."""
    run = run_of(out, row)
    if run.exists():
        shutil.rmtree(run)
    cost = ("--cost", "macs")
    if row["cost"] != "macs":
        cost = ("--cost", "latency", "--runtime", row["cost"], "--batch-size", "1")
    seconds, processor = timed(
        "decompose", "--run", str(run), "--from", str(source), "--speedup", f"{row['asked']:g}x", "--plan-only", *cost,
        "--threads", str(threads), "--quiet",
    )  # fmt: skip
    return {**row, "seconds": round(seconds, 1), "processor seconds": round(processor, 1)}


def timed(*arguments):
    """Seconds, and processor seconds, of a command in a process of its own with all that it starts."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, str(CLI), *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"decomp {' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime


def table(rows):
    """Rows of the table: of each network first the plan by multiply-accumulates, beside which the others are."""
    same = ("network", "images", "asked")
    counted = {tuple(row[key] for key in same): row for row in rows if row["cost"] == "macs"}
    entries = []
    for row in rows:
        survey = counted.get(tuple(row[key] for key in same))
        entry = {**{key: row[key] for key in (*same, "cost")}, "own seconds": row["seconds"]}
        if survey is not None:
            for name in ("seconds", "processor seconds"):
                entry[name] = row[name] if row["cost"] == "macs" else round(row[name] + survey[name], 1)
            entry["times as long"] = round(entry["seconds"] / survey["seconds"], 2)
        entries.append(entry)
    return markdown(FIELDS, entries)


def read(out):
    """The rows that were measured in a folder."""
    path = out / "planning.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main():
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="torchvision:vgg16")
    parser.add_argument("--images", default=30, type=int)
    parser.add_argument("--asked", default=2.0, type=float)
    parser.add_argument("--runtimes", default="eager,onnxruntime")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--out", default="runs/clock", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    base = freeze(options.out, options.network, options.images, options.threads)
    surveyed = None
    for cost in ("macs", *filter(None, options.runtimes.split(","))):
        row = {"network": options.network, "images": options.images, "asked": options.asked, "cost": cost}
        surveyed = surveyed or run_of(options.out, row)  # that of the first row
        if any(row.items() <= known.items() for known in read(options.out)):
            continue
        found = measure(options.out, base if cost == "macs" else surveyed, row, options.threads)
        with (options.out / "planning.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
