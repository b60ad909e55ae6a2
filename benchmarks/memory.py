"""Memory benchmark of a large network under a limit: passes over the images, peak memory, disk.

    python -m benchmarks.memory --images 300 --out runs/memory

The network has its architecture's shape and random weights, its images are smoothed noise: neither matters to what is
counted here. Each stage is a process of its own, its peak memory as the operating system accounts it; forward passes
(over the calibration images, of the whole decompose stage) and spilled values are as the stage counts them. With
several numbers of images the table shows what grows with them and what does not. ``--batch-size 128`` adds an epoch of
``finetune`` without labels in such batches, of 1,000 images or more. What is there already is not run again.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.common import machine, markdown, numbers, stage
from decomp.pipelines.run.directory import RunDirectory

FIELDS = (
    "images", "limit", "freeze_seconds", "freeze_mib", "decompose_seconds", "decompose_mib", "passes", "frozen_mib",
    "spilled_mib", "run_mib", "counted", "finetune_seconds", "finetune_mib",
)  # fmt: skip
SIZE, BLOCK, NOISE = 224, 16, 12


def images(count, size=SIZE):
    """So many images of coarse blocks, smoothed, with noise; 8 bits, three channels; the size divides into blocks."""
    random = np.random.default_rng(0)
    made = np.empty((count, 3, size, size), np.uint8)
    for image in made:
        coarse = random.integers(0, 256, (3, size // BLOCK, size // BLOCK))
        fine = coarse.repeat(BLOCK, 1).repeat(BLOCK, 2).astype(np.float32)
        for axis in (1, 2):
            fine = (fine + np.roll(fine, BLOCK // 2, axis) + np.roll(fine, -(BLOCK // 2), axis)) / 3
        image[:] = (fine + random.normal(0, NOISE, fine.shape)).clip(0, 255)
    return made


def measure(out, model, count, limit, speedup, batch_size):
    """One row: freeze and decompose with so many images, and an epoch of finetune where there is a batch size."""
    source, run, log = out / f"images-{count}.npz", out / f"{count}-images", out / "stages.json"
    data, many = f"npz:{source}", str(count)
    if not source.exists():
        np.savez(source, x_train=images(count), x_test=images(10))
    place = ("--run", str(run), "--memory", limit)
    frozen = stage(log, "freeze", "--model", model, "--weights", "random", "--data", data, "--images", many, *place)
    decomposed = stage(log, "decompose", "--speedup", f"{speedup:g}x", *place)
    facts, tuned = RunDirectory.open(run).config("decompose"), {}
    if batch_size is not None:
        options = ("--labels", "none", "--epochs", "1", "--batch-size", str(batch_size))
        tuned = dict(zip(("finetune_seconds", "finetune_mib"), stage(log, "finetune", *options, *place)))
    return {
        "images": count, "limit": limit, "freeze_seconds": frozen[0], "freeze_mib": frozen[1],
        "decompose_seconds": decomposed[0], "decompose_mib": decomposed[1], "passes": facts["passes"],
        "frozen_mib": round((run / "frozen.h5").stat().st_size / 2**20),
        "spilled_mib": round(facts["spilled_bytes"] / 2**20),
        "run_mib": round(sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 2**20),
        "counted": facts["macs_before"] / facts["macs_after"], **tuned,
    }  # fmt: skip


def main():
    """Run what is missing, print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="torchvision:vgg16")
    parser.add_argument("--images", default="300", help="one number or several, with commas between")
    parser.add_argument("--memory", default="8GiB")
    parser.add_argument("--speedup", default=4.0, type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--out", default="runs/memory", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [
        measure(options.out, options.model, count, options.memory, options.speedup, options.batch_size)
        for count in numbers(options.images)
    ]  # fmt: skip
    text = markdown(FIELDS, rows)
    (options.out / "table.md").write_text(text + "\n")
    print(f"\n{options.model}, {machine()}\n\n{text}")


if __name__ == "__main__":
    main()
