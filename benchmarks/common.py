"""Shared parts of the benchmarks: stages in processes of their own, results of evaluate, tables."""

import csv
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

CLI = Path(__file__).resolve().parent.parent / "cli.py"


def stage(log, *arguments, cli=CLI):
    """Run one command, of this checkout or another; returns its seconds and peak memory in MiB, also from before."""
    key = " ".join(arguments)
    done = json.loads(log.read_text()) if log.exists() else {}
    if key not in done:
        print("$ decomp", key, flush=True)
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, str(cli), *arguments])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"decomp {key} ended with status {os.waitstatus_to_exitcode(status)}")
        done[key] = [round(time.monotonic() - start, 1), round(usage.ru_maxrss / 2**10)]
        log.write_text(json.dumps(done, indent=2))
    return done[key]


def evaluation(out, run, label, batch_size, *options):
    """The report of ``decomp evaluate`` for a run at one batch size, kept under a label."""
    kept = out / f"{Path(run).name}-{label}-{batch_size}.json"
    if not kept.exists():
        # Not in the log of stages: whether it is done, the kept report says.
        command = ("evaluate", "--run", str(run), "--batch-size", str(batch_size), "--redo", "--quiet", *options)
        print("$ decomp", " ".join(command), flush=True)
        subprocess.run([sys.executable, str(CLI), *command], check=True)
        kept.write_text((Path(run) / "report.json").read_text())
    return json.loads(kept.read_text())


def markdown(fields, rows):
    """Rows (dicts) as a Markdown table with these columns."""

    def cell(value):
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(fields) + " |", "|" + " --- |" * len(fields)]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in fields) + " |" for row in rows]
    return "\n".join(lines)


def put_section(path, heading, body):
    """Write a text under a heading of the second order of a Markdown page, in place of what stood there."""
    page = Path(path).read_text()
    before, found, rest = page.partition(f"\n## {heading}\n")
    if not found:
        raise SystemExit(f"{path}: it must have the heading {heading!r}; add it where the text is to stand.")
    _, following, behind = rest.partition("\n## ")
    Path(path).write_text(f"{before}{found}\n{body.strip()}\n{following}{behind}")


def write_csv(path, fields, rows):
    """Rows (dicts) as a CSV file with these columns."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def machine():
    """The machine in a line: the processor's model where Linux tells it, and how many there are."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} processors"


def numbers(text):
    """``'2,2.5'`` as numbers, whole where they are; ends the program where they are none."""
    try:
        return [float(part) if "." in part else int(part) for part in text.split(",") if part]
    except ValueError:
        raise SystemExit(f"{text!r}: must be numbers with commas between, such as 2,3.5.") from None
