"""Worker process for one row: compress or continue training, save, evaluate, print the row as JSON."""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import machine
from benchmarks.peers.methods import BY_TIME, METHODS
from benchmarks.peers.subject import Subject


def file_of(out, row):
    """Where the network of a row is kept."""
    parts = (row["network"], row["method"], f"{row['speedup']:g}x", f"seed{row['seed']}", f"{row['epochs']}ep")
    return Path(out) / "networks" / ("_".join(parts).replace("/", "-").replace(":", "-") + ".pt")


def shared_folder(out, row):
    """Where what several rows of a network and a seed share is kept."""
    return Path(out) / "shared" / f"{row['network'].replace(':', '-').replace('/', '-')}-seed{row['seed']}"


def make(out, row, methods=METHODS | BY_TIME):
    """Fill a row in."""
    subject = Subject(row["network"], row["data"], row["seed"])
    work = shared_folder(out, row).resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = file_of(out, row).resolve()
    path.parent.mkdir(exist_ok=True)
    home = os.getcwd()
    torch.manual_seed(row["seed"])
    start = time.monotonic()
    if row["epochs"]:
        from benchmarks.peers.tuning import tune

        before = torch.load(file_of(out, {**row, "epochs": 0}), weights_only=False)
        folded, n_images = methods[row["method"]].folded, row.get("train_images")
        network, seconds = tune(before, subject, row["epochs"], folded, n_images), 0.0
    else:
        network, seconds = methods[row["method"]].compress(subject, row["speedup"], work)
    seconds += time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    os.chdir(home)
    part = path.with_suffix(".part")
    torch.save(network, part)
    part.rename(path)
    measured = subject.judge(network, work / "original-outputs.pt")
    spent = {"seconds": round(seconds, 1), "peak_mib": round(peak), "machine": machine()}
    return {**row, **measured, **spent, "file": path.name}


def serve(make):
    """Fill in the row of the command line by ``make(out, row)``, print it, and nothing else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--row", required=True, help="JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stdout, sys.stdout = sys.stdout, sys.stderr  # tools print what they like
    print(json.dumps(make(options.out.resolve(), json.loads(options.row))), file=stdout)


if __name__ == "__main__":
    serve(make)
