"""Tables of the report, read from the files of a run: one for each figure, or the reason why it is missing."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from decomp.allocation.plan import SIZES, STEPS
from decomp.errors import DecompError, FileError

from ...data.formats.curves_file import read_curves
from ...data.formats.digests import digest_file
from ...data.formats.json_files import read_json
from ...data.formats.layer_file import current_report, read_selection
from ..console.program import program
from ..console.words import counted
from ..measure.latency import Measurement, comparable
from ..run.begun import compressing_command
from ..run.directory import RunDirectory
from ..run.evaluated import read_evaluation
from ..run.networks import existing
from .summary import Summary, planned_sizes, summarise


@dataclass(frozen=True)
class Table:
    """The numbers of one figure.

    Attributes
    ----------
    name : str
        Of its files, ``name.csv`` and ``name.png``.
    header : tuple of str
        Names of the columns, with units.
    rows : list of tuple
        None for a missing value.
    notes : list of str
        Lines below the figure.
    summary : decomp.pipelines.reporting.summary.Summary, optional
        Source of the rows of the table of layers.
    tested : str
        The images on which the networks of the table of networks were tested.
    digest : str or None
        Of these images; None where it is not known.
    """

    name: str
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    notes: list[str] = field(default_factory=list)
    summary: Summary | None = None
    tested: str = ""
    digest: str | None = None

    def column(self, name: str) -> list[Any]:
        """The values of one column."""
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def dicts(self) -> list[dict[str, Any]]:
        """Every row as a dict of its columns."""
        return [dict(zip(self.header, row)) for row in self.rows]


@dataclass(frozen=True)
class Missing:
    """A figure without data: the reason, and the command that produces the data."""

    name: str
    why: str
    command: str


NETWORK_COLUMNS = (
    "run", "network", "macs", "params", "top1", "top5", "agreement", "divergence_nats", "latency_ms",
    "latency_low_ms", "latency_high_ms", "counted_speedup", "measured_speedup", "output_difference", "n_images",
)  # fmt: skip


def networks(run: RunDirectory) -> Table | Missing:
    """The table of evaluate: a row for each network."""
    command = f"{program()} evaluate --run {run}"
    try:
        report = read_evaluation(run)
        rows = [
            (
                str(run), row["network"], row["macs"], row["params"], row["top1"], row["top5"], row["agreement"],
                row["divergence"], row["latency_ms"], *row["latency_quartiles_ms"], row["counted_speedup"],
                row["measured_speedup"], row.get("lost"), report["conditions"]["n_images"],
            )
            for row in report["rows"]
        ]  # fmt: skip
        notes, measured = [conditions_line(report), *report["notes"]], report["identity"]["networks"]
    except (KeyError, TypeError):  # also of None
        return Missing("networks", "the networks have not been evaluated on the test images", command)
    present = {network.label: network.path(run) / "structure.json" for network in existing(run)}
    outdated = [name for name, path in present.items() if measured.get(name) != digest_file(path)]
    if outdated:
        notes.append(f"changed since these measurements: {', '.join(outdated)}; measure again with: {command}")
    digest = report["conditions"].get("test_digest")
    return Table("networks", NETWORK_COLUMNS, rows, notes, tested=tested_on(report), digest=digest)


RUNTIME_COLUMNS = (
    "runtime", "version", "layout", "device", "threads", "batch_size", "precision", "rounds", "network", "digest",
    "latency_ms", "latency_low_ms", "latency_high_ms", "speedup", "reason", "shown",
)  # fmt: skip


def runtimes(run: RunDirectory) -> Table | None:
    """Every time that evaluate ever measured, with its conditions; None where nothing is evaluated.

    ``shown`` is 1 in rows that belong to the last evaluation or can be compared with it, of the same networks.
    """
    try:
        report = read_evaluation(run)
        measured = [Measurement.of(entry) for entry in report["latencies"]]
    except (KeyError, TypeError):  # also of None
        return None  # said by the table of networks
    shown = comparable(measured, measured[-1]) if measured else []
    rows = [
        (
            *(one.conditions.get(name) for name in RUNTIME_COLUMNS[:8]), time.network, one.networks.get(time.network),
            time.latency_ms, *(time.quartiles_ms or (None, None)), time.speedup, time.reason, int(one in shown),
        )
        for one in measured for time in one.times
    ]  # fmt: skip
    return Table("runtimes", RUNTIME_COLUMNS, rows)


def read_report(run: RunDirectory) -> dict[str, Any] | None:
    """Content of report.json, see :func:`read_evaluation`; None where nothing was evaluated, or not by this version."""
    return None if isinstance(networks(run), Missing) else read_evaluation(run)


def tested_on(report: Mapping[str, Any]) -> str:
    """Number and source of the images of an evaluation; empty where there were none."""
    c = report["conditions"]
    return f"{c['n_images']:,} {c.get('images', 'test images')} of {c['data']}" if c["n_images"] else ""


def conditions_line(report: Mapping[str, Any]) -> str:
    """The conditions of the measurements of evaluate, in one line."""
    c = report["conditions"]
    tested = f"{tested_on(report)}; " if c["n_images"] else ""
    threads = f", {counted(c['threads'], 'thread')}" if c["device"] == "CPU" else ""
    return (
        f"{tested}latency: median and quartiles of {c['rounds']} interleaved rounds in {c.get('runtime', 'eager')}, "
        f"batch of {c['batch_size']}, float32, {c['layout']}, {c['device']}{threads}"
    )


def classes(run: RunDirectory) -> Table | Missing | None:
    """Correct test images of each class and network; None where there are no labels or nothing is evaluated."""
    try:
        report = read_evaluation(run)
        labelled = report["rows"][0]["top1"] is not None
    except (KeyError, TypeError):  # also of None
        return None  # said by the table of networks
    if not labelled:
        return None
    counts = report.get("classes")
    if not counts:
        command = f"{program()} evaluate --run {run} --redo"
        return Missing("classes", "the last evaluation did not count the correct images of each class", command)
    names = counts["names"] or list(map(str, range(len(counts["images"]))))
    header = ("class", "images", *(f"correct_{name}" for name in counts["correct"]))
    return Table("classes", header, list(zip(names, counts["images"], *counts["correct"].values())))


def outputs(run: RunDirectory) -> Table | None:
    """Closeness of each output to the original's; None for networks with a single output, and where it is not known."""
    try:
        report = read_evaluation(run)
        found = {row["network"]: row["outputs"] for row in report["rows"] if row["network"] != "original"}
        on = f"{report['conditions']['n_images']:,} {report['conditions'].get('images', 'test images')}"
    except (KeyError, TypeError):  # also of None
        found = {}
    if not any(found.values()):
        stage, label = ("prune", "pruned") if is_pruned(run) else ("decompose", "decomposed")
        fidelity = (run.config(stage) or {}).get("fidelity") or {}
        found = {label: fidelity.get("outputs") or {}}
        on = f"{fidelity.get('images', 0):,} held-out calibration images"
    rows = [
        (network, name, one.get("kind"), one.get("relative"), one.get("kl"), one.get("agreement"))
        for network, each in found.items()
        for name, one in each.items()
    ]
    if len({row[1] for row in rows}) < 2:
        return None
    header = ("network", "output", "kind", "difference", "divergence_nats", "agreement")
    return Table("outputs", header, rows, [f"On {on}."])


def layers(run: RunDirectory) -> Table | Missing:
    """Cost of each layer before and after."""
    try:
        summary = summarise(run)
    except FileError:
        return Missing("layers", "nothing is decomposed yet", compressing_command(run))
    header = (
        "layer", "kind", "becomes", "macs_before", "macs_after", "params_before", "params_after", "error", "left_alone"
    )  # fmt: skip
    reasons = _reasons(run)
    rows = [(*(getattr(item, name) for name in header[:-1]), reasons.get(item.layer)) for item in summary.layers]
    notes = [summary.costs(), *(summary.fidelity["words"].split("\n") if summary.fidelity else [])]
    return Table("layers", header, rows, notes, summary)


def _reasons(run: RunDirectory) -> dict[str, str]:
    """For each layer with steps that cannot be applied or were ruled out, the reasons."""
    if is_pruned(run):
        return dict((run.config("prune") or {}).get("left_alone") or {})
    reasons = {}
    for item in planned_sizes(run).values():
        steps: dict[str, list[str]] = {}
        for step, why in item.left_alone.items():
            steps.setdefault(why, []).append(step)
        texts = [f"no {' or '.join(names)}: {why}" for why, names in steps.items()]
        if len(steps) == 1 and len(item.left_alone) == len(STEPS):
            texts = list(steps)
        if "skip" in item.limits:
            texts.insert(0, f"skipped by {item.limits['skip']}")
        reasons[item.layer] = "; ".join(texts)
    return {layer: text for layer, text in reasons.items() if text}


def is_pruned(run: RunDirectory) -> bool:
    """Whether a run holds a pruned network, of which nothing was fitted."""
    return run.config("prune") is not None


def errors(run: RunDirectory) -> Table | Missing | None:
    """Relative squared error of each layer's responses after each of its steps; None where nothing is fitted."""
    if is_pruned(run):
        return None
    reports = (run.config("decompose") or {}).get("layers")
    if not reports:
        return Missing("errors", "no layer is fitted yet", compressing_command(run))
    rows = [
        (report["layer"], step, values.get("fitted"), values.get("held_out"), values.get("output_error"))
        for report in map(current_report, reports)
        for step, values in report["errors"].items()
    ]
    return Table("errors", ("layer", "step", "fitted", "held_out", "output_error"), rows)


def curves(run: RunDirectory) -> Table | Missing | None:
    """Error of each layer of the original network at every size of every step, and the chosen size."""
    if is_pruned(run):
        return None
    try:
        plan = planned_sizes(run)
        survey = read_curves(run.curves, None, plan)
    except DecompError:
        survey = None
    record = run.config("decompose") or {}
    command = compressing_command(run) + (" --redo" if "macs_after" in record else "" if record else " --plan-only")
    if survey is None:
        why = "the error curves cannot be read" if "macs_after" in record else "there is no plan yet"
        return Missing("curves", why, command)
    rows: list[tuple[Any, ...]] = []
    for layer, item in plan.items():
        for step in STEPS:
            own, output = getattr(survey.own[layer], step), getattr(survey.output[layer], step)
            if own is None:
                continue
            chosen = getattr(item, SIZES[step])
            for size in range(1, len(own)):
                change = None if output is None else float(output[size])
                rows.append((layer, step, size, len(own) - 1, float(own[size]), change, int(size == chosen)))
    if not rows:
        return Missing("curves", "no layer of the plan has an error curve", command)
    return Table("curves", ("layer", "step", "size", "full_size", "error", "output_change", "chosen"), rows)


def channels(run: RunDirectory) -> Table | Missing:
    """Kept and removed channels: the inputs of each pruned layer, or those of each space of a pruned network."""
    rows: list[tuple[Any, ...]] = []
    if is_pruned(run):
        plan = read_json(run.prune_json)
        for space in plan["spaces"]:
            kept = set(space["keep"])
            rows += [(space["space"], channel, int(channel in kept)) for channel in range(space["channels"])]
        if rows:
            return Table("channels", ("layer", "output channel", "kept"), rows)
        return Missing("channels", "no channel is removed", f"{program()} prune --run {run} --ratio 0.5 --redo")
    paths = sorted(run.layers_dir.glob("*.safetensors")) if run.layers_dir.is_dir() else []
    for path in paths:
        layer, keep, n_total = read_selection(path)
        if keep is not None and n_total is not None:
            kept = set(keep.tolist())
            rows += [(layer, channel, int(channel in kept)) for channel in range(n_total)]
    if rows:
        return Table("channels", ("layer", "channel", "kept"), rows)
    why = "no layer is pruned" if paths else "nothing is decomposed yet"
    command = f"{program()} decompose --run {run} --speedup 4x" + (" --steps prune --redo" if paths else "")
    return Missing("channels", why, command)


def sensitivity(run: RunDirectory) -> Table | None:
    """Outputs with one layer pruned at a time; None where that is not measured, which is not a part of every run."""
    record = run.config("sensitivity") or {}
    rows = [tuple(row) for row in record.get("rows") or ()]
    header = ("layer", "ratio", "kept", "channels", "agreement", "divergence_nats", "output_difference")
    if not rows or len(rows[0]) != len(header):
        return None
    by = (record.get("asked") or {}).get("criterion", "l1")
    note = f"by {by}, on {record.get('images', 0):,} held-out calibration images"
    return Table("sensitivity", header, rows, [note])


def finetuning(run: RunDirectory) -> Table | Missing:
    """The epochs of the fine-tuning.

    Raises
    ------
    FileError
        The file of the epochs is damaged.
    """
    path, command = run.finetune_dir / "metrics.csv", f"{program()} finetune --run {run}"
    if not path.is_file() and (run.finetune_dir / "best").is_dir():
        why = f"the network is fine-tuned, but {path}, with its epochs, is gone; put a copy of it back, or tune again"
        return Missing("finetuning", why, f"{command} --redo")
    if not path.is_file():
        return Missing("finetuning", "the network is not fine-tuned", command)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        rows = [tuple(_number(value) for value in row) for row in lines]
        if "epoch" not in header or any(len(row) != len(header) or row[header.index("epoch")] is None for row in rows):
            raise ValueError
    except (ValueError, csv.Error) as error:
        fix = "put a copy of it back, or delete it: the report is then made without this figure"
        raise FileError(path, "must be a table of the epochs, numbers under their names", fix=fix) from error
    return Table("finetuning", tuple(header), rows)


def _number(text: str) -> float | None:
    return None if text == "" else float(text)


Collector = Callable[[RunDirectory], Table | Missing | None]
#: The tables of one run, in the order of the report.
COLLECTORS: tuple[Collector, ...] = (
    networks,
    runtimes,
    classes,
    layers,
    errors,
    curves,
    channels,
    finetuning,
    sensitivity,
    outputs,
)
