"""Time of freeze and decompose by phase, on named networks.

    python -m benchmarks.phases --networks zoo:vgg-fashion,torchvision:vgg16 --images 60 --size 128 --out runs/phases
    python -m benchmarks.phases --shape vgg16 --shape detector
    python -m benchmarks.phases --shape vgg16 --checkout ../before --label before

Networks of the zoo take the images they were trained on. Others have their architecture's shape with random weights,
and images of smoothed noise of the given size: neither changes the work by much. A shape is a network with its images,
size and speed-up, of the table SHAPES. Each stage is a process of its own; where its time went is as it was kept in the
run's log, in seconds on the clock and of the processors. On a machine that others use too, the latter are the ones to
compare. What is there already is not run again, and a stage that was interrupted goes on; a further call with other
networks, images, sizes, or another checkout adds its rows to the table, and with --page docs/phases.md to that page.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.common import CLI, machine, markdown, stage
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
    "blocks": ("refinement of the blocks",),
    "refinement": ("refinement",),
    "checks": ("rehearsal", "files", "comparison with the original"),
}
REST, FREEZE = "rest", "freeze"
OWN_NETWORKS = Path(__file__).with_name("phase_networks.py")
#: Network, images, their height and width where they are noise, and speed-up, by name.
SHAPES = {
    "vgg-fashion": ("zoo:vgg-fashion", 5000, None, 4.0),
    "resnet20-fashion": ("zoo:resnet20-fashion", 5000, None, 4.0),
    "vgg16": ("torchvision:vgg16", 60, 128, 2.0),
    "efficientnet-lite0": (f"{OWN_NETWORKS}:efficientnet_lite0", 500, 224, 2.0),
    "detector": (f"{OWN_NETWORKS}:text_detector", 100, 192, 2.0),
    "resnet50": ("torchvision:resnet50", 100, 224, 2.0),
}
FIELDS = ("code", "network", "images", "size", "threads", FREEZE, *GROUPS, REST, "all", "on the clock", "passes")
HEAD = """# Time by phase

Processor seconds of `freeze` and of the parts of `decompose`, by `python -m benchmarks.phases`, on
{machine}. "on the clock": seconds of both stages together, on a machine that may
have been busy. "passes": forward work of `decompose` in passes over the calibration images. "size": of the images,
where they are noise. "blocks": the refinement of the blocks, 0 where it was left out or did not exist yet. "code": the
checkout and its options, where several were measured. An interrupted call counts too.

{table}
"""


def group_of(part):
    """The column of a part of decompose."""
    return next((name for name, heads in GROUPS.items() if part.startswith(heads)), REST)


def last_times(log, name):
    """The rows of the time of a stage, as its log has them: its last finished call, and those stopped before it."""
    stopped, finished = [], []
    for event in log:
        if event.get("stage") != name or "times" not in event:
            continue
        if event.get("event") == "stop":
            stopped += event["times"]
        elif event.get("event") == "end":
            stopped, finished = [], stopped + event["times"]
    return finished


def row_of(network, count, size, log, passes, code="", threads=1):
    """One row of the table from the events of a run's log."""
    frozen, decomposed = last_times(log, "freeze"), last_times(log, "decompose")
    seconds = defaultdict(float)
    for row in decomposed:
        seconds[group_of(row["part"])] += row["processor_seconds"]
    seconds[FREEZE] = sum(row["processor_seconds"] for row in frozen)
    return {
        "code": code, "network": network, "images": count, "size": size, "threads": threads,
        **{name: round(seconds[name], 1) for name in (FREEZE, *GROUPS, REST)},
        "all": round(sum(seconds.values()), 1), "passes": passes,
        "on the clock": round(sum(row["seconds"] for row in [*frozen, *decomposed]), 1),
    }  # fmt: skip


def measure(out, shape, threads, cli, code, without_blocks=False):
    """Freeze and decompose one network, unless it was done before; its row."""
    network, count, size, speedup = shape
    zoo = network.startswith("zoo:")
    short = network.replace(f"{OWN_NETWORKS}:", "")
    name = f"{short.replace(':', '-').replace('/', '-')}-{count}" + ("" if zoo else f"-{size}")
    out = out / code
    out.mkdir(parents=True, exist_ok=True)
    run, log, common = out / name, out / "stages.json", ("--threads", str(threads), "--quiet")
    if zoo:
        data = {"fashion": "fashion-mnist", "digits": "digits"}[network.rpartition("-")[2]]
        source = ("--data", data)
    else:
        file = out / f"noise-{count}-{size}.npz"
        if not file.exists():
            np.savez(file, x_train=noise(count, size), x_test=noise(10, size))
        source = ("--data", f"npz:{file}", "--weights", "random", "--input-size", str(size))
    frozen = ("freeze", "--model", network, *source, "--images", str(count), "--run", str(run))
    stage(log, *frozen, *common, cli=cli)
    blocks = ("--no-refine-blocks",) if without_blocks else ()
    stage(log, "decompose", "--run", str(run), "--speedup", f"{speedup:g}x", *blocks, *common, cli=cli)
    directory = RunDirectory.open(run)
    facts = directory.config("decompose")
    return row_of(short, count, "" if zoo else size, read_log(directory.log), facts["passes"], code, threads)


def main():
    """Run what is missing, print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="zoo:resnet20-fashion,zoo:vgg-fashion", help="names with commas between")
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="instead of networks; several times")
    parser.add_argument("--images", type=int, help="default: 1000, or those of the shape")
    parser.add_argument("--size", default=224, type=int, help="height and width of the images of noise")
    parser.add_argument("--speedup", default=4.0, type=float)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--checkout", default=CLI.parent, type=Path, help="of the code that is measured")
    parser.add_argument("--label", default="", help="of that code, in the table")
    parser.add_argument("--no-refine-blocks", action="store_true", help="leave out the refinement of the blocks")
    parser.add_argument("--out", default="runs/phases", type=Path)
    parser.add_argument("--page", type=Path, help="write the page to this file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for shape in asked(options):
        cli = options.checkout / CLI.name
        row = measure(options.out, shape, options.threads, cli, options.label, options.no_refine_blocks)
        same = ("code", "network", "images", "size", "threads")
        rows = [other for other in rows if any(other.get(key) != row[key] for key in same)] + [row]
        kept.write_text(json.dumps(rows, indent=2))
    table = markdown(FIELDS, rows)
    print(f"\n{machine()}\n\n{table}")
    if options.page is not None:
        options.page.write_text(HEAD.format(machine=machine(), table=table))


def asked(options):
    """Network, images, size and speed-up of each that is asked for."""
    if options.shape:
        shapes = [SHAPES[name] for name in options.shape]
        return [(net, options.images or count, size, speedup) for net, count, size, speedup in shapes]
    count = options.images or 1000
    return [(network, count, options.size, options.speedup) for network in options.networks.split(",")]


if __name__ == "__main__":
    main()
