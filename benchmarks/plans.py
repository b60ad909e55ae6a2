"""Allocations compared: accuracy, divergence and agreement after decomposition alone.

    python -m benchmarks.plans --out runs/plans

Protocol: for each seed (which draws the calibration images and points) the network is frozen once; from these points
each allocation makes one network for every speed-up, and nothing is trained. Accuracy is that on the test images;
divergence (mean Kullback-Leibler divergence in nats) and agreement (share of images with the same first class) are to
the original network, on the same images. Tables hold means over the seeds, table.csv every single network, and
accuracy.png the accuracy against the multiply-accumulates. What is there already is not run again: an interrupted
benchmark goes on.
"""

import argparse
from pathlib import Path
from statistics import mean

from benchmarks.common import evaluation, machine, markdown, numbers, stage, write_csv

FIELDS = (
    "allocation", "seed", "speedup", "counted", "macs", "params", "top1", "lost_points", "divergence", "agreement",
)  # fmt: skip
MEANS = ("allocation", "speedup", "counted", "top1", "lost_points", "worst_seed", "divergence", "agreement")


def measure(out, model, data, speedups, seeds, allocations, images, options):
    """A row for every network, the originals first; and the conditions of the last evaluation."""
    log, rows, originals, conditions = out / "stages.json", [], [], {}
    for seed in seeds:
        base = str(out / f"seed{seed}")
        asked = ("--model", model, "--data", data, "--seed", str(seed), "--images", str(images))
        stage(log, "freeze", *asked, "--run", base, "--quiet")
        # Leaves the error curves with the frozen points, where every run that starts from these finds them.
        stage(log, "decompose", "--run", base, "--speedup", f"{min(speedups)}x", "--plan-only", "--quiet")
        for allocation in allocations:
            run = out / f"{allocation}-seed{seed}"
            for speedup in speedups:
                member = f"{run}-{speedup}x"
                asked = ("--run", member, "--from", base, "--speedup", f"{speedup}x", "--allocation", allocation)
                stage(log, "decompose", *asked, *options, "--quiet")
                report = evaluation(out, member, "plans", 1, "--repeats", "1")
                conditions, (original, decomposed) = report["conditions"], report["rows"][:2]
                originals.append(_row("original", seed, 1, original, original))
                rows.append(_row(allocation, seed, speedup, decomposed, original))
    return [originals[0], *rows], conditions


def _row(allocation, seed, speedup, row, original):
    lost = None if row["top1"] is None else 100 * (original["top1"] - row["top1"])
    return {
        "allocation": allocation, "seed": seed, "speedup": speedup, "counted": row["counted_speedup"],
        "macs": row["macs"], "params": row["params"], "top1": row["top1"], "lost_points": lost,
        "divergence": row["divergence"], "agreement": row["agreement"],
    }  # fmt: skip


def means(rows):
    """One row for each allocation and speed-up: means over the seeds, and the most points any of them lost."""
    groups = {}
    for row in rows:
        groups.setdefault((row["speedup"], row["allocation"]), []).append(row)
    found = []
    for (speedup, allocation), group in sorted(groups.items(), key=lambda item: item[0][0]):
        made = {"allocation": allocation, "speedup": speedup}
        for name in ("counted", "macs", "top1", "lost_points", "divergence", "agreement"):
            values = [row[name] for row in group if row[name] is not None]
            made[name] = mean(values) if values else None
        lost = [row["lost_points"] for row in group if row["lost_points"] is not None]
        made["worst_seed"] = max(lost) if lost else None
        found.append(made)
    return found


def draw(path, rows, averaged):
    """Accuracy against multiply-accumulates, a line for each allocation through its means, a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    original = averaged[0]
    axes.axhline(100 * original["top1"], color="0.6", linewidth=1, label="original")
    for allocation in dict.fromkeys(row["allocation"] for row in averaged[1:]):
        line = [row for row in averaged if row["allocation"] == allocation]
        (drawn,) = axes.plot([r["macs"] / 1e6 for r in line], [100 * r["top1"] for r in line], "-", label=allocation)
        dots = [row for row in rows if row["allocation"] == allocation]
        x, y = [r["macs"] / 1e6 for r in dots], [100 * r["top1"] for r in dots]
        axes.plot(x, y, ".", color=drawn.get_color(), markersize=4)
    axes.set_xlabel("multiply-accumulates of one image, millions")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("after decomposition alone, nothing trained")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main():
    """Run what is missing; print the table of means and write tables and picture beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="zoo:vgg-fashion")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--out", default="runs/plans", type=Path)
    parser.add_argument("--speedups", default="2,3,4,5,8")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--allocations", default="joint,energy,uniform")
    parser.add_argument("--images", default=5000, type=int)
    parser.add_argument("rest", nargs="*", metavar="OPTION", help="after --: further options of decomp decompose")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows, conditions = measure(
        options.out, options.model, options.data, numbers(options.speedups), numbers(options.seeds),
        options.allocations.split(","), options.images, options.rest,
    )  # fmt: skip
    averaged = means(rows)
    write_csv(options.out / "table.csv", FIELDS, rows)
    text = markdown(MEANS, averaged)
    (options.out / "table.md").write_text(text + "\n")
    if averaged[0]["top1"] is not None:
        draw(options.out / "accuracy.png", rows, averaged)
    print(f"\n{__doc__.split('Protocol: ')[1]}\n{machine()}, {conditions['threads']} threads")
    print(f"{options.model} on {conditions['n_images']:,} test images of {conditions['data']}\n\n{text}")


if __name__ == "__main__":
    main()
