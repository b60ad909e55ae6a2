"""Latency of the saved networks, each in rounds of its own against the original, on a quiet machine.

A batch of images goes through the original and one compressed network in turn (`decomp.runtimes.timing.latencies`);
kept are
the median ratio of the rounds and its quartiles, so that what else the machine does falls on both alike. Batch
normalisations are folded first, the original's too.
"""

import json
import statistics
from pathlib import Path

import torch
from torch.fx.experimental.optimization import fuse

from benchmarks.peers import driver
from benchmarks.peers.worker import file_of
from decomp.data import models
from decomp.runtimes.timing import latencies

BATCHES = (1, 64)


def measure(out, asked, rounds, *, batches=BATCHES):
    """Time what is saved and not timed yet, with the threads torch is given; rows go to ``latency.jsonl``."""
    results = Path(out) / "latency.jsonl"
    done, originals = driver.read(results), {}
    for row in asked:
        path = file_of(out, row)
        if driver.key_of(row) in done or not path.exists():
            continue
        if row["network"] not in originals:
            loaded = models.load_model(row["network"])
            originals[row["network"]] = folded(loaded.module.eval()), loaded.input_shape
        original, shape = originals[row["network"]]
        networks = {"original": original, "compressed": folded(torch.load(path, weights_only=False).eval())}
        timed = {**row, "threads": torch.get_num_threads()}
        for size in batches:
            times = latencies(networks, (size, *shape), torch.device("cpu"), rounds)
            timed.update({f"{key}_{size}": value for key, value in summary(times).items()})
        driver.append(results, timed)
        print(json.dumps(timed), flush=True)


def folded(network):
    """With batch normalisations folded into the convolutions, as it would be run; as it is where it is not traced."""
    try:
        return fuse(network)
    except Exception:  # whatever torch.fx says of a network that it cannot follow
        return network


def summary(times):
    """Median milliseconds of both, and how many times faster: median over the rounds and quartiles."""
    ratios = [before / after for before, after in zip(times["original"], times["compressed"])]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "original_ms": statistics.median(times["original"]), "ms": statistics.median(times["compressed"]),
        "faster": middle, "faster_low": low, "faster_high": high,
    }  # fmt: skip


def read(out):
    """Rows of an earlier measurement, by key."""
    return driver.read(Path(out) / "latency.jsonl")
