"""Main benchmark at several speed-ups: accuracy, latency, wall time and peak memory of every stage.

    python -m benchmarks.main_job --model zoo:vgg-fashion --data fashion-mnist --out runs/benchmark

Protocol: each stage is a process of its own, timed from outside, its peak memory as the operating system accounts it.
The network is frozen once; each speed-up is decomposed from these points, evaluated, fine-tuned for 1 and for 5 epochs
(each from the decomposed network, with its own schedule) and evaluated again. Latencies are medians of interleaved
rounds against the original in one process, at batch 1 and 64, and of the decomposed networks also with the channels
last in memory, the original's like theirs. Accuracies are those of the test images. What is there
already is not run again: an interrupted benchmark goes on.
"""

import argparse
from pathlib import Path

from benchmarks.common import evaluation, machine, markdown, numbers, stage, write_csv

FIELDS = (
    "speedup", "counted", "network", "top1", "agreement", "divergence", "params", "latency_1_ms", "measured_1",
    "latency_64_ms", "measured_64", "last_1_ms", "last_1", "last_64_ms", "last_64", "seconds", "peak_mib",
)  # fmt: skip


def measure(out, speedups, model, data, epochs):
    """All rows of the table."""
    log, base, rows = out / "stages.json", str(out / "frozen"), []
    seconds, peak = stage(log, "freeze", "--model", model, "--data", data, "--run", base)
    rows.append({"network": "freeze", "seconds": seconds, "peak_mib": peak})
    for speedup in speedups:
        run = str(out / f"{speedup}x")
        cost = stage(log, "decompose", "--run", run, "--from", base, "--speedup", f"{speedup}x")
        found = {n: evaluation(out, run, "decomposed", n)["rows"] for n in (1, 64)}
        last = {n: evaluation(out, run, "last", n, "--layout", "channels-last")["rows"] for n in (1, 64)}
        if not any(row["network"] == "original" for row in rows):
            rows.append(_row(found, 0, "original", 1, (None, None), last))
        rows.append(_row(found, 1, "decomposed", speedup, cost, last))
        for count in epochs:
            cost = stage(log, "finetune", "--run", run, "--epochs", str(count), "--redo")
            found = {n: evaluation(out, run, f"tuned{count}", n)["rows"] for n in (1, 64)}
            rows.append(_row(found, 2, f"{count} epoch{'s' * (count > 1)}", speedup, cost))
    return rows


def _row(found, place, name, speedup, cost, last=None):
    single, many = found[1][place], found[64][place]
    row = {
        "speedup": speedup, "counted": many["counted_speedup"], "network": name, "top1": many["top1"],
        "agreement": many["agreement"], "divergence": many["divergence"], "params": many["params"],
        "latency_1_ms": single["latency_ms"], "measured_1": single["measured_speedup"],
        "latency_64_ms": many["latency_ms"], "measured_64": many["measured_speedup"], "seconds": cost[0],
        "peak_mib": cost[1],
    }  # fmt: skip
    for size, rows in (last or {}).items():
        row[f"last_{size}_ms"], row[f"last_{size}"] = rows[place]["latency_ms"], rows[place]["measured_speedup"]
    return row


def main():
    """Run what is missing, print the table and write it beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="zoo:vgg-fashion")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--out", default="runs/benchmark", type=Path)
    parser.add_argument("--speedups", default="2,3,4,5")
    parser.add_argument("--epochs", default="1,5")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = measure(options.out, numbers(options.speedups), options.model, options.data, numbers(options.epochs))
    write_csv(options.out / "table.csv", FIELDS, rows)
    text = markdown(FIELDS, rows)
    (options.out / "table.md").write_text(text + "\n")
    print(f"\n{machine()}\n\n{text}")


if __name__ == "__main__":
    main()
