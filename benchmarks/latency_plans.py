"""Counted and measured speed-up of plans by multiply-accumulates and of plans by measured time.

    python -m benchmarks.latency_plans --out runs/latency --layout channels-last

Protocol: the network is frozen once. For each speed-up one network is planned by multiply-accumulates, and one by
measured time for each batch size. Latencies are medians of interleaved rounds against the original in one process, on
one device; what else the machine does falls on both. Accuracies are those of the test images, nothing is trained. What
is there already is not run again: an interrupted benchmark goes on. A row without figures was refused as out of reach.
"""

import argparse
import json
from pathlib import Path

from benchmarks.common import evaluation, machine, markdown, numbers, stage, write_csv

FIELDS = (
    "cost", "speedup", "batch", "counted", "measured", "planned", "latency_ms", "original_ms", "spread", "top1",
    "divergence", "seconds",
)  # fmt: skip


def measure(out, model, data, speedups, batches, images, layout, options):
    """A row for every plan and batch size; and the conditions they were measured under."""
    log, base, rows = out / "stages.json", str(out / "frozen"), []
    stage(log, "freeze", "--model", model, "--data", data, "--images", str(images), "--run", base, "--quiet", *options)
    # Leaves the error curves with the frozen points, where every run that starts from these finds them.
    stage(log, "decompose", "--run", base, "--speedup", f"{min(speedups)}x", "--plan-only", "--quiet", *options)
    conditions = {}
    for speedup in speedups:
        for batch in batches:
            for cost in ("macs", "latency"):
                run = str(out / (f"{cost}-{speedup}x" + (f"-batch{batch}-{layout}" if cost == "latency" else "")))
                asked = ["--run", run, "--from", base, "--speedup", f"{speedup}x", "--cost", cost, *options]
                asked += ["--batch-size", str(batch), "--layout", layout] if cost == "latency" else []
                try:
                    seconds, _ = stage(log, "decompose", *asked, "--quiet")
                except SystemExit:  # told above: on small networks what is asked for can be out of reach
                    rows.append({"cost": cost, "speedup": speedup, "batch": batch})
                    continue
                report = evaluation(out, run, f"latency-{layout}", batch, "--layout", layout, *options)
                conditions = report["conditions"]
                rows.append(_row(cost, speedup, batch, report["rows"], _planned(run), seconds))
    return rows, conditions


def _planned(run):
    """The speed-up that was measured when the plan was made; None for a plan by multiply-accumulates."""
    return json.loads((Path(run) / "plan.json").read_text()).get("latency", {}).get("measured_speedup")


def _row(cost, speedup, batch, rows, planned, seconds):
    original, decomposed = rows[:2]
    low, high = decomposed["latency_quartiles_ms"]
    return {
        "cost": cost, "speedup": speedup, "batch": batch, "counted": decomposed["counted_speedup"],
        "measured": decomposed["measured_speedup"], "planned": planned, "latency_ms": decomposed["latency_ms"],
        "original_ms": original["latency_ms"], "spread": (high - low) / decomposed["latency_ms"],
        "top1": decomposed["top1"], "divergence": decomposed["divergence"], "seconds": seconds,
    }  # fmt: skip


def main():
    """Run what is missing, print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="zoo:vgg-fashion")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--out", default="runs/latency", type=Path)
    parser.add_argument("--speedups", default="2,3")
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--images", default=5000, type=int)
    parser.add_argument("--threads", help="of the CPU, in every stage")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--layout", default="contiguous", help="of images and weights, or channels-last")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shared = ["--device", options.device] + (["--threads", options.threads] if options.threads else [])
    rows, conditions = measure(
        options.out, options.model, options.data, numbers(options.speedups), numbers(options.batches),
        options.images, options.layout, shared,
    )  # fmt: skip
    write_csv(options.out / f"table-{options.layout}.csv", FIELDS, rows)
    text = markdown(FIELDS, rows)
    (options.out / f"table-{options.layout}.md").write_text(text + "\n")
    where = f"{machine()}; {conditions['device']}, {conditions['threads']} threads, {options.layout}"
    print(f"\n{__doc__.split('Protocol: ')[1]}\n{where}")
    print(f"{options.model} on {conditions['n_images']:,} test images of {conditions['data']}\n\n{text}")


if __name__ == "__main__":
    main()
