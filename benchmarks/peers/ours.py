"""Method of this package, through the functions that its command line calls."""

import decomp
from benchmarks.peers.subject import once


def prepare(subject, work):
    """Freeze the network, and leave its error curves with the frozen points; see `once` for what it returns."""
    run = work / "frozen"

    def make():
        decomp.freeze(run, model=subject.name, data=subject.data, seed=subject.seed, n_images=subject.n_images)
        decomp.decompose(run, speedup=2, plan_only=True)

    return once(work, "frozen-and-surveyed", make)


def compress(subject, speedup, work, **options):
    """Decompose from the frozen points that all rows share."""
    seconds = prepare(subject, work)
    words = (f"{key}-{'+'.join(value) if isinstance(value, tuple) else value}" for key, value in options.items())
    name = "-".join(words) or "all"
    run = work / f"{name}-{speedup:g}x"
    decomp.decompose(run, source_run=work / "frozen", speedup=speedup, **options)
    return decomp.load(run / "model"), seconds
