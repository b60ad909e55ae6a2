"""Accuracy that decompose keeps on the shipped networks, from many images and from few, fitted alone and refined.

    python -m benchmarks.accuracy --out runs/accuracy
    python -m benchmarks.accuracy --out runs/accuracy --only-table --page docs/few-images.md

Each row is a network of the zoo for Fashion-MNIST, a number of calibration images, a seed of their choice and a
speed-up, without labels: points of accuracy lost on all test images and mean divergence of the class scores there, of
the layers as they were fitted and after block refinement; the same divergence on held-out calibration images; and
processor seconds. Test images decide nothing. All rows of a network, number and seed share the frozen points and the
survey, whose seconds are not in them. A row is appended to ``rows.jsonl`` when it is done and is not made
again; with ``--one`` a call makes one row and ends, with status 3 where none is left, and goes on with one that was
stopped.
"""

import argparse
import copy
import json
import shutil
from collections import defaultdict
from pathlib import Path
from statistics import mean
from unittest import mock

import torch

from benchmarks.common import machine, markdown
from decomp.data.sources import open_source
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.decomposition import refine_blocks
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import run_outputs
from decomp.pipelines.run.record import read_log
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.freeze import freeze

DATA = "fashion-mnist"
#: Speed-ups of each network.
NETWORKS = {"vgg-fashion": (4.0, 5.0, 8.0), "resnet20-fashion": (4.0, 5.0), "mobilenet-fashion": (2.0,)}
#: Numbers of images, each with mixtures of them where they are few, and the small one also without.
IMAGES = (("5000", 5000, {}), ("100", 100, {}), ("100 alone", 100, {"mix": False}))
FIELDS = (
    "network", "speedup", "images", "seeds", "original", "lost fitted", "lost", "divergence fitted", "divergence",
    "held out fitted", "held out", "seconds", "of refinement",
)  # fmt: skip
#: Exit status where nothing is left to do.
NOTHING_LEFT = 3
#: Lines of a page between which the table is.
BEGIN, END = "<!-- table of benchmarks.accuracy -->", "<!-- end of the table -->"


def asked(options):
    """(network, name of the images, seed, speed-up) of all rows, those of the first seed first."""
    names = options.networks.split(",")
    images = [name for name, *_ in IMAGES if name in options.images.split(",")]
    return [
        (network, name, seed, speedup)
        for seed in range(options.seeds)
        for name in images
        for network in names
        for speedup in NETWORKS[network]
    ]


def key_of(row):
    """What tells a row from the others."""
    return row["network"], row["images"], row["seed"], row["speedup"]


def read_rows(out):
    """The rows that are done."""
    path = out / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@torch.no_grad()
def scores_of(network, images):
    """Class scores, some images at a time."""
    return torch.cat([network(part) for part in images.split(250)])


class Judge:
    """Points of accuracy lost on the test images, and the change of the outputs there.

    Parameters
    ----------
    frozen : decomp.pipelines.run.directory.RunDirectory
    original : torch.nn.Module
    shape : tuple of int
        Of an image.
    """

    def __init__(self, frozen, original, shape):
        source = open_source(DATA, input_shape=shape)
        images, labels = zip(*source.test.batches(torch.arange(len(source.test)), 500))
        self.images, self.labels, self.outputs = torch.cat(images), torch.cat(labels), run_outputs(frozen)
        self.name = self.outputs.each[0].name
        self.wanted = scores_of(original, self.images)
        self.original = self._right(self.wanted)

    def compare(self, network):
        """(points lost, mean divergence)."""
        found = scores_of(network, self.images)
        change = self.outputs.change({self.name: self.wanted}, {self.name: found})
        return self.original - self._right(found), float(change.mean())

    def _right(self, scores):
        return 100 * float((scores.argmax(1) == self.labels).double().mean())


def frozen_run(out, network, name, seed):
    """The run with the frozen points, made or taken up."""
    ((n_images, options),) = [(n, more) for known, n, more in IMAGES if known == name]
    run = out / f"{network}-{name.replace(' ', '-')}-{seed}"
    freeze(
        run, model=f"zoo:{network}", data=DATA, n_images=n_images, seed=seed, reporter=Reporter(quiet=True), **options
    )
    return RunDirectory.open(run)


def row_of(out, network, name, seed, speedup):
    """Make one row; what was stopped in the run directories is taken up."""
    base = frozen_run(out, network, name, seed)
    decompose(base, speedup=2, plan_only=True, reporter=Reporter(quiet=True))  # curves for all of its rows
    run, kept, real = RunDirectory(f"{base}-{speedup:g}x"), {}, refine_blocks.refine_blocks

    def told(surveyed, solved, *, reporter):
        kept.update(fitted=copy.deepcopy(surveyed.graph.module), original=surveyed.opened.original)
        kept.update(shape=surveyed.graph.input_shape)
        found = real(surveyed, solved, reporter=reporter)
        kept.update(refined=copy.deepcopy(surveyed.graph.module))
        return found

    with mock.patch.object(refine_blocks, "refine_blocks", told):
        reporter = Reporter.for_run(run, quiet=True)
        # Where it was stopped behind the network and before the row, all of it is read from its files again.
        shutil.rmtree(run.model_dir, ignore_errors=True)
        result = decompose(run, source_run=base.path, speedup=speedup, reporter=reporter)
    judge = Judge(base, kept["original"], kept["shape"])
    seconds = defaultdict(float)
    for part in (part for event in read_log(result.run.log) for part in event.get("times", [])):
        seconds[part["part"].startswith(refine_blocks.LABEL)] += part["processor_seconds"]
    found = result.facts["block_refinement"]
    (lost_fitted, change_fitted), (lost, change) = judge.compare(kept["fitted"]), judge.compare(kept["refined"])
    return {
        "network": network, "images": name, "seed": seed, "speedup": speedup, "original": judge.original,
        "lost fitted": lost_fitted, "lost": lost, "divergence fitted": change_fitted, "divergence": change,
        "held out fitted": found["divergence_before"],
        "held out": found["divergence_after"] if found["kept"] else found["divergence_before"],
        "seconds": seconds[False] + seconds[True], "of refinement": seconds[True],
    }  # fmt: skip


def table(rows):
    """Means over the seeds of each network, speed-up and number of images."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["network"], row["speedup"], row["images"]].append(row)
    lines = []
    order = [name for name, *_ in IMAGES]
    for (network, speedup, name), some in sorted(
        groups.items(), key=lambda item: (*item[0][:2], order.index(item[0][2]))
    ):
        numbers = {field: mean(row[field] for row in some) for field in FIELDS[4:]}
        spread = f"{numbers['lost']:.2f} ({min(r['lost'] for r in some):.2f}–{max(r['lost'] for r in some):.2f})"
        seeds = ", ".join(str(row["seed"]) for row in sorted(some, key=lambda row: row["seed"]))
        lines.append({
            **numbers, "network": network, "speedup": f"{speedup:g}x", "images": name, "seeds": seeds, "lost": spread,
            "lost fitted": f"{numbers['lost fitted']:.2f}", "original": f"{numbers['original']:.2f}",
            **{field: f"{numbers[field]:.0f}" for field in FIELDS[-2:]},
        })  # fmt: skip
    return markdown(FIELDS, lines)


def put(page, text):
    """Replace the table of a page."""
    head, begin, rest = page.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page}: has no lines {BEGIN} and {END}, between which the table goes.")
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


def main():
    """Make the rows that are missing, or one of them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/accuracy", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--images", default="5000,100", help=f"of {', '.join(name for name, *_ in IMAGES)}")
    parser.add_argument("--seeds", default=3, type=int, help="seeds 0, 1, and so on")
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--one", action="store_true", help="make one row")
    parser.add_argument("--only-table", action="store_true", help="make no row")
    parser.add_argument("--page", type=Path, help="replace the table of this page")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    done = {key_of(row) for row in read_rows(options.out)}
    missing = [] if options.only_table else [row for row in asked(options) if row not in done]
    for network, name, seed, speedup in missing[:1] if options.one else missing:
        row = row_of(options.out, network, name, seed, speedup)
        with open(options.out / "rows.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    text = table(read_rows(options.out))
    (options.out / "table.md").write_text(text + "\n")
    print(f"\n{machine()}\n\n{text}")
    if options.page is not None:
        put(options.page, text)
    if options.one and not missing:
        raise SystemExit(NOTHING_LEFT)


if __name__ == "__main__":
    main()
