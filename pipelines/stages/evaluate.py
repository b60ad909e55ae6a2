"""Stage ``evaluate``: accuracy, cost and latency of the original, decomposed or pruned, and fine-tuned network."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp.cost.count import cost
from decomp.errors import FileError
from decomp.execution.output_change import Outputs
from decomp.runtimes.eager import Eager
from decomp.runtimes.timing import latencies, random_images

from ...data import given
from ...data.formats import network_file
from ...data.formats.digests import digest_file
from ...data.formats.frozen_file import FrozenFile
from ...data.formats.json_files import read_json, write_json
from ...data.splits import Split
from ...data.transforms import Shape
from ..console.options import EvaluateOptions
from ..console.program import command_line
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..console.words import counted
from ..decomposition.gather import fitted_images
from ..measure.class_counts import ClassCounts
from ..measure.closeness import closeness_words, percent
from ..measure.devices import pick_device
from ..measure.intervals import short_share
from ..measure.shares import Batches, Shares, images_at_a_time, measure_shares
from ..run import loading
from ..run.conditions import freeze_options
from ..run.directory import RunDirectory
from ..run.images import open_images
from ..run.loading import run_outputs
from ..run.networks import compressed, existing, missing, unimproved
from ..run.record import library_versions

KIND = "decomp report"
#: Interquartile range over median above which a machine is too busy for latency measurements.
SPREAD = 0.3


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
        ``batch_size``, ``device``, ``threads``, ``rounds``, ``data``, ``n_images``, ``versions``.
    notes : list of str
        Reasons for empty columns, and warnings.
    classes : dict
        Correct images of each class, see :meth:`decomp.pipelines.measure.class_counts.ClassCounts.to_json`; empty
        without labels.
    run : RunDirectory, optional
    done_before : bool
        The report existed already, of the same networks under the same conditions.
    """

    rows: list[Row] = field(repr=False)
    conditions: dict[str, Any] = field(repr=False)
    notes: list[str] = field(default_factory=list, repr=False)
    classes: dict[str, Any] = field(default_factory=dict, repr=False)
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
        """Human-readable summary lines."""
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
            f"{tested}latency: median of {c['rounds']} interleaved rounds, batch of {c['batch_size']}, float32, "
            f"{c['layout']}, {c['device']}{_threads(c)}; speed-ups are relative to the original"
        )
        yield from self.notes
        if self.done_before:
            yield "measured earlier; use --redo to measure again"
        if self.run is not None and len(self.rows) > 1:
            yield f"next: {command_line('report', self.run)}"
            yield f"  or: {command_line('export', self.run)}"
        elif self.run is not None:
            yield f"next: {command_line('decompose', self.run, '--speedup 4x')}"

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        rows = [asdict(row) for row in self.rows]
        return {"rows": rows, "conditions": self.conditions, "notes": list(self.notes), "classes": self.classes}


def evaluate(
    run: str | os.PathLike[str] | RunDirectory,
    *,
    batch_size: int = 64,
    layout: str = "contiguous",
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
    batch_size : int
        Images per batch in the latency measurement.
    layout : {'contiguous', 'channels-last'}
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
        There is no original network, or the fine-tuned one was made from another decomposed or pruned one.

    Notes
    -----
    Reads the test split, as ``train`` does after its last epoch; no stage decides anything by it.
    """
    options = EvaluateOptions(batch_size=batch_size, layout=layout, repeats=repeats)
    run, reporter = RunDirectory.open(run), reporter or Reporter()
    with run.lock(), reporter.stage("evaluate"):
        target = pick_device(device)
        paths = _network_paths(run)
        identity = {
            "batch_size": options.batch_size, "layout": options.layout, "device": str(target),
            "repeats": options.repeats, "threads": torch.get_num_threads(),
            "networks": {name: digest_file(path / "structure.json") for name, path in paths.items()},
            "tuning_finished": run.config("finetune") is not None, "versions": library_versions(),
        }  # fmt: skip
        if not redo and (before := _measured_before(run, identity)):
            return before
        networks: dict[str, nn.Module] = {
            name: loading.load_network(run, path).to(target).eval() for name, path in paths.items()
        }
        channels, height, width = network_file.read_structure(run.original_dir)["input_shape"]
        shape = (channels, height, width)
        outputs, shares, notes, counts = run_outputs(run), {}, [], ClassCounts(None)
        with _images(run, shape, outputs) as images:
            if images is not None:
                notes, counts = images.notes, ClassCounts(images.class_names)
                shares = measure_shares(
                    networks, images.batches, images.n, outputs, images.data, target, reporter, counts
                )  # fmt: skip
        reporter.step(f"measuring latency of {counted(len(networks), 'network')}, batch size {options.batch_size}")
        batch, runtime = (options.batch_size, *shape), Eager(options.layout)
        example = random_images(batch, target, options.layout)
        timed = {name: runtime.prepare(network, example) for name, network in networks.items()}
        times = latencies(timed, batch, target, options.repeats, layout=options.layout)
        rows, data = _rows(networks, shape, shares, times), freeze_options(run).data if images is None else images.data
        conditions = {
            "batch_size": options.batch_size, "layout": options.layout, "device": device_name(target),
            "threads": identity["threads"], "rounds": len(times["original"]), "data": data,
            "n_images": 0 if images is None else images.n, "images": "" if images is None else images.words,
            "test_digest": None if images is None else images.digest, "versions": identity["versions"],
        }  # fmt: skip
        notes += _missing(run) + _unsteady(rows)
        result = EvaluationResult(rows, conditions, notes, counts.to_json(), run)
        write_json(run.report_json, {"identity": identity, **result.to_json()}, kind=KIND)
        return result


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


def _missing(run: RunDirectory) -> list[str]:
    if (network := missing(run)) is not None:
        return [f"no {network.label} network yet: run {network.stage} to add it to the table"]
    if unimproved(run):
        return ["fine-tuning improved no epoch, so there is no other network than the one before it"]
    if run.config("finetune") is None:
        return ["the fine-tuning is not finished: its best epoch so far is shown"]
    return []


def _unsteady(rows: Sequence[Row]) -> list[str]:
    spread = max((high - low) / row.latency_ms for row in rows for low, high in [row.latency_quartiles_ms])
    if spread <= SPREAD:
        return []
    return [
        f"unreliable latencies: half the rounds of a network spread over {100 * spread:.0f} % of its median; "
        "measure again when nothing else runs"
    ]


def _measured_before(run: RunDirectory, identity: Mapping[str, Any]) -> EvaluationResult | None:
    try:
        report = read_json(run.report_json, kind=KIND)
        if report["identity"] != identity:
            return None
        rows = [Row(**{**row, "latency_quartiles_ms": tuple(row["latency_quartiles_ms"])}) for row in report["rows"]]
        classes = report.get("classes") or {}  # reports of earlier versions have none
        return EvaluationResult(rows, report["conditions"], report["notes"], classes, run, done_before=True)
    except (FileError, KeyError, TypeError):
        return None  # no report, or one that cannot be used: it is made anew


@dataclass(frozen=True)
class _Images:
    """Images on which the networks are compared: the test split, or the held-out calibration images."""

    words: str
    data: str
    n: int
    batches: Batches
    notes: list[str]
    class_names: Sequence[str] | None = None
    digest: str | None = None


@contextmanager
def _images(run: RunDirectory, shape: Shape, outputs: Outputs) -> Iterator[_Images | None]:
    """The images to compare on, with the reasons for empty columns; None where there are none at all."""
    size = images_at_a_time(outputs, shape)
    if freeze_options(run).data == given.NAME:
        data, reason = given.NAME, "the images were given to decomp.compress, and none of them for tests"
    else:
        source = open_images(run)
        test, data, reason = source.test, source.name, f"{source.name} has no test images"
        if test is not None and len(test):
            batches = test.batches(torch.arange(len(test)), size)
            notes, names = _notes(test, outputs, data), source.class_names
            yield _Images("test images", data, len(test), batches, notes, names, test.digest())
            return
    if not run.frozen.is_file():
        yield None
        return
    with FrozenFile(run.frozen) as frozen:
        first = fitted_images(frozen)
        starts = range(first, frozen.n_images, size)
        held_out = ((frozen.images(start, min(start + size, frozen.n_images)), None) for start in starts)
        note = f"no accuracy: {reason}; the outputs are compared on calibration images that no fit has seen"
        yield _Images("held-out calibration images", data, frozen.n_images - first, held_out, [note])


def _notes(test: Split, outputs: Outputs, data: str) -> list[str]:
    if outputs.scores is None:
        reason = "" if test.has_labels else ", and the test images have no labels"
        rule = f"no accuracy: it needs class scores as the only output, here {outputs.words()}{reason}"
        return [rule, *outputs.notes()]
    return [] if test.has_labels else [f"no accuracy: the test images of {data} have no labels"]


def _rows(
    networks: Mapping[str, nn.Module],
    shape: tuple[int, int, int],
    shares: Mapping[str, Shares],
    times: Mapping[str, Sequence[float]],
) -> list[Row]:
    rows: list[Row] = []
    for name, network in networks.items():
        count = cost(network, shape)
        median = statistics.median(times[name])
        first = rows[0] if rows else None
        rows.append(
            Row(
                network=name,
                **_columns(shares.get(name)),
                macs=count.macs,
                params=count.params,
                latency_ms=median,
                latency_quartiles_ms=_quartiles(times[name]),
                counted_speedup=(first.macs if first else count.macs) / max(count.macs, 1),
                measured_speedup=(first.latency_ms if first else median) / median,
            )
        )
    return rows


def _columns(shares: Shares | None) -> dict[str, Any]:
    """The columns of a row that are measured on images."""
    if shares is None:
        return {"top1": None, "top5": None, "agreement": None, "divergence": None, "lost": None, "outputs": {}}
    close = shares.close
    return {
        "top1": shares.top1, "top5": shares.top5, "agreement": close.get("agreement"), "divergence": close.get("kl"),
        "lost": close["relative"], "outputs": close["outputs"],
    }  # fmt: skip


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return quartiles[0], quartiles[2]
