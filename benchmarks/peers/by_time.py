"""Networks of this package for a measured speed-up, planned in the runtime in which all networks are timed."""

import torch

import decomp
from benchmarks.peers.ours import prepare

#: Threads of all measurements of time.
THREADS = 2
RUNTIME = "onnxruntime"


def plan(speedup, work, **options):
    """Plan for the speed-up at a batch of one image; this is the part that measures, so nothing else may run.

    Returns
    -------
    run : path
        In which :func:`compress` goes on.
    options : dict
        Of `decomp.decompose`.
    """
    torch.set_num_threads(THREADS)
    name = "-".join(f"{key}-{value}" for key, value in options.items()) or "all"
    run = work / f"by-time-{name}-{speedup:g}x"
    asked = {"speedup": speedup, "cost": "latency", "runtime": RUNTIME, "latency_batch": 1, **options}
    if not (run / "plan.json").exists():
        decomp.decompose(run, source_run=work / "frozen", plan_only=True, **asked)
    return run, asked


def compress(subject, speedup, work, **options):
    """Decompose by the plan for the measured speed-up, from the frozen points that all rows share."""
    seconds = prepare(subject, work)
    run, asked = plan(speedup, work, **options)
    decomp.decompose(run, **asked)
    return decomp.load(run / "model"), seconds
