"""Speed of the stages on a GPU, latency as planned, and agreement with the CPU.

    python -m benchmarks.gpu --out runs/gpu
    python -m benchmarks.gpu --out runs/gpu --parts layer,tuning
    python -m benchmarks.gpu --trial            # every part at a small size on the CPU, in seconds

Each part is a process of its own with a limit of time. Its figures are appended to rows.jsonl as soon as they are
known; a part that ended is not run again. With --report the page is written from the rows that are there.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu import page
from benchmarks.gpu.settings import TRIAL, Setting, read_rows


def run_part(name, out, trial):
    """Run one part in this process and append its rows."""
    import torch

    from benchmarks.gpu.parts import PARTS

    setting = TRIAL if trial else Setting()
    of = torch.cuda.get_device_name() if setting.device == "cuda" else "CPU, a trial"
    start = time.monotonic()
    for row in PARTS[name][0](setting, out):
        append(out, {"part": name, **row, "device": of, "torch": torch.__version__})
    append(out, {"part": name, "what": "ended", "value": time.monotonic() - start, "unit": "s"})


def append(out, row):
    """Append a row, and print it."""
    with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(row["part"], row["what"], row["value"], row["unit"], row.get("note", ""), flush=True)


def in_own_process(name, out, trial, limit):
    """Run a part in a process group of its own; end it, and what it started, after so many seconds."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(out)]
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *(["--trial"] if trial else [])], start_new_session=True, stderr=log
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = f"stopped after {limit:g} s"
    if code:
        print(f"{name}: {code}; see {out / name}.log", flush=True)
        print("".join((out / f"{name}.log").read_text(encoding="utf-8").splitlines(keepends=True)[-12:]), flush=True)


def main():
    """Run the parts that are missing, and write the page where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/gpu", type=Path)
    parser.add_argument("--parts", help="some of the parts, with commas between")
    parser.add_argument("--trial", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--limit", type=float, help="seconds of each part, where the part's own limit is too long")
    parser.add_argument("--report", type=Path, help="page to write the figures to")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--time", nargs=3, metavar=("RUN", "RUNTIME", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        from benchmarks.gpu.parts import timed

        run, name, batch = options.time
        print(timed(Path(run), name, int(batch), "cuda"))
    elif options.part:
        run_part(options.part, options.out, options.trial)
    else:
        run_all(options)


def run_all(options):
    """Every part that is asked for and has not ended yet; then the page."""
    import torch

    from benchmarks.gpu.parts import PARTS

    if not options.trial and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: there is no CUDA device here; --trial runs every part small on the CPU.")
    asked = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := [name for name in asked if name not in PARTS]:
        raise SystemExit(f"--parts: there are {', '.join(PARTS)}, got {', '.join(unknown)}.")
    options.out.mkdir(parents=True, exist_ok=True)
    ended = [row["part"] for row in read_rows(options.out / "rows.jsonl") if row["what"] == "ended"]
    for name in asked:
        if name not in ended:
            limit = PARTS[name][1] if options.limit is None else min(options.limit, PARTS[name][1])
            in_own_process(name, options.out, options.trial, limit)
    rows = read_rows(options.out / "rows.jsonl")
    print(page.table(rows))
    if options.report:
        page.write(options.report, rows)


if __name__ == "__main__":
    main()
