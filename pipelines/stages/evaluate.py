"""Stage ``evaluate``: accuracy, cost and latency of the original, decomposed or pruned, and fine-tuned network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp.cost.count import cost
from decomp.errors import FileError
from decomp.runtimes.precision import exact_float32

from ...data.formats import network_file
from ...data.formats.digests import digest_file
from ...data.formats.json_files import write_json
from ...data.transforms import Shape
from ..console.options import EvaluateOptions
from ..console.parse import runtimes
from ..console.program import command_line, program
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..console.words import counted
from ..distributed.process_group import from_first
from ..measure.closeness import closeness_words, percent
from ..measure.devices import pick_device
from ..measure.intervals import short_share
from ..measure.latency import (
    Measurement,
    asked_conditions,
    chosen_runtimes,
    comparable,
    latency_lines,
    measured_in_all,
)
from ..measure.planned import settled
from ..measure.tested import ON_IMAGES, Tested, measure_on_images
from ..reporting import verdict
from ..run import loading
from ..run.begun import compressing_command
from ..run.directory import RunDirectory
from ..run.evaluated import KIND, keep_unusable, read_evaluation
from ..run.networks import compressed, existing, missing, unimproved
from ..run.record import library_versions
from ..run.target import promise_of_run

#: What the measurements on images depend on.
TESTED_BY = ("device", "networks", "tuning_finished", "versions")


@dataclass(frozen=True)
class Row:
    """Measurements of one network. Shares are in 0..1, times in milliseconds; None where they cannot be measured.

    ``agreement`` is the share of images with the original's first class, ``divergence`` the mean Kullback-Leibler
    divergence from the original's class probabilities in nats; ``lost`` is the squared difference of the outputs over
    their variance, the mean of all outputs, and ``outputs`` has these of each by name
    (:meth:`decomp.pipelines.measure.closeness.Closeness.result`). ``counted_speedup`` is the ratio of
    multiply-accumulates, ``measured_speedup`` that of median latencies, each to the original's.
    """

    network: str
    top1: float | None
    top5: float | None
    agreement: float | None
    divergence: float | None
    lost: float | None
    outputs: dict[str, dict[str, Any]]
    macs: int
    params: int
    latency_ms: float
    latency_quartiles_ms: tuple[float, float]
    counted_speedup: float
    measured_speedup: float


@dataclass(frozen=True)
class EvaluationResult:
    """Result of the stage: the table of networks.

    Attributes
    ----------
    rows : list of Row
        The original first, then the other networks of the run.
    conditions : dict
        ``batch_size``, ``device``, ``threads``, ``rounds``, ``data``, ``n_images``, ``versions``; ``runtime`` and
        ``layout`` are those of the latencies in the rows; ``planned`` is the time that was measured for the plan.
    notes : list of str
        Reasons for empty columns, and warnings.
    classes : dict
        Correct images of each class, see :meth:`decomp.pipelines.measure.class_counts.ClassCounts.to_json`; empty
        without labels.
    latencies : list of Measurement
        All measurements of time that were ever made of networks of the run, each with its conditions; the last ones
        are new.
    run : RunDirectory, optional
    done_before : bool
        The report existed already, of the same networks under the same conditions.
    """

    rows: list[Row] = field(repr=False)
    conditions: dict[str, Any] = field(repr=False)
    notes: list[str] = field(default_factory=list, repr=False)
    classes: dict[str, Any] = field(default_factory=dict, repr=False)
    latencies: list[Measurement] = field(default_factory=list, repr=False)
    run: RunDirectory | None = None
    done_before: bool = False

    def table(self) -> str:
        """The table as text."""
        # Outputs that are not class scores have no accuracy: what they lost is in its place.
        scores = all(
            one["kind"] == "scores" and len(row.outputs) == 1 for row in self.rows for one in row.outputs.values()
        )
        columns = ["top-1", "top-5"] if scores else ["lost"]
        rows = [["network", *columns, "MACs", "parameters", "latency", "counted", "measured"]]
        for row in self.rows:
            n_images = self.conditions["n_images"]
            shares = ["-" if value is None else short_share(value, n_images) for value in (row.top1, row.top5)]
            if not scores:
                shares = ["-" if row.lost is None else percent(row.lost)]
            sizes = [f"{row.macs / 1e6:,.2f} M", f"{row.params / 1e6:,.3f} M", f"{row.latency_ms:,.2f} ms"]
            rows.append([row.network, *shares, *sizes, f"{row.counted_speedup:.2f}x", f"{row.measured_speedup:.2f}x"])
        return text_table(rows)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines: what was found, then the next steps."""
        yield from self.findings()
        yield from self.next_steps()

    def findings(self) -> Iterator[str]:
        """The lines without the next steps."""
        c = self.conditions
        yield from self.table().split("\n")
        tested = f"on {c['n_images']:,} {c['images']} of {c['data']}; " if c["n_images"] else ""
        if tested and self.rows[0].top1 is not None:
            tested = f"top-1 and top-5 with 95 % intervals, {tested}"
        for row in self.rows[1:] if c["n_images"] else []:
            found = {"images": c["n_images"], "relative": row.lost, "outputs": row.outputs}
            first, *others = closeness_words(found, c["images"]).split("\n")
            yield f"{row.network}: {first}"
            yield from (f"  {line}" for line in others)
        yield (
            f"{tested}latency: median of {c['rounds']} interleaved rounds in {c.get('runtime', 'eager')}, batch of "
            f"{c['batch_size']}, float32, {c['layout']}, {c['device']}{_threads(c)}; speed-ups are relative to the "
            "original"
        )
        if self.latencies:
            yield from latency_lines(comparable(self.latencies, self.latencies[-1]))
        yield from self.notes
        if self.done_before:
            yield "measured earlier; use --redo to measure again"
        report = self.to_json()
        if words := verdict.verdict(report, None):
            yield words
        doubts = verdict.warnings(report, "RUN" if self.run is None else str(self.run), program())
        yield from doubts[sum(note.startswith(verdict.UNRELIABLE) for note in self.notes) :]  # the others stand above

    def next_steps(self) -> Iterator[str]:
        """The lines with the next steps."""
        if self.run is not None and len(self.rows) > 1:
            yield f"next: {command_line('report', self.run)}"
            yield f"  or: {command_line('export', self.run)}"
        elif self.run is not None:
            yield f"next: {compressing_command(RunDirectory(self.run))}"

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        rows = [asdict(row) for row in self.rows]
        return {
            "rows": rows, "conditions": self.conditions, "notes": list(self.notes), "classes": self.classes,
            "latencies": [one.to_json() for one in self.latencies],
        }  # fmt: skip


@exact_float32()
def evaluate(
    run: str | os.PathLike[str] | RunDirectory,
    *,
    batch_size: int | None = None,
    runtime: str | Sequence[str] | None = None,
    layout: str | None = None,
    device: str = "auto",
    repeats: int = 30,
    redo: bool = False,
    reporter: Reporter | None = None,
) -> EvaluationResult:
    """Measure every network that is in a run.

    Parameters
    ----------
    run : path or RunDirectory
        Frozen at least; decomposed, pruned and fine-tuned networks are measured where they exist.
    batch_size : int, optional
        Images per batch in the latency measurement. Where not given, this and the next two are those of the plan for a
        network that was planned by latency, otherwise 64, 'eager' and 'contiguous'.
    runtime : str or sequence of str, optional
        Runtimes in which latency is measured, of :data:`decomp.runtimes.names.RUNTIMES`, or 'all' for those that are
        installed. The table of networks shows the first one that takes all networks. What was measured before is
        kept, and not measured again under the same conditions.
    layout : {'contiguous', 'channels-last'}, optional
        Memory layout of images and weights in the latency measurement, of all networks alike.
    device : str
        'auto', 'cpu', 'cuda' or 'cuda:N'.
    repeats : int
        Rounds of the latency measurement. In each, every network runs once, so that other load of the machine
        affects all of them alike.
    redo : bool
        Measure again.
    reporter : Reporter, optional

    Returns
    -------
    EvaluationResult
        Also written to report.json in the run.

    Raises
    ------
    FileError
        There is no original network, the fine-tuned one was made from another decomposed or pruned one, or an earlier
        report.json is damaged.

    Notes
    -----
    Reads the test split, as ``train`` does after its last epoch; no stage decides anything by it.
    """
    options = EvaluateOptions(batch_size, None if runtime is None else runtimes(runtime), layout, repeats)
    run, reporter = RunDirectory.open(run), reporter or Reporter()
    with run.lock(), reporter.stage("evaluate"):
        target, planned = pick_device(device), promise_of_run(run)
        options, taken = settled(options, planned, target)
        assert options.batch_size is not None and options.runtime is not None and options.layout is not None
        if taken:
            reporter.step(taken)
        pairs, said = chosen_runtimes(options.runtime, target, options.layout)
        asked = [asked_conditions(*pair, target, options.batch_size, options.repeats) for pair in pairs]
        paths = _network_paths(run)
        digests = {name: digest_file(path / "structure.json") for name, path in paths.items()}
        identity = from_first(lambda: {
            "batch_size": options.batch_size, "layout": options.layout, "device": str(target),
            "repeats": options.repeats, "threads": torch.get_num_threads(), "latencies": asked,
            "networks": digests,
            "tuning_finished": run.config("finetune") is not None, "versions": library_versions(),
        })  # fmt: skip
        before = _before(run)
        if not redo and before is not None and before[1] == identity:
            return before[0]
        networks: dict[str, nn.Module] = {
            name: loading.load_network(run, path).to(target).eval() for name, path in paths.items()
        }
        shape = _shape(run)
        tested = None if redo or before is None else _tested_before(*before, identity)
        tested = tested or measure_on_images(run, networks, shape, target, reporter)
        earlier = [] if before is None else before[0].latencies
        # Measured by one process, while the others wait.
        times, main = from_first(
            lambda: measured_in_all(networks, digests, shape, target, asked, [] if redo else earlier, reporter.step)
        )
        kept = [one for one in earlier if not any(one.matches(new.conditions, new.networks) for new in times)]
        conditions = {
            "batch_size": options.batch_size, "layout": main.conditions["layout"], "device": device_name(target),
            "threads": identity["threads"], "rounds": main.conditions["rounds"], **tested.facts,
            "runtime": main.conditions["runtime"], "optimisation": main.conditions["optimisation"],
            "versions": identity["versions"], "planned": planned,
        }  # fmt: skip
        notes = [*tested.notes, *_missing(run), *said, *(note for one in times for note in one.notes())]
        rows = _rows(networks, shape, tested.columns, main)
        result = EvaluationResult(rows, conditions, notes, tested.classes, [*kept, *times], run)
        content = {"identity": identity, "tested_notes": tested.notes, **result.to_json()}
        if before is None:
            keep_unusable(run, reporter)
        write_json(run.report_json, content, kind=KIND, seal=True)
        return result


def _shape(run: RunDirectory) -> tuple[int, int, int]:
    channels, height, width = network_file.read_structure(run.original_dir)["input_shape"]
    return channels, height, width


def _tested_before(
    result: EvaluationResult, identity: Mapping[str, Any], notes: list[str], now: Mapping[str, Any]
) -> Tested | None:
    """The measurements on images of an earlier evaluation of the same networks; None where it was of others."""
    if any(identity.get(key) != now[key] for key in TESTED_BY):
        return None
    columns = {row.network: {key: getattr(row, key) for key in ON_IMAGES} for row in result.rows}
    facts = {key: result.conditions[key] for key in ("data", "n_images", "images", "test_digest")}
    return Tested(columns, result.classes, facts, notes)


def device_name(device: torch.device) -> str:
    """Name of the device in tables."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _threads(conditions: Mapping[str, Any]) -> str:
    count = conditions["threads"]
    return f", {counted(count, 'thread')}" if conditions["device"] == "CPU" else ""


def _network_paths(run: RunDirectory) -> dict[str, Path]:
    """Folders of the run's networks by label, in the order of the stages."""
    if not (run.original_dir / "structure.json").is_file():
        raise FileError(run.original_dir, "there is no original network", fix="run freeze first")
    paths = {network.label: network.path(run) for network in existing(run)}
    if "fine-tuned" in paths:
        _check_origin(run)
    return paths


def _check_origin(run: RunDirectory) -> None:
    made_from = network_file.read_structure(run.finetune_dir / "best")["meta"].get("finetune", {}).get("network")
    source = compressed(run)
    assert source is not None  # fine-tuned is only listed behind the network that it is made from
    now = digest_file(source.path(run) / "structure.json")
    if made_from != now:
        raise FileError(
            run.finetune_dir / "best",
            f"was tuned from another {source.label} network (digest {str(made_from)[:12]}, now {now[:12]})",
            fix="tune the new one with finetune --redo",
        )


_COMPRESSING = {"decompose": "decomposition", "prune": "pruning"}


def _missing(run: RunDirectory) -> list[str]:
    if (network := missing(run)) is not None:
        if network.made_from == ("original",) and (begun := [s for s in _COMPRESSING if run.config(s) is not None]):
            return [f"the {_COMPRESSING[begun[0]]} is not finished: its network is not in the table yet"]
        return [f"no {network.label} network yet: run {network.stage} to add it to the table"]
    if unimproved(run):
        return ["fine-tuning improved no epoch, so there is no other network than the one before it"]
    if run.config("finetune") is None:
        return ["the fine-tuning is not finished: its best epoch so far is shown"]
    return []


def _before(run: RunDirectory) -> tuple[EvaluationResult, dict[str, Any], list[str]] | None:
    """The evaluation in the run, what it was made under, and its notes on images; None where there is none."""
    try:
        report = read_evaluation(run)
        rows = [Row(**{**row, "latency_quartiles_ms": tuple(row["latency_quartiles_ms"])}) for row in report["rows"]]
        classes = report.get("classes") or {}  # reports of earlier versions have none
        times = [Measurement.of(entry) for entry in report["latencies"]]
        result = EvaluationResult(rows, report["conditions"], report["notes"], classes, times, run, done_before=True)
        return result, report["identity"], report["tested_notes"]
    except (KeyError, TypeError):
        return None  # no report, or one without the entries of this version


def _rows(
    networks: Mapping[str, nn.Module],
    shape: Shape,
    columns: Mapping[str, dict[str, Any]],
    main: Measurement,
) -> list[Row]:
    rows: list[Row] = []
    for (name, network), time in zip(networks.items(), main.times, strict=True):
        count = cost(network, shape)
        first = rows[0] if rows else None
        assert time.latency_ms is not None and time.quartiles_ms is not None and time.speedup is not None
        rows.append(
            Row(
                network=name,
                **columns[name],
                macs=count.macs,
                params=count.params,
                latency_ms=time.latency_ms,
                latency_quartiles_ms=time.quartiles_ms,
                counted_speedup=(first.macs if first else count.macs) / max(count.macs, 1),
                measured_speedup=time.speedup,
            )
        )
    return rows
