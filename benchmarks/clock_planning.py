"""Time of planning for measured time beside that of planning for multiply-accumulates, on the same frozen points.

    python -m benchmarks.clock_planning --network torchvision:vgg16 --images 100 --out runs/clock-large

The network is frozen once. For multiply-accumulates, and then for each runtime, ``decompose --plan-only`` begins anew
from the frozen points, in a process of its own: it surveys all layers and makes the plan. Networks of torchvision have
random weights and images of noise at 224 pixels, and in time a batch of one image. Rows are appended to planning.jsonl,
and one that is there is not measured again; benchmarks.clock puts them on its page. Planning takes longer with more
images, and for measured time by the same seconds, so that few images are the harder case.
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
FIELDS = ("network", "images", "asked", "cost", "seconds", "processor seconds", "times as long")


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


def measure(out, base, row, threads):
    """Plan once for a cost, in a new run; the row with its seconds."""
    run = out / f"planning-{row['cost']}"
    if run.exists():
        shutil.rmtree(run)
    cost = ("--cost", "macs")
    if row["cost"] != "macs":
        cost = ("--cost", "latency", "--runtime", row["cost"], "--batch-size", "1")
    seconds, processor = timed(
        "decompose", "--run", str(run), "--from", str(base), "--speedup", f"{row['asked']:g}x", "--plan-only", *cost,
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
    """Rows of the table: each with its seconds over those of the plan by multiply-accumulates."""
    same = ("network", "images", "asked")
    counted = {tuple(row[key] for key in same): row["seconds"] for row in rows if row["cost"] == "macs"}
    entries = []
    for row in rows:
        whole = counted.get(tuple(row[key] for key in same))
        entries.append({**row, "times as long": round(row["seconds"] / whole, 2) if whole else None})
    return markdown(FIELDS, entries)


def read(out):
    """The rows that were measured in a folder."""
    path = out / "planning.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main():
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="torchvision:vgg16")
    parser.add_argument("--images", default=100, type=int)
    parser.add_argument("--asked", default=2.0, type=float)
    parser.add_argument("--runtimes", default="eager,onnxruntime")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--out", default="runs/clock", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    base = freeze(options.out, options.network, options.images, options.threads)
    for cost in ("macs", *options.runtimes.split(",")):
        row = {"network": options.network, "images": options.images, "asked": options.asked, "cost": cost}
        if any(row.items() <= known.items() for known in read(options.out)):
            continue
        found = measure(options.out, base, row, options.threads)
        with (options.out / "planning.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
