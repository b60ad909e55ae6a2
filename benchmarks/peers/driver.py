"""Driver of the comparison: lists the rows to compute and runs each missing one in its own process."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers.groups import training_in_words

KEYS = ("network", "data", "seed", "speedup", "epochs", "method")


def rows_asked(networks, data, seeds, speedups, epochs, methods, train_images=None):
    """Rows to be filled in, in the order in which they are run: shorter trainings first.

    What is to be trained is compressed first: rows without training are asked for always. Rows with training say on
    how many of the training images, where it is not on all.
    """
    return [
        {
            "network": network,
            "data": data,
            "seed": seed,
            "speedup": speedup,
            "epochs": count,
            "method": method,
            **({"train_images": train_images} if count and train_images else {}),
        }  # fmt: skip
        for count in sorted({0, *epochs})
        for network in networks
        for seed in seeds
        for speedup in speedups
        for method in methods
    ]


def key_of(row):
    """What makes a row the same row."""
    return tuple(float(row[name]) if name == "speedup" else row[name] for name in KEYS)


def read(results):
    """Rows of a results file, by key; a last line that was cut off by a crash is passed over."""
    found = {}
    if Path(results).exists():
        for line in Path(results).read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[key_of(row)] = row
    return found


def append(results, row):
    """Add a row to the file, on a line of its own also behind one that was cut off."""
    with open(results, "a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(row) + "\n").encode())
        file.flush()


def run(out, asked, *, worker=(sys.executable, "-m", "benchmarks.peers.worker"), wrap="", retry=False):
    """Make the rows that are not there; a tool that fails gets a row that says how.

    Parameters
    ----------
    out : path
    asked : list of dict
        See :func:`rows_asked`.
    worker : sequence of str
        Command that fills in a row.
    wrap : str
        Command put in front, such as ``taskset -c 0``.
    retry : bool
        Make those anew that failed.

    Returns
    -------
    dict of tuple to dict
        All rows of the file, by key.
    """
    results = Path(out) / "results.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    done = read(results)
    for number, row in enumerate(asked, 1):
        before = done.get(key_of(row))
        if before is not None and not (retry and "error" in before):
            continue
        start = time.monotonic()
        untrained = done.get(key_of({**row, "epochs": 0}), {})
        if row["epochs"] and "error" in untrained:
            row = {**row, "error": untrained["error"]}  # there is no network to train
        else:
            command = [*shlex.split(wrap), *worker, "--out", str(out), "--row", json.dumps(row)]
            row = filled(row, subprocess.run(command, capture_output=True, text=True))
        append(results, row)
        done[key_of(row)] = row
        print(f"[{number}/{len(asked)}] {said(row)} ({time.monotonic() - start:.0f} s)", flush=True)
    return done


def filled(row, ended):
    """The row that a process printed, or one with the last words of its failure."""
    lines = [line for line in ended.stdout.splitlines() if line.strip()]
    if ended.returncode == 0 and lines:
        return json.loads(lines[-1])
    words = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    return {**row, "error": words[-1] if words else f"ended with status {ended.returncode}"}


def said(row):
    """A row in a line."""
    trained = training_in_words(row["epochs"], row.get("train_images"))
    name = f"{row['network']} {row['method']} {row['speedup']:g}x, {trained}"
    if "error" in row:
        return f"{name}: {row['error']}"
    if "top1" not in row:
        return f"{name}: counted {row['counted']:.3f}x"
    return f"{name}: counted {row['counted']:.3f}x, top-1 {row['top1']:.2%}, kl {row['kl']:.3g}, {row['seconds']:.0f} s"
