"""Asked and measured speed-up of plans by measured time, each network timed again in fresh processes.

    python -m benchmarks.clock --out runs/clock --networks zoo:vgg-fashion --runtimes eager,onnxruntime --asked 1.5,2,3

Protocol: a network is frozen once; for each runtime and speed-up one network is planned by measured time. It is then
timed against the original in interleaved rounds, in a new process for each repetition. A repetition holds its promise
where the ratio of medians is between 0.97 and 1.10 of what was asked. Before each repetition the benchmark is idle for
a second, in which the processors that others use are counted, and the spread of the original's own rounds is read
afterwards: where either is high the row is marked as busy and not
counted, unless --busy is given. Rows are appended to rows.jsonl: an interrupted benchmark goes on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import CLI, machine, markdown, numbers, stage

#: Shares of the asked speed-up between which a promise is kept.
LEAST, MOST = 0.97, 1.10
#: Processors that others use, and interquartile range over median of the original, on a quiet machine.
LOAD, SPREAD = 0.2, 0.2
FIELDS = ("network", "runtime", "asked", "planned", "measured", "low", "high", "kept", "repetitions", "busy", "refused")


def read_rows(path):
    """The rows of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ratio(times):
    """Ratio of medians, the original's relative spread, from the milliseconds of interleaved rounds."""
    low, middle, high = statistics.quantiles(times["original"], n=4, method="inclusive")
    return {"measured": middle / statistics.median(times["decomposed"]), "spread": (high - low) / middle}


def is_busy(row):
    """Whether the load before or the spread of the original's rounds speaks against a repetition."""
    return row["load"] > LOAD or row["spread"] > SPREAD


def summary(rows, with_busy=False):
    """A row of the table for each network, runtime and asked speed-up, in the order of the rows."""
    table, keys = [], list(dict.fromkeys((row["network"], row["runtime"], row["asked"]) for row in rows))
    for key in keys:
        own = [row for row in rows if (row["network"], row["runtime"], row["asked"]) == key]
        entry = dict(zip(FIELDS[:3], key, strict=True))
        entry["refused"] = next((row["refused"] for row in own if "refused" in row), None)
        timed = [row for row in own if "measured" in row]
        counted = [row for row in timed if with_busy or not is_busy(row)]
        entry |= {"repetitions": len(counted), "busy": sum(map(is_busy, timed))}
        if counted:
            found = [row["measured"] for row in counted]
            kept = sum(LEAST * key[2] <= value <= MOST * key[2] for value in found)
            entry |= {"planned": counted[0]["planned"], "measured": statistics.median(found)}
            entry |= {"low": min(found), "high": max(found), "kept": f"{kept} of {len(found)}"}
        table.append(entry)
    return table


def time_once(original, decomposed, runtime_name, threads):
    """Ratio and spread of two network directories in one runtime; called in a fresh process."""
    import torch

    import decomp
    from decomp.runtimes.choice import runtime
    from decomp.runtimes.timing import latencies, random_images

    torch.set_num_threads(threads)
    device, made = torch.device("cpu"), runtime(runtime_name, "contiguous")
    shape = (1, *json.loads((Path(original) / "structure.json").read_text())["input_shape"])
    example, paths = random_images(shape, device), {"original": original, "decomposed": decomposed}
    networks = {name: made.prepare(decomp.load(path).eval(), example) for name, path in paths.items()}
    return ratio(latencies(networks, shape, device, 300, max_seconds=3.0, min_rounds=20))


def busy_jiffies(text):
    """Time in which processors worked, and all their time, from the text of /proc/stat."""
    values = [int(value) for value in text.splitlines()[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)  # the 4th and 5th are idle, and waiting for disks


def processors_in_use(seconds=1.0):
    """How many processors are in use while this process sleeps; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    before = busy_jiffies(stat.read_text())
    time.sleep(seconds)
    busy, total = (after - first for after, first in zip(busy_jiffies(stat.read_text()), before))
    return round((os.cpu_count() or 1) * busy / max(total, 1), 3)


def repetition(base, run, name, threads):
    """Processors that others use, then :func:`time_once` in a process of its own."""
    load = processors_in_use()
    command = [sys.executable, "-m", "benchmarks.clock", "--time", str(base / "original"), str(run / "model"), name]
    done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return {"load": load, **json.loads(done.stdout.splitlines()[-1])}


def plan(out, base, run, name, asked, shared):
    """None, or the line with which decompose refused the speed-up."""
    if (run / "model").exists():
        return None
    command = ["decompose", "--run", str(run), "--from", str(base), "--speedup", f"{asked}x", "--cost", "latency"]
    done = subprocess.run(
        [sys.executable, str(CLI), *command, "--runtime", name, "--batch-size", "1", "--quiet", *shared],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    (out / "messages.txt").open("a").write(f"{run.name}: {done.stderr}")
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def measure(out, network, name, asked, options):
    """Append the rows that are missing for one network, runtime and speed-up."""
    path, label = out / "rows.jsonl", network.replace(":", "-")
    key = {"network": network, "runtime": name, "asked": asked}
    own = [row for row in read_rows(path) if key.items() <= row.items()]
    if any("refused" in row for row in own):
        return
    shared, base = ["--threads", str(options.threads), "--device", "cpu"], out / label
    stage(
        out / "stages.json", "freeze", "--model", network, "--data", options.data, "--images", str(options.images),
        "--run", str(base), "--quiet", *shared,
    )  # fmt: skip
    run = out / f"{label}-{name}-{asked}x"
    refused = plan(out, base, run, name, asked, shared)
    rows = [{**key, "refused": refused}] if refused else []
    while not rows and len(own) < options.repetitions:
        planned = json.loads((run / "plan.json").read_text())["latency"]["measured_speedup"]
        own.append({**key, "planned": planned, **repetition(base, run, name, options.threads)})
        with path.open("a") as file:
            file.write(json.dumps(own[-1]) + "\n")
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main():
    """Measure what is missing, print the table and write it to clock.md, or to the page of --report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--time", nargs=3, metavar=("ORIGINAL", "DECOMPOSED", "RUNTIME"), help=argparse.SUPPRESS)
    parser.add_argument("--out", default="runs/clock", type=Path)
    parser.add_argument("--networks", default="zoo:vgg-fashion,zoo:resnet20-fashion")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--runtimes", default="eager,onnxruntime")
    parser.add_argument("--asked", default="1.5,2,3")
    parser.add_argument("--images", default=1000, type=int)
    parser.add_argument("--repetitions", default=5, type=int, help="of each plan, each in a new process")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--busy", action="store_true", help="count repetitions on a busy machine too")
    parser.add_argument("--report", type=Path, help="page to write the table to")
    options = parser.parse_args()
    if options.time:
        print(json.dumps(time_once(*options.time, options.threads)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for network in options.networks.split(","):
        for name in options.runtimes.split(","):
            for asked in numbers(options.asked):
                measure(options.out, network, name, asked, options)
    rows = read_rows(options.out / "rows.jsonl")
    protocol = __doc__.split("Protocol: ")[1].strip()
    where = f"{machine()}; {options.threads} threads, batch of 1, contiguous"
    text = (
        f"# Asked and measured speed-up\n\n{protocol}\n\n{where}\n\n{markdown(FIELDS, summary(rows, options.busy))}\n"
    )
    (options.report or options.out / "clock.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
