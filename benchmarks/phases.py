"""Time of freeze and decompose by phase, on named networks.

    python -m benchmarks.phases --networks zoo:vgg-fashion,torchvision:vgg16 --images 60 --size 128 --out runs/phases

Networks of the zoo take the images they were trained on. Others have their architecture's shape with random weights,
and images of smoothed noise of the given size: neither changes the work by much. Each stage is a process of its own;
where its time went is as it was kept in the run's log, in seconds on the clock and of the processors. On a machine that
others use too, the latter are the ones to compare. What is there already is not run again; a further call with other
networks, images or sizes adds its rows to the table, and with --page docs/phases.md to that page.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.common import machine, markdown, stage
from benchmarks.memory import images as noise
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.record import read_log

#: Columns of the table, and the beginnings of the names of the parts that belong to each; the first that fits counts.
GROUPS = {
    "gradients": ("gradients",),
    "change of outputs": ("approximations: change of the outputs", "change of the outputs"),
    "forward": ("rows and moments: forward",),
    "moments": ("rows and moments",),
    "curves": ("curves", "approximations"),
    "channels": ("choice of channels",),
    "splits": ("least squares", "spatial split", "channel decomposition"),
    "refinement": ("refinement",),
    "checks": ("rehearsal", "files", "comparison with the original"),
}
REST, FREEZE = "rest", "freeze"
FIELDS = ("network", "images", "size", FREEZE, *GROUPS, REST, "all", "on the clock", "passes")
HEAD = """# Time by phase

Processor seconds of `freeze` and of the parts of `decompose`, by `python -m benchmarks.phases`, with {threads} on
{machine}. "on the clock": seconds of both stages together, on a machine that may
have been busy. "passes": forward work of `decompose` in passes over the calibration images. "size": of the images,
where they are noise.

{table}
"""


def group_of(part):
    """The column of a part of decompose."""
    return next((name for name, heads in GROUPS.items() if part.startswith(heads)), REST)


def last_times(log, name):
    """The rows of the time that the last finished call of a stage took, as its log has them."""
    ends = [event for event in log if event.get("event") == "end" and event["stage"] == name and "times" in event]
    return ends[-1]["times"] if ends else []


def row_of(network, count, size, log, passes):
    """One row of the table from the events of a run's log."""
    frozen, decomposed = last_times(log, "freeze"), last_times(log, "decompose")
    seconds = defaultdict(float)
    for row in decomposed:
        seconds[group_of(row["part"])] += row["processor_seconds"]
    seconds[FREEZE] = sum(row["processor_seconds"] for row in frozen)
    return {
        "network": network, "images": count, "size": size,
        **{name: round(seconds[name], 1) for name in (FREEZE, *GROUPS, REST)},
        "all": round(sum(seconds.values()), 1), "passes": passes,
        "on the clock": round(sum(row["seconds"] for row in [*frozen, *decomposed]), 1),
    }  # fmt: skip


def measure(out, network, count, size, speedup, threads):
    """Freeze and decompose one network, unless it was done before; its row."""
    zoo = network.startswith("zoo:")
    name = f"{network.replace(':', '-').replace('/', '-')}-{count}" + ("" if zoo else f"-{size}")
    run, log, common = out / name, out / "stages.json", ("--threads", str(threads), "--quiet")
    if zoo:
        data = {"fashion": "fashion-mnist", "digits": "digits"}[network.rpartition("-")[2]]
        source = ("--data", data)
    else:
        file = out / f"noise-{count}-{size}.npz"
        if not file.exists():
            np.savez(file, x_train=noise(count, size), x_test=noise(10, size))
        source = ("--data", f"npz:{file}", "--weights", "random")
    stage(log, "freeze", "--model", network, *source, "--images", str(count), "--run", str(run), *common)
    stage(log, "decompose", "--run", str(run), "--speedup", f"{speedup:g}x", *common)
    directory = RunDirectory.open(run)
    facts = directory.config("decompose")
    return row_of(network, count, "" if zoo else size, read_log(directory.log), facts["passes"])


def main():
    """Run what is missing, print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="zoo:resnet20-fashion,zoo:vgg-fashion", help="names with commas between")
    parser.add_argument("--images", default=1000, type=int)
    parser.add_argument("--size", default=224, type=int, help="height and width of the images of noise")
    parser.add_argument("--speedup", default=4.0, type=float)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--out", default="runs/phases", type=Path)
    parser.add_argument("--page", type=Path, help="write the page to this file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for network in options.networks.split(","):
        row = measure(options.out, network, options.images, options.size, options.speedup, options.threads)
        rows = [other for other in rows if any(other[key] != row[key] for key in ("network", "images", "size"))] + [row]
        kept.write_text(json.dumps(rows, indent=2))
    table = markdown(FIELDS, rows)
    print(f"\n{machine()}\n\n{table}")
    if options.page is not None:
        threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
        options.page.write_text(HEAD.format(threads=threads, machine=machine(), table=table))


if __name__ == "__main__":
    main()
