"""What the files of a run say, as tables of numbers: one for each figure of the report, or why there is none."""

import csv
from dataclasses import dataclass, field

import numpy as np

from decomp.allocation.plan import SIZES, STEPS, Plan
from decomp.errors import FileError

from ...data.formats.digests import digest_file
from ...data.formats.json_files import read_json
from ...data.formats.layer_file import current_report, read_selection
from ..console.program import program
from ..run.networks import existing
from .summary import Summary, summarise


@dataclass(frozen=True)
class Table:
    """The numbers of one figure.

    Attributes
    ----------
    name : str
        Of its files: ``name.csv`` and ``name.png``.
    header : tuple of str
        Names of the columns, units included.
    rows : list of tuple
        None where a value is not there.
    notes : list of str
        Lines beneath the figure.
    summary : decomp.pipelines.reporting.summary.Summary, optional
        What the rows were taken from.
    """

    name: str
    header: tuple
    rows: list
    notes: list = field(default_factory=list)
    summary: Summary | None = None

    def column(self, name):
        """The values of one column."""
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def dicts(self):
        """Every row by names."""
        return [dict(zip(self.header, row)) for row in self.rows]


@dataclass(frozen=True)
class Missing:
    """A figure without data: why, and the command that makes them."""

    name: str
    why: str
    command: str


NETWORK_COLUMNS = (
    "run", "network", "macs", "params", "top1", "top5", "agreement", "divergence_nats", "latency_ms",
    "latency_low_ms", "latency_high_ms", "counted_speedup", "measured_speedup",
)  # fmt: skip


def networks(run):
    """The table of evaluate: a row for each network."""
    command = f"{program()} evaluate --run {run}"
    try:
        report = read_json(run.report_json, kind="decomp report")
        rows = [
            (
                str(run), row["network"], row["macs"], row["params"], row["top1"], row["top5"], row["agreement"],
                row["divergence"], row["latency_ms"], *row["latency_quartiles_ms"], row["counted_speedup"],
                row["measured_speedup"],
            )
            for row in report["rows"]
        ]  # fmt: skip
        notes, measured = [conditions_in_words(report), *report["notes"]], report["identity"]["networks"]
    except (FileError, KeyError, TypeError):
        return Missing("networks", "the networks have not been compared on the test images", command)
    there = {network.label: network.path(run) / "structure.json" for network in existing(run)}
    left = [name for name, path in there.items() if measured.get(name) != digest_file(path)]
    if left:
        notes.append(f"not measured as it is now: {', '.join(left)}; give again: {command}")
    return Table("networks", NETWORK_COLUMNS, rows, notes)


def conditions_in_words(report):
    """On what, and how, the numbers of evaluate were taken."""
    c = report["conditions"]
    tested = f"{c['n_images']:,} test images of {c['data']}; " if c["n_images"] else ""
    threads = f", {c['threads']} thread{'s' if c['threads'] != 1 else ''}" if c["device"] == "CPU" else ""
    return (
        f"{tested}latency: median and quartiles of {c['rounds']} interleaved rounds, batch of {c['batch_size']}, "
        f"float32, {c['layout']}, {c['device']}{threads}"
    )


def layers(run):
    """Cost of each layer before and after."""
    try:
        summary = summarise(run)
    except FileError:
        return Missing("layers", "nothing is decomposed yet", f"{program()} decompose --run {run} --speedup 4x")
    header = ("layer", "kind", "becomes", "macs_before", "macs_after", "params_before", "params_after", "error")
    rows = [tuple(getattr(item, name) for name in header) for item in summary.layers]
    notes = [summary.costs(), *([summary.fidelity["words"]] if summary.fidelity else [])]
    return Table("layers", header, rows, notes, summary)


def errors(run):
    """Relative squared error of each layer's responses after each of its steps."""
    reports = (run.config("decompose") or {}).get("layers")
    if not reports:
        return Missing("errors", "no layer is fitted yet", f"{program()} decompose --run {run} --speedup 4x")
    rows = [
        (report["layer"], step, values.get("fitted"), values.get("held_out"), values.get("output_error"))
        for report in map(current_report, reports)
        for step, values in report["errors"].items()
    ]
    return Table("errors", ("layer", "step", "fitted", "held_out", "output_error"), rows)


def curves(run):
    """Error of each layer of the original network at every size of every step, and the size that was chosen."""
    command = f"{program()} decompose --run {run} --speedup 4x --plan-only"
    try:
        plan = {item.layer: item for item in Plan.from_json(read_json(run.plan_json)).layers}
        with np.load(run.curves, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files if name.startswith(("own/", "output/"))}
    except Exception:
        return Missing("curves", "there is no plan yet", command)
    rows = []
    for layer, item in plan.items():
        for step in STEPS:
            own = arrays.get(f"own/{layer}/{step}")
            if own is None:
                continue
            output, chosen = arrays.get(f"output/{layer}/{step}"), getattr(item, SIZES[step])
            for size in range(1, len(own)):
                change = None if output is None else float(output[size])
                rows.append((layer, step, size, len(own) - 1, float(own[size]), change, int(size == chosen)))
    if not rows:
        return Missing("curves", "no layer of the plan has an error curve", command)
    return Table("curves", ("layer", "step", "size", "full_size", "error", "output_change", "chosen"), rows)


def channels(run):
    """Which input channels each pruned layer still reads."""
    rows = []
    paths = sorted(run.layers_dir.glob("*.safetensors")) if run.layers_dir.is_dir() else []
    for path in paths:
        layer, keep, n_total = read_selection(path)
        if keep is not None:
            kept = set(keep.tolist())
            rows += [(layer, channel, int(channel in kept)) for channel in range(n_total)]
    if rows:
        return Table("channels", ("layer", "channel", "kept"), rows)
    why = "no layer drops channels" if paths else "nothing is decomposed yet"
    command = f"{program()} decompose --run {run} --speedup 4x" + (" --steps prune --redo" if paths else "")
    return Missing("channels", why, command)


def finetuning(run):
    """The epochs of the fine-tuning."""
    path = run.finetune_dir / "metrics.csv"
    if not path.is_file():
        return Missing("finetuning", "the network is not fine-tuned", f"{program()} finetune --run {run}")
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return Table("finetuning", tuple(header), [tuple(_number(value) for value in row) for row in rows])


def _number(text):
    return None if text == "" else float(text)


#: Of one run, in the order of the report.
COLLECTORS = (networks, layers, errors, curves, channels, finetuning)
