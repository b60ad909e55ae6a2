"""Stage ``evaluate``: original, decomposed and fine-tuned network side by side, on the test images and the clock."""

import statistics
from dataclasses import asdict, dataclass, field

import torch

from decomp.cost import count as cost
from decomp.errors import FileError, UsageError
from decomp.execution.outputs import output_divergence
from decomp.runtimes.eager import LAYOUTS, Eager
from decomp.runtimes.timing import latencies, random_images

from ...data.formats import network_file
from ...data.formats.digests import digest_file
from ...data.formats.json_files import read_json, write_json
from ...data.sources import open_source
from ..console.reporter import Reporter
from ..measure import accuracy, devices
from ..run import loading
from ..run.directory import RunDirectory
from ..run.networks import existing
from ..run.record import library_versions

KIND = "decomp report"
IMAGES_AT_A_TIME = 250
LATENCY_ROUNDS = 30
#: Interquartile range over median beyond which the machine was too busy to be timed.
SPREAD = 0.3


@dataclass(frozen=True)
class Row:
    """One network. Shares are in 0..1, times in milliseconds; None where there is nothing to measure it on.

    ``agreement`` is the share of test images with the original's first class, ``divergence`` the mean
    Kullback-Leibler divergence from the original's class probabilities in nats; ``counted_speedup`` is the ratio of
    multiply-accumulates, ``measured_speedup`` that of median latencies, each to the original's.
    """

    network: str
    top1: float | None
    top5: float | None
    agreement: float | None
    divergence: float | None
    macs: int
    params: int
    latency_ms: float
    latency_quartiles_ms: tuple[float, float]
    counted_speedup: float
    measured_speedup: float


@dataclass(frozen=True)
class EvaluationResult:
    """The table.

    Attributes
    ----------
    rows : list of Row
        The original first, then what there is.
    conditions : dict
        ``batch_size``, ``device``, ``threads``, ``rounds``, ``data``, ``n_images``, ``versions``.
    notes : list of str
        Why a column is empty, and what else a reader must know.
    done_before : bool
        The report was there already, of the same networks under the same conditions.
    """

    rows: list
    conditions: dict
    notes: list = field(default_factory=list)
    done_before: bool = False

    def table(self):
        """The table as text."""
        header = ["network", "top-1", "top-5", "MACs", "parameters", "latency", "counted", "measured"]
        lines = [header]
        for row in self.rows:
            shares = ["-" if value is None else f"{value:.2%}" for value in (row.top1, row.top5)]
            sizes = [f"{row.macs / 1e6:,.2f} M", f"{row.params / 1e6:,.3f} M", f"{row.latency_ms:,.2f} ms"]
            lines.append([row.network, *shares, *sizes, f"{row.counted_speedup:.2f}x", f"{row.measured_speedup:.2f}x"])
        widths = [max(map(len, column)) for column in zip(*lines)]
        texts = []
        for line in lines:
            cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
            texts.append("  ".join(cells))
        return "\n".join(texts)

    def lines(self):
        """Lines for a person."""
        c = self.conditions
        yield from self.table().split("\n")
        tested = f"top-1 and top-5 on {c['n_images']:,} test images of {c['data']}; " if c["n_images"] else ""
        yield (
            f"{tested}latency: median of {c['rounds']} interleaved rounds, batch of {c['batch_size']}, float32, "
            f"{c['layout']}, {c['device']}{_threads(c)}; speed-ups are to the original"
        )
        yield from self.notes
        if self.done_before:
            yield "measured before; give --redo to measure again"

    def to_json(self):
        """The result as plain data."""
        return {"rows": [asdict(row) for row in self.rows], "conditions": self.conditions, "notes": list(self.notes)}


def evaluate(
    run, *, batch_size=64, layout="contiguous", device="auto", repeats=LATENCY_ROUNDS, redo=False, reporter=None
):
    """Measure every network that is in a run.

    Parameters
    ----------
    run : path or RunDirectory
        Frozen at least; the decomposed and the fine-tuned network are measured where they are there.
    batch_size : int
        Images at once when the latency is measured.
    layout : {'contiguous', 'channels-last'}
        How images and weights lie in memory when the latency is measured, the original's like the others'.
    device : str
        'auto', 'cpu', 'cuda' or 'cuda:N'.
    repeats : int
        Rounds of the latency measurement. In each, every network runs once, so that what else the machine does
        falls on all of them alike.
    redo : bool
        Measure again what was measured before.
    reporter : Reporter, optional

    Returns
    -------
    EvaluationResult
        Also written as JSON to the run's report.

    Raises
    ------
    FileError
        There is no original network, or the fine-tuned one was made from another decomposed one.

    Notes
    -----
    Reads the test split, as ``train`` does after its last epoch; no stage decides anything by it.
    """
    if batch_size < 1 or repeats < 1:
        raise UsageError("evaluate", "batch size and repeats must be at least 1", got=f"{batch_size} and {repeats}")
    if layout not in LAYOUTS:
        raise UsageError("layout", "must be one of " + ", ".join(LAYOUTS), got=layout)
    run = RunDirectory.open(run)
    reporter = reporter or Reporter()
    loading.require_whole(run)
    with run.lock(), reporter.stage("evaluate"):
        device = devices.pick_device(device)
        paths = _networks(run)
        identity = {
            "batch_size": batch_size, "layout": layout, "device": str(device), "repeats": repeats,
            "threads": torch.get_num_threads(),
            "networks": {name: digest_file(path / "structure.json") for name, path in paths.items()},
            "tuning_finished": run.config("finetune") is not None, "versions": library_versions(),
        }  # fmt: skip
        if not redo and (before := _measured_before(run, identity)):
            return before
        networks = {name: loading.load_network(run, path).to(device).eval() for name, path in paths.items()}
        shape = tuple(network_file.read_structure(run.original_dir)["input_shape"])
        test, data, notes = _test_images(run, shape)
        shares = _shares(networks, test, data, device, reporter) if test is not None else {}
        reporter.step(f"timing {len(networks)} networks in turn, batch of {batch_size}")
        example, runtime = random_images((batch_size, *shape), device, layout), Eager(layout)
        timed = {name: runtime.prepare(network, example) for name, network in networks.items()}
        times = latencies(timed, (batch_size, *shape), device, repeats, layout=layout)
        rows = _rows(networks, shape, shares, times)
        conditions = {
            "batch_size": batch_size, "layout": layout, "device": device_name(device), "threads": identity["threads"],
            "rounds": len(times["original"]), "data": data, "n_images": 0 if test is None else len(test),
            "versions": identity["versions"],
        }  # fmt: skip
        result = EvaluationResult(rows, conditions, notes + _missing(run, paths) + _unsteady(rows))
        write_json(run.report_json, {"identity": identity, **result.to_json()}, kind=KIND)
        return result


def topk_hits(logits, labels, k):
    """How many rows have their label among the `k` highest logits; a tie goes to the lower class number.

    Parameters
    ----------
    logits : Tensor (m, n_classes)
        A row with NaN has no hit.
    labels : LongTensor (m,)
    k : int
    """
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1])
    # Written so that NaN counts as ahead of everything.
    ahead = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
    return int((ahead.sum(1) < k).sum())


def device_name(device):
    """What a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _threads(conditions):
    count = conditions["threads"]
    return f", {count} thread{'s' if count != 1 else ''}" if conditions["device"] == "CPU" else ""


def _networks(run):
    """Where the networks of a run lie, by name in the order of their making."""
    if not (run.original_dir / "structure.json").is_file():
        raise FileError(run.original_dir, "there is no original network", fix="run freeze first")
    paths = {network.label: network.path(run) for network in existing(run)}
    if "fine-tuned" in paths:
        _check_origin(run)
    return paths


def _check_origin(run):
    made_from = network_file.read_structure(run.finetune_dir / "best")["meta"].get("finetune", {}).get("network")
    now = digest_file(run.model_dir / "structure.json")
    if made_from != now:
        raise FileError(
            run.finetune_dir / "best",
            f"was tuned from another decomposed network (digest {str(made_from)[:12]}, now {now[:12]})",
            fix="tune the new one with finetune --redo",
        )


def _missing(run, paths):
    for name, stage in (("decomposed", "decompose"), ("fine-tuned", "finetune")):
        if name not in paths:
            return [f"no {name} network yet: run {stage} to have it in the table"]
    if run.config("finetune") is None:
        return ["the fine-tuning is not finished: its best epoch so far is shown"]
    return []


def _unsteady(rows):
    spread = max((high - low) / row.latency_ms for row in rows for low, high in [row.latency_quartiles_ms])
    if spread <= SPREAD:
        return []
    return [
        f"the latencies are not to be trusted: half the rounds of a network spread over {spread:.0%} of its median; "
        "measure again when nothing else runs"
    ]


def _measured_before(run, identity):
    try:
        report = read_json(run.report_json, kind=KIND)
        if report["identity"] != identity:
            return None
        rows = [Row(**{**row, "latency_quartiles_ms": tuple(row["latency_quartiles_ms"])}) for row in report["rows"]]
        return EvaluationResult(rows, report["conditions"], report["notes"], done_before=True)
    except (FileError, KeyError, TypeError):
        return None  # no report, or one that cannot be used: it is made anew


def _test_images(run, shape):
    """The test split (None where there is none), the source's name, and the reasons for empty columns."""
    asked = run.config("freeze")["asked"]
    source = open_source(asked["data"], input_shape=shape, skip_bad=asked.get("skip_bad", False))
    notes = []
    if source.test is None or len(source.test) == 0:
        return None, asked["data"], [f"no accuracy: {asked['data']} has no test images"]
    if not source.test.has_labels:
        notes.append(f"no accuracy: the test images of {asked['data']} have no labels")
    return source.test, asked["data"], notes


def _shares(networks, test, data, device, reporter):
    """Per network: top-1, top-5 (None without labels), agreement with the original and divergence from it."""
    names = ("top1", "top5", "agreement", "divergence")
    sums = {name: dict.fromkeys(names, 0.0) for name in networks}
    with reporter.progress(len(test), "test", "images") as progress:
        for images, labels in test.batches(torch.arange(len(test)), IMAGES_AT_A_TIME):
            reference = None
            for name, network in networks.items():
                logits = accuracy.logits_of(network, images, device)
                reference = logits if reference is None else reference
                for key, value in _batch_sums(logits, reference, labels, data).items():
                    sums[name][key] += value
            progress.update(len(images))
    scale = 1 / len(test)
    without = () if test.has_labels else ("top1", "top5")
    return {
        name: {key: None if key in without else value * scale for key, value in values.items()}
        for name, values in sums.items()
    }


def _batch_sums(logits, reference, labels, data):
    if logits.dim() != 2:
        raise UsageError("evaluate", "the outputs must be (images, classes)", got=tuple(logits.shape))
    sums = {
        "agreement": (logits.argmax(1) == reference.argmax(1)).sum().item(),
        "divergence": output_divergence(reference, logits).sum().item(),
    }
    if labels is not None:
        accuracy.check_labels(labels, logits, data)
        sums.update(top1=topk_hits(logits, labels, 1), top5=topk_hits(logits, labels, 5))
    return sums


def _rows(networks, shape, shares, times):
    rows = []
    for name, network in networks.items():
        count = cost.cost(network, shape)
        median = statistics.median(times[name])
        first = rows[0] if rows else None
        rows.append(
            Row(
                network=name,
                **shares.get(name, dict.fromkeys(("top1", "top5", "agreement", "divergence"))),
                macs=count.macs,
                params=count.params,
                latency_ms=median,
                latency_quartiles_ms=_quartiles(times[name]),
                counted_speedup=(first.macs if first else count.macs) / max(count.macs, 1),
                measured_speedup=(first.latency_ms if first else median) / median,
            )
        )
    return rows


def _quartiles(values):
    if len(values) < 2:
        return values[0], values[0]
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return quartiles[0], quartiles[2]
