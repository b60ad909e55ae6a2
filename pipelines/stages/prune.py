"""Stage ``prune``: whole channels of the original network are removed by a criterion, without any fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp.cost.count import Cost
from decomp.errors import DecompError
from decomp.runtimes.precision import exact_float32

from ...data.formats.digests import digest_file
from ...data.formats.network_file import Verified, read_structure
from ..console.layer_table import layer_lines, left_alone_lines
from ..console.program import command_line
from ..console.prune_options import PruneOptions
from ..console.reporter import Reporter
from ..measure import fidelity, sanity
from ..measure.devices import pick_device
from ..measure.shares import images_at_a_time
from ..pruning.choice import Images
from ..pruning.emission import emit
from ..pruning.images import batched
from ..pruning.measured import require_runtime
from ..pruning.plan_file import PruningPlan, prune_options, read_plan, write_plan
from ..pruning.removal import Pruned, remove
from ..pruning.unfolded import Unfolded, unfolded_of_run
from ..reporting.summary import summarise
from ..run import loading
from ..run.calibration import fitted_images
from ..run.conditions import freeze_options, label_options, pruned_words, require_not_decomposed, require_same_options
from ..run.directory import RunDirectory
from ..run.outputs import frozen_outputs
from ..run.replacement import beside
from ..run.stage_result import StageResult

CHOOSE, CHECK = PHASES = ("choice of the channels", "check of the result")


@dataclass(frozen=True)
class PruneResult(StageResult):
    """Result of the stage: the counted cost and the closeness of the outputs."""

    def lines(self) -> list[str]:
        """Human-readable summary lines."""
        f, folder = self.facts, str(self.run.pruned_dir)
        how = f"pruned {pruned_words(f)}"
        lines = [f"{folder}: already {how}, nothing to do" if self.done_before else f"{folder}: {how}"]
        if self.done_before and f.get("plan_digest") != _digest_of(self.run):
            command = command_line("prune", "OTHER", f"--model … --data … --keep {self.run.prune_json}")
            lines.append(f"{self.run.prune_json} was edited since; another run takes it: {command}")
        lines += layer_lines(summarise(self.run).layers)
        lines += left_alone_lines(f.get("left_alone") or {})
        lines += f["notes"]
        if f.get("measured"):
            where = f["asked"].get("runtime") or "eager"
            lines.append(f"measured in {where} when it was chosen: {f['measured']:.2f}x as fast as the original")
        lines.append(costs_line(f))
        if f.get("fidelity"):
            lines += f["fidelity"]["words"].split("\n")
        lines += sanity.doubts(self.run.config("freeze"))
        into = f.get("into") or {}
        if into.get("verified") is False:
            lines.append(f"decomp.load({folder!r}) gives the network, into= not: {into['reason']}")
        if f.get("part") and into.get("verified") is not False:
            return [*lines, f"next: decomp.load({folder!r}, into=model) puts {f['part']} back into its model"]
        return [*lines, f"next: {command_line('finetune', self.run.path, label_options(self.run))}"]


def costs_line(facts: Mapping[str, Any]) -> str:
    """Costs before and after."""
    return (
        f"{facts['macs_before'] / 1e6:,.2f} M → {facts['macs_after'] / 1e6:,.2f} M multiply-accumulates "
        f"({facts['macs_before'] / max(facts['macs_after'], 1):.2f}x), "
        f"{facts['params_before'] / 1e6:,.3f} M → {facts['params_after'] / 1e6:,.3f} M parameters"
    )


@exact_float32()
def prune(
    run: str | os.PathLike[str] | RunDirectory,
    *,
    criterion: str = "l1",
    speedup: float | str | None = None,
    ratio: float | str | None = None,
    keep: str | os.PathLike[str] | None = None,
    cost: str = "macs",
    ranking: str | None = None,
    normalise: str | None = None,
    floor: float | None = None,
    cap: float = 1.0,
    scoring: str = "greedy",
    multiple: int = 1,
    skip: Sequence[str] = (),
    coupled: bool = False,
    remove_branches: bool = False,
    bias: str = "constant",
    recalibrate_bn: bool = False,
    seed: int = 0,
    latency_batch: int = 64,
    latency_layout: str = "contiguous",
    runtime: str | None = None,
    device: str = "auto",
    redo: bool = False,
    original: nn.Module | None = None,
    reporter: Reporter | None = None,
) -> PruneResult:
    """Remove whole channels of the original network of a run.

    Parameters
    ----------
    run : path or RunDirectory
        Frozen, and not decomposed.
    criterion : str
        One of :data:`decomp.criteria.names.CRITERIA`: the channels with the lowest numbers go first.
    speedup : float or str, optional
        Cost of the original over that of the result, at least: ``2`` or ``'2x'``.
    ratio : float or str, optional
        Instead: share of the channels that go, such as ``0.5`` or ``'50%'``, in [0, 1).
    keep : path, optional
        Instead: a plan, the prune.json of another run of the same network, perhaps edited.
    cost : {'macs', 'params', 'latency'}
        Cost that the speed-up counts.
    ranking : {'layer', 'global'}, optional
        The same share of each layer's channels goes, or the lowest of all channels. Default: 'global' for the
        criterion bn-scale, 'layer' for all others.
    normalise : {'none', 'mean', 'max', 'l2'}, optional
        Number of its layer that a score is divided by where all channels are ranked together, see
        :func:`decomp.criteria.ranking.normalised`. Default: by the criterion.
    floor : float, optional
        Share of its channels that a layer keeps at least. Default: 0.1 where all channels are ranked together.
    cap : float
        Largest share of its channels that a layer loses.
    scoring : {'greedy', 'independent'}
        Whether filters are judged without the kernels of input channels that are removed already.
    multiple : int
        Widths that are wide enough are multiples of it, see :func:`decomp.allocation.sizes.fitting_multiple`.
    skip : sequence of str
        Layers that keep their filters, by name or pattern.
    coupled : bool
        Also prune residual streams, as whole groups of the layers that write into them.
    remove_branches : bool
        A layer inside a residual branch may lose all its channels, without floor and cap. Its branch then goes as a
        whole, and the addition passes the shortcut alone.
    bias : {'constant', 'mean', 'none'}
        Values of dropped channels that the biases of the layers that read them take over: those of channels that are
        constant on the calibration images, which is exact but for zero padding; also the means of all others; or none.
    recalibrate_bn : bool
        Estimate the statistics of the batch normalisations again, on calibration images. Kept only where the outputs
        on the held-out ones come nearer to the original's.
    seed : int
        Of the criteria 'random' and 'taylor'.
    latency_batch, latency_layout
        Images at a time, and memory layout, where ``cost`` is 'latency'.
    runtime : str, optional
        Where ``cost`` is 'latency': the runtime in which the network will run, of
        :data:`decomp.runtimes.names.RUNTIMES`; eager mode if none is given.
    device : {'auto', 'cpu', 'cuda'}
    redo : bool
        Replace an earlier pruning of this run, and remove what was made from it.
    original : torch.nn.Module, optional
        The network that was frozen, where it was given in memory.
    reporter : Reporter, optional

    Returns
    -------
    PruneResult

    Raises
    ------
    DecompError
        UsageError for an option, before the run is touched; TargetError for a target out of reach or a plan of another
        network; FileError for a file of the run.
    """
    reporter = reporter or Reporter()
    given = None if keep is None else read_plan(keep)
    options = prune_options(
        given, criterion=criterion, speedup=speedup, ratio=ratio, cost=cost, ranking=ranking, normalise=normalise,
        floor=floor, cap=cap, scoring=scoring, multiple=multiple, skip=skip, coupled=coupled,
        remove_branches=remove_branches, bias=bias, recalibrate_bn=recalibrate_bn, seed=seed,
        latency_batch=latency_batch, latency_layout=latency_layout, runtime=runtime,
    )  # fmt: skip
    target, directory = pick_device(device), RunDirectory.open(run)
    require_runtime(options, target)
    directory.original = original if original is not None else directory.original
    with directory.lock(), reporter.stage("prune", PHASES):
        require_not_decomposed(directory)
        before = None if redo else _done_before(directory, options)
        if before is not None:
            return before
        loading.warn_of_other_versions(directory, "freeze", reporter)
        source = unfolded_of_run(directory)
        reporter.phase(CHOOSE)
        with calibration_images(directory, target, options.seed) as images:
            source.network.to(target)
            pruned = remove(source, options, given, images=images, device=target, reporter=reporter)
        reporter.phase(CHECK)
        after, verified = _exchange(directory, source, pruned, options, reporter)
        return _record(directory, options, pruned, after, verified, _compare(directory, target, reporter))


@contextmanager
def calibration_images(run: RunDirectory, device: torch.device, seed: int) -> Iterator[Images]:
    """The calibration images of a run, a tenth of them held out."""
    frozen, _ = loading.open_frozen(run)
    with frozen:
        outputs, (channels, height, width) = frozen_outputs(frozen), frozen.meta["input_shape"]
        size = images_at_a_time(outputs, (channels, height, width))
        yield batched(frozen.images, fitted_images(frozen.n_images), frozen.n_images, size, device, outputs, seed)


def _done_before(run: RunDirectory, options: PruneOptions) -> PruneResult | None:
    """The result of an earlier call with the same options; an error for other options; None when there is none."""
    before = run.config("prune")
    if before is None or "macs_after" not in before or not (run.pruned_dir / "structure.json").is_file():
        return None
    fix = "use --redo to replace it, or give another --run to keep both"
    require_same_options(run, "pruned", options, before["asked"], fix, _shown)
    loading.load_network(run, run.pruned_dir)
    return PruneResult(run, True, before)


def _shown(name: str, value: Any) -> Any:
    return value if name != "keep" else "none" if value is None else f"a plan of digest {value[:12]}"


def _clear(run: RunDirectory) -> None:
    """Remove an earlier pruning and what was made from it; a plan that was edited is kept beside the new one."""
    before = run.config("prune")
    was_killed = before is not None and "plan_digest" not in before
    if run.prune_json.is_file() and not was_killed and (before or {}).get("plan_digest") != _digest_of(run):
        os.replace(run.prune_json, run.prune_json.with_name("prune.previous.json"))
    for stage in ("prune", "finetune", "evaluate"):
        run.update_config(stage, None)
    for path in (run.pruned_dir, run.finetune_dir, beside(run.finetune_dir)):
        shutil.rmtree(path, ignore_errors=True)
    run.report_json.unlink(missing_ok=True)


def _digest_of(run: RunDirectory) -> str | None:
    return digest_file(run.prune_json) if run.prune_json.is_file() else None


def _about(run: RunDirectory, options: PruneOptions, pruned: Pruned) -> dict[str, Any]:
    """What prune.json tells beside the channels."""
    return {
        "model": freeze_options(run).model, "options": options.to_json(),
        "macs": [pruned.before.macs, pruned.planned.macs], "params": [pruned.before.params, pruned.planned.params],
        "left_alone": dict(pruned.left_alone), "notes": list(pruned.notes),
    }  # fmt: skip


def _exchange(
    run: RunDirectory, source: Unfolded, pruned: Pruned, options: PruneOptions, reporter: Reporter
) -> tuple[Cost, Verified]:
    """Write the network beside an earlier one, which stays until the new one is whole, and put it in its place."""
    new, begun = beside(run.pruned_dir), {"asked": options.to_json()}
    shutil.rmtree(new, ignore_errors=True)
    first = "macs_after" not in (run.config("prune") or {})
    if first:
        run.update_config("prune", begun)  # the run is not to be decomposed
    try:
        after, verified = _emit(run, source, pruned, options, new, reporter)
    except DecompError:
        shutil.rmtree(new, ignore_errors=True)
        if first:
            run.update_config("prune", None)
        raise
    _clear(run)
    run.update_config("prune", begun)
    write_plan(run.prune_json, PruningPlan(pruned.keep, pruned.widths, _about(run, options, pruned)))
    os.replace(new, run.pruned_dir)
    return after, verified


def _emit(
    run: RunDirectory, source: Unfolded, pruned: Pruned, options: PruneOptions, folder: Path, reporter: Reporter
) -> tuple[Cost, Verified]:
    """Write the pruned network, and try whether the class of the original takes it where it is at hand."""
    frozen, structure = freeze_options(run), read_structure(run.original_dir)
    network = pruned.network.cpu()
    meta = {"model": frozen.model, "prune": options.to_json(), "macs_before": pruned.before.macs}
    meta |= {key: structure["meta"][key] for key in ("dtype",) if key in structure["meta"]}
    prepared = ((run.config("freeze") or {}).get("source") or {}).get("prepared") or {}
    if "mean" in prepared:  # of image files, and not by a function of the user's
        meta["preprocessing"] = prepared
    after, verified = emit(
        source, network, folder, changed=pruned.changed, planned=pruned.planned, meta=meta,
        part=frozen.part, leaves=frozen.leaves,
    )  # fmt: skip
    say = reporter.warn if verified.into is False else reporter.step
    say(f"network read back from its files: {verified.words()}")
    return after, verified


def _compare(run: RunDirectory, device: torch.device, reporter: Reporter) -> dict[str, Any]:
    """Closeness of the outputs to the original's on held-out calibration images; empty where it cannot be told."""
    try:
        frozen, original = loading.open_frozen(run)
        with frozen:
            outputs, (channels, height, width) = frozen_outputs(frozen), frozen.meta["input_shape"]
            return fidelity.compare(
                original.to(device), loading.load_network(run, run.pruned_dir).to(device), frozen,
                fitted_images(frozen.n_images), images_at_a_time(outputs, (channels, height, width)), device, outputs,
                fits=False,
            )  # fmt: skip
    except DecompError as error:
        reporter.warn(f"the network is written, but its outputs cannot be compared with the original's: {error}")
        return {}


def _record(
    run: RunDirectory, options: PruneOptions, pruned: Pruned, after: Cost, verified: Verified, close: Mapping[str, Any]
) -> PruneResult:
    """Put the result down in run.json."""
    facts = {
        "asked": options.to_json(), "plan_digest": _digest_of(run),
        "macs_before": pruned.before.macs, "macs_after": after.macs, "measured": pruned.measured, "share": pruned.share,
        "params_before": pruned.before.params, "params_after": after.params,
        "spaces": {name: [len(pruned.keep[name]), width] for name, width in pruned.widths.items()},
        "left_alone": dict(pruned.left_alone), "notes": list(pruned.notes), "fidelity": close,
        "into": {"verified": verified.into, "reason": verified.reason}, "part": freeze_options(run).part,
    }  # fmt: skip
    run.update_config("prune", facts)
    return PruneResult(run, False, facts)
