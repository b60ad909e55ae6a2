"""Tables of the report, read from the files of a run: one for each figure, or the reason why it is missing."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from typing import Any

from decomp.errors import FileError

from ...data.formats.digests import digest_file
from ..console.program import command_line
from ..console.words import counted
from ..measure.latency import Measurement, comparable
from ..run.conditions import label_options
from ..run.directory import RunDirectory
from ..run.evaluated import read_evaluation
from ..run.networks import existing
from .layer_tables import channels, curves, errors, is_pruned, layers, sensitivity
from .tables import WITHOUT, Missing, Table

NETWORK_COLUMNS = (
    "run", "network", "macs", "params", "top1", "top5", "agreement", "divergence_nats", "latency_ms",
    "latency_low_ms", "latency_high_ms", "counted_speedup", "measured_speedup", "output_difference", "n_images",
)  # fmt: skip


def networks(run: RunDirectory) -> Table | Missing:
    """The table of evaluate: a row for each network."""
    command = command_line("evaluate", run)
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
        command = command_line("evaluate", run, "--redo")
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


def finetuning(run: RunDirectory) -> Table | Missing:
    """The epochs of the fine-tuning.

    Raises
    ------
    FileError
        The file of the epochs is damaged.
    """
    path, command = run.finetune_dir / "metrics.csv", command_line("finetune", run, label_options(run))
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
        raise FileError(path, "must be a table of the epochs, numbers under their names", fix=WITHOUT) from error
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
