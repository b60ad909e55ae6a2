"""Decompose, then export: files of each finished network; formats that cannot hold it are known in the first minute."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from decomp.errors import DecompError

from ..console.reporter import Reporter
from ..decomposition.make_plan import decompose_options, read_plan
from ..decomposition.rehearsal import rehearse
from ..decomposition.session import open_run
from ..distributed.process_group import from_first
from ..measure.resources import Resources
from ..run.directory import RunDirectory
from ..stages.export import ExportResult, export, require_format

#: Options of decompose that do not decide the network.
WORK = ("batch_size", "memory", "redo", "device", "source_run", "plan", "plan_only", "reporter")


class Result(Protocol):
    """Result of a decomposition of any kind, or of its evaluation."""

    def findings(self) -> Iterator[str] | list[str]:
        """Human-readable summary lines without the next steps."""


@dataclass(frozen=True)
class ExportedResult:
    """A decomposition and the exported files of its runs.

    Attributes
    ----------
    result : Result
    exports : dict of str to ExportResult
        By path of the run.
    failed : dict of str to str
        The other runs, and why their networks could not be exported.
    """

    result: Result
    exports: dict[str, ExportResult]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Of the command: 0 where all came to an end."""
        return 1 if self.failed else int(getattr(self.result, "exit_code", 0))

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines: of the decomposition, then of the files."""
        yield from self.result.findings()
        for made in self.exports.values():
            yield ""
            yield from made.lines()
        yield from (f"{run}: not exported: {reason}" for run, reason in self.failed.items())

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"result": self.result, "exports": self.exports, "failed": self.failed}


def require_exportable(
    run: str | os.PathLike[str] | RunDirectory,
    formats: Sequence[str],
    *,
    speedup: float | None,
    options: Mapping[str, Any],
    reporter: Reporter,
) -> None:
    """Export a network of random weights, of the kind that a decomposition will give, and drop the files.

    Parameters
    ----------
    run : path or RunDirectory
        Frozen, unless the options name another run for that. Nothing is tried where it is decomposed already.
    formats : sequence of str
    speedup : float or None
        None where a plan is given.
    options : mapping
        Of :func:`decomp.pipelines.stages.decompose.decompose`.
    reporter : Reporter

    Raises
    ------
    DecompError
        A format cannot hold such a network.
    """
    if (RunDirectory(run).model_dir / "structure.json").is_file():
        return
    source, plan = options.get("source_run"), options.get("plan")
    base = RunDirectory.open(run if source is None else source)
    decisive = {name: value for name, value in options.items() if name not in WORK}
    asked = decompose_options(None if plan is None else read_plan(plan), speedup=speedup, **decisive)
    resources = Resources.of(**{name: options[name] for name in ("device", "memory", "batch_size") if name in options})
    reporter.step(f"trying to export a network of random weights: {', '.join(formats)}")

    def attempt(folder: Path) -> None:
        def try_all() -> None:
            for name in formats:
                require_format(base, folder, name)

        from_first(try_all)

    with base.lock(), open_run(base, resources) as opened:
        rehearse(opened, asked, {}, use=attempt)


def exported(
    result: Result, runs: Sequence[RunDirectory], formats: Sequence[str], *, reporter: Reporter
) -> ExportedResult:
    """Export the networks of a decomposition.

    Parameters
    ----------
    result : Result
    runs : sequence of RunDirectory
        Decomposed.
    formats : sequence of str
        As for :func:`decomp.pipelines.stages.export.export`.
    reporter : Reporter

    Returns
    -------
    ExportedResult
        A network that cannot be exported does not keep the others from it. Of several processes the first one exports,
        and has the results.
    """
    exports: dict[str, ExportResult] = {}

    def export_all() -> dict[str, str]:
        failed = {}
        for run in runs:
            own = reporter.into(run)
            own.step(f"{run}: exporting")
            try:
                exports[str(run)] = export(run, formats=formats, which="decomposed", reporter=own)
            except DecompError as error:
                failed[str(run)] = str(error)
                own.warn(f"{run} is not exported: {error}")
        return failed

    failed = from_first(export_all)
    return ExportedResult(result, exports, failed)
