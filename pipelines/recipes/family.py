"""One network at several speed-ups: a run directory for each, all from the frozen points and curves of one run."""

from dataclasses import dataclass
from inspect import signature

from decomp.errors import UsageError

from ..console.program import program
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..decomposition import make_plan as planning
from ..decomposition import session as subject
from ..measure.devices import pick_device
from ..run.directory import RunDirectory
from ..stages.decompose import decompose


@dataclass(frozen=True)
class FamilyResult:
    """The results of `decompose`, one for each speed-up."""

    members: list

    def lines(self):
        """A table for a person."""
        rows = [["run", "asked", "MACs", "counted", "parameters", "KL divergence", "agreement"]]
        if any(member.facts.get("plan_only") for member in self.members):
            yield from (f"plan in {member.run.plan_json}" for member in self.members)
            return
        for member in self.members:
            f, close = member.facts, member.facts.get("fidelity") or {}
            row = [str(member.run), f"{f['asked']['speedup']:g}x", f"{f['macs_after'] / 1e6:,.2f} M"]
            row += [f"{f['macs_before'] / f['macs_after']:.2f}x", f"{f['params_after'] / 1e6:,.3f} M"]
            row.append(f"{close['kl']:.4f}" if "kl" in close else "-")
            row.append(f"{close['agreement']:.2%}" if "agreement" in close else "-")
            if f.get("latency"):
                row.append(f"{f['latency']['measured_speedup']:.2f}x")
            rows.append(row)
        if len(rows[-1]) > len(rows[0]):
            rows[0].append("measured")
        yield from text_table(rows).split("\n")
        yield "divergence and agreement: to the original, on held-out calibration images"
        yield f"next: {program()} finetune --run {self.members[0].run}, and so for each"


def family(
    run, *, speedups, source_run=None, plan=None, reporter, device="auto", batch_size=100, memory=None, **options
):
    """Decompose one frozen network at several speed-ups.

    Parameters
    ----------
    run : path or RunDirectory
        ``runs/vgg`` gives ``runs/vgg-2x``, ``runs/vgg-3x`` and so on; the frozen points are those in it.
    speedups : sequence of float
    source_run : path, optional
        Take the frozen points from this run; ``run`` then only gives the names.
    reporter : decomp.pipelines.console.reporter.Reporter
    device, batch_size, memory, options
        As for :func:`decomp.pipelines.stages.decompose.decompose`.

    Returns
    -------
    FamilyResult

    Raises
    ------
    UsageError, TargetError
        Before any work is done, also where only one of the speed-ups cannot be had.

    Notes
    -----
    Curves, metrics and measured latencies are made once, in the run with the frozen points. Each member is a run
    directory of its own: one that was stopped goes on when the same is asked for again.
    """
    if plan is not None:
        raise UsageError("--plan", "is for one speed-up", got=", ".join(f"{s:g}x" for s in speedups))
    base = RunDirectory.open(run if source_run is None else source_run)
    members = [RunDirectory(f"{RunDirectory(run)}-{speedup:g}x") for speedup in speedups]
    chosen = pick_device(device)
    defaults = {name: parameter.default for name, parameter in signature(decompose).parameters.items()}
    room = {"memory": memory, "batch_size": batch_size}
    if options.get("coupled") is None:  # otherwise each member is planned on a narrower network of its own
        with base.lock(), reporter.stage("family"), subject.opened(base, chosen, **room) as opened:
            opened.survey(base, device=chosen, reporter=reporter)
            planning.require_reachable(opened, {**defaults, **options, "speedup": max(speedups)})
    results = []
    for member, speedup in zip(members, speedups):
        reporter.step(f"{member}: {speedup:g} times cheaper")
        own = Reporter.for_run(member, quiet=reporter.quiet, stream=reporter.stream, command=reporter.command)
        options.update(source_run=base.path, device=device, **room)
        results.append(decompose(member, speedup=speedup, reporter=own, **options))
    return FamilyResult(results)
