"""One network at several speed-ups: a run directory for each, all from the frozen points and curves of one run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from decomp.errors import DecompError, TargetError, UsageError

from ..console.options import DecomposeOptions
from ..console.program import command_line, program
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..decomposition import refine_blocks as block_refinement
from ..decomposition.make_plan import decompose_options, require_reachable
from ..decomposition.rehearsal import rehearse
from ..decomposition.session import narrow, open_run, survey
from ..distributed.own_copy import take_folder
from ..distributed.process_group import count
from ..measure.closeness import percent
from ..measure.intervals import short_share
from ..measure.resources import Resources
from ..run.directory import RunDirectory
from ..run.reuse import note_redo
from ..stages.decompose import DecomposeResult, decompose


@dataclass(frozen=True)
class FamilyResult:
    """Results of `decompose`, one for each speed-up.

    Attributes
    ----------
    members : list of DecomposeResult
        Those that came to an end.
    failed : dict of str to str
        Run directories of the others, and the reasons.
    """

    members: list[DecomposeResult]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Of the command: 0 where all came to an end."""
        return 1 if self.failed else 0

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines: a table of the members, what failed and why, then the next steps."""
        yield from self.findings()
        yield from self.next_steps()

    def findings(self) -> Iterator[str]:
        """The lines without the next steps."""
        for member in self._planned():
            yield f"plan: {member.run.plan_json}, which can be edited"
        if len(self.members) > len(self._planned()):
            yield from self._table()
        if self.failed:
            made = ", ".join(str(member.run) for member in self.members) or "none"
            yield f"made: {made}; failed: {', '.join(self.failed)}. The same command tries these again"
        yield from (f"{run}: {reason}" for run, reason in self.failed.items())

    def next_steps(self) -> Iterator[str]:
        """The commands that continue the plans, or evaluate and compare the members."""
        for member in self._planned():
            yield f"next: {program()} {member.facts['again']}"
        if len(self.members) == len(self._planned()):
            return
        yield "to compare them, evaluate each and then all:"
        for member in self.members:
            yield f"next: {command_line('evaluate', member.run)}"
        yield f"next: {program()} compare {' '.join(shlex.quote(str(member.run)) for member in self.members)}"

    def _planned(self) -> list[DecomposeResult]:
        return [member for member in self.members if member.facts.get("plan_only")]

    def _table(self) -> Iterator[str]:
        scores = all("kl" in (member.facts.get("fidelity") or {"kl": 0}) for member in self.members)
        columns = ["KL divergence", "agreement"] if scores else ["outputs differ by"]
        rows = [["run", "target", "MACs", "counted", "parameters", *columns]]
        for member in self.members:
            f, close = member.facts, member.facts.get("fidelity") or {}
            row = [str(member.run), f"{f['asked']['speedup']:g}x", f"{f['macs_after'] / 1e6:,.2f} M"]
            row += [f"{f['macs_before'] / f['macs_after']:.2f}x", f"{f['params_after'] / 1e6:,.3f} M"]
            if scores:
                row.append(f"{close['kl']:.3g}" if close else "-")
                row.append(short_share(close["agreement"], close["images"]) if close else "-")
            else:
                row.append(percent(close["relative"]) if close else "-")
            if latency := f.get("latency"):
                row.append("-" if latency.get("other_sizes") else f"{latency['measured_speedup']:.2f}x")
            rows.append(row)
        if len(rows[-1]) > len(rows[0]):
            rows[0].append("measured")
        yield from text_table(rows).split("\n")
        yield "divergence and agreement: to the original, on held-out calibration images"
        for member in self.members:
            if refined := member.facts.get("block_refinement"):
                yield f"{member.run}: {block_refinement.summary(refined)}"


def family(
    run: str | os.PathLike[str],
    *,
    speedups: Sequence[float],
    source_run: str | os.PathLike[str] | None = None,
    plan: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    device: str = "auto",
    batch_size: int = 100,
    memory: int | str | None = None,
    plan_only: bool = False,
    redo: bool = False,
    **options: Any,
) -> FamilyResult:
    """Decompose one frozen network at several speed-ups.

    Parameters
    ----------
    run : path or RunDirectory
        ``runs/vgg`` gives ``runs/vgg-2x``, ``runs/vgg-3x`` and so on; the frozen points are those in it.
    speedups : sequence of float
    source_run : path, optional
        Take the frozen points from this run; ``run`` then only gives the names.
    plan : path, optional
        Refused: a plan has one speed-up.
    reporter : Reporter, optional
    device, batch_size, memory, plan_only, redo, options
        As for :func:`decomp.pipelines.stages.decompose.decompose`.

    Returns
    -------
    FamilyResult
        A member that ends in an error does not keep the others from being made.

    Raises
    ------
    UsageError, TargetError
        Before any work is done, also where only one of the speed-ups is out of reach.

    Notes
    -----
    Curves, metrics and measured latencies are made once, in the run with the frozen points. Each member is a run
    directory of its own: one that was stopped continues when the same command is given again.
    """
    reporter = reporter or Reporter()
    if plan is not None:
        raise UsageError("--plan", "is for one speed-up", got=", ".join(f"{s:g}x" for s in speedups))
    all_options = [decompose_options(speedup=speedup, **options) for speedup in speedups]
    base = RunDirectory.open(run if source_run is None else source_run)
    members = [RunDirectory(f"{RunDirectory(run)}-{member.speedup:g}x") for member in all_options]
    highest = max(all_options, key=lambda member: member.speedup)
    survey_once(base, highest, Resources.of(device, memory, batch_size), require=True, reporter=reporter)
    if redo:
        for member, asked in zip(members, all_options):
            note_redo(member, asked)
    done: list[DecomposeResult] = []
    failed: dict[str, str] = {}
    for member, speedup in zip(members, speedups):
        reporter.step(f"{member}: {speedup:g} times cheaper")
        take_folder(member.path)
        own = reporter.into(member)
        try:
            result = decompose(
                member, speedup=speedup, source_run=base.path, device=device, batch_size=batch_size, memory=memory,
                plan_only=plan_only, redo=redo, reporter=own, **options,
            )  # fmt: skip
        except Exception as error:
            if count() > 1 and not isinstance(error, TargetError):
                raise  # it may be of this process alone, and the others wait for it
            # The others do not depend on it: hours of work may still come out right.
            failed[str(member)] = _reason(error, member, base, speedup)
            reporter.warn(f"{member} failed: {failed[str(member)]}")
        else:
            done.append(result)
    return FamilyResult(done, failed)


def survey_once(
    base: RunDirectory, options: DecomposeOptions, resources: Resources, *, require: bool, reporter: Reporter
) -> None:
    """Make the curves and metrics of all members in the run with the frozen points.

    Parameters
    ----------
    base : RunDirectory
    options : DecomposeOptions
        Of the member with the highest speed-up.
    resources : decomp.pipelines.measure.resources.Resources
    require : bool
        Refuse a speed-up that is out of reach.
    reporter : Reporter
    """
    if options.coupled is not None:
        return  # each member is planned on a narrower network of its own
    with base.lock(), reporter.stage("survey for all speed-ups"), open_run(base, resources) as opened:
        rehearse(opened, options, {})  # each member says what it finds; here it only refuses before the survey
        surveyed = survey(opened, narrow(opened, {}, reporter=reporter), sampler=options.sampler, reporter=reporter)
        if require:
            require_reachable(options, surveyed)


def _reason(error: Exception, member: RunDirectory, base: RunDirectory, speedup: float) -> str:
    if isinstance(error, (DecompError, OSError)):
        return str(error)
    alone = f"--run {member} --from {base} --speedup {speedup:g}x --debug"
    return " ".join(f"{type(error).__name__}: {error}; with {alone} it shows the traceback.".split())
