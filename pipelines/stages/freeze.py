"""Stage ``freeze``: run the original network once and record its responses at sampled output positions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from decomp.cost.count import cost
from decomp.errors import UsageError
from decomp.execution.output_change import Outputs
from decomp.execution.sampled_rows import points_of_calls
from decomp.graph.autocast import AUTOCAST
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.size_branches import size_branch_message
from decomp.runtimes.precision import exact_float32

from ...data import models
from ...data.formats import network_file
from ...data.formats.atomic import require_space
from ...data.formats.digests import digest_file
from ...data.formats.frozen_file import FrozenFile
from ...data.models import LoadedModel
from ...data.plain_network import shared_tensors
from ...data.preparation import require_same_transforms
from ...data.sources import open_source
from ...data.splits import ImageSource
from ..console.options import FreezeOptions
from ..console.program import command_line
from ..console.reporter import Reporter
from ..console.words import counted, listed
from ..decomposition.memory import measure, set_limits
from ..decomposition.prepare import prepare
from ..decomposition.record_responses import ResponseRecording
from ..decomposition.refusals import no_layer
from ..distributed.process_group import from_first, gathered, spread
from ..measure import sanity
from ..measure.resources import Resources
from ..run import trained
from ..run.calibration import draw_images, draw_mixtures, fewer_words, mixtures_within
from ..run.conditions import require_same_options
from ..run.directory import RunDirectory
from ..run.loading import part_of
from ..run.stage_result import StageResult

OPEN, RECORD = PHASES = ("network and images", "recording of the outputs")


@dataclass(frozen=True)
class FreezeResult(StageResult):
    """Result of the stage: the numbers of the summary."""

    def lines(self) -> list[str]:
        """Human-readable summary lines: what was found, then the next step."""
        return [*self.findings(), *self.next_steps()]

    def findings(self) -> list[str]:
        """The lines without the next step."""
        if self.done_before:
            return [f"{self.run.frozen}: already frozen, nothing to do"]
        f = self.facts
        folded = f"{counted(f['n_folded'], 'batch normalisation')} folded into the layers before; "
        folded = folded if f["n_folded"] else ""
        return [
            f"{f['model']}: {counted(f['n_convs'], 'convolution')} and {counted(f['n_linears'], 'linear layer')}, "
            f"{f['macs'] / 1e6:,.1f} M multiply-accumulates, {f['params'] / 1e6:,.2f} M parameters",
            f"{folded}{_images_words(f)} × up to {counted(f['n_points'], 'point')}",
            *self._output_lines(),
            *(sanity.lines(f["sanity"]) if "sanity" in f else []),
            *([size_branch_message(f["branches"], f["shape"])] if f.get("branches") else []),
            *([AUTOCAST] if f.get("autocast") else []),
            f"recorded outputs (frozen points): {self.run.frozen} ({f['bytes'] / 2**20:,.0f} MiB)",
        ]

    def next_steps(self) -> list[str]:
        """The line with the next step."""
        if self.done_before and any(self.run.config(stage) is not None for stage in ("decompose", "prune")):
            return [f"next: {command_line('status', self.run.path)}"]
        return [f"next: {command_line('decompose', self.run.path, '--speedup 4x')}"]

    def _output_lines(self) -> list[str]:
        outputs = Outputs.from_json(self.facts["outputs"])
        return [f"{entry.name}: {entry.words()}" for entry in outputs.each] + outputs.notes()


def _images_words(facts: Mapping[str, Any]) -> str:
    images, mixed = counted(facts["n_images"], "image"), facts.get("n_mixtures", 0)
    return f"{images} and {counted(mixed, 'mixture')} of two of them" if mixed else images


def freeze(
    run: str | os.PathLike[str] | RunDirectory,
    *,
    model: str | None = None,
    data: str | None = None,
    weights: str | None = None,
    input_size: Any = None,
    part: str | None = None,
    leaves: Sequence[str] = (),
    outputs: str | None = None,
    mean: Any = None,
    std: Any = None,
    resize: Any = None,
    crop: Any = None,
    flip: bool = True,
    transforms: str | None = None,
    n_images: int = 5000,
    n_points: int = 10,
    mix: bool = True,
    seed: int = 0,
    batch_size: int = 100,
    device: str = "auto",
    skip_bad: bool = False,
    memory: int | str | None = None,
    check: Callable[[LoadedModel, ImageSource], object] | None = None,
    reporter: Reporter | None = None,
) -> FreezeResult:
    """Sample the responses of every layer of the original network into one HDF5 file.

    Parameters
    ----------
    run : path or RunDirectory
        Created where it does not exist.
    model, weights, data : str
        As :func:`decomp.data.models.load_model` and :func:`decomp.data.sources.open_source` read them. In a run with a
        training (``train --run``), those of the training where they are not given.
    input_size : str or sequence of int, optional
        ``224``, ``28x28`` or ``3x224x224``, where neither the model nor the images give it.
    part : str, optional
        Path of a submodule that takes the images; only this submodule is compressed (``module`` of
        :func:`decomp.compress`, ``--module`` of the command).
    leaves : sequence of str
        Paths of modules, in the part, that are not traced and stay unchanged.
    mean, std : float or sequence of float, optional
        For pixel values from 0 to 1, of image files (other images: for the values that their source gives). Default:
        those that the weights bring, otherwise ImageNet's.
    resize : int or (H, W), optional
        Of image files: the short side, or exactly this size.
    crop : int or (H, W), optional
        The middle of the resized image files.
    flip : bool
        False: no mirroring in later training.
    transforms : str, optional
        A function of your own in place of these, see :mod:`decomp.data.user_transforms`.
    outputs : {'scores', 'values'}, optional
        Meaning of an output of two axes: class scores, or values. Where it is not given, see
        :func:`decomp.execution.output_kinds.decide_kinds`.
    n_images : int
        Calibration images, drawn from the training split; all of them where there are fewer.
    n_points : int
        Output positions per image and output grid, drawn anew for each image.
    mix : bool
        Where there are fewer than 1,000 images, also record mixtures of two of those that will be fitted.
    seed : int
    batch_size : int
        Largest number of images per batch; fewer where memory does not allow as many.
    device : {'auto', 'cpu', 'cuda', 'cuda:N'}
    skip_bad : bool
        Leave out unreadable images instead of stopping.
    memory : int or str, optional
        Memory limit in bytes, or as text such as ``8GiB``; half of the machine's memory where not given. See
        :mod:`decomp.pipelines.decomposition.memory`.
    check : callable, optional
        Takes network and images before anything is recorded, and raises an error where a later stage would.
    reporter : Reporter, optional

    Returns
    -------
    FreezeResult

    Raises
    ------
    DecompError
        One of the subclasses in :mod:`decomp.errors`, with a message of one line.
    """
    directory = RunDirectory(run)
    model, data, weights = trained.inputs(directory, model, data, weights)
    options = FreezeOptions(
        model=model, weights=weights, data=data, input_size=input_size, n_images=n_images, n_points=n_points, seed=seed,
        skip_bad=skip_bad, part=part, leaves=tuple(leaves) if not isinstance(leaves, str) else (leaves,),
        mean=mean, std=std, resize=resize, crop=crop, flip=flip, transforms=transforms,
        outputs=outputs, mix=mix,
    )  # fmt: skip
    resources = Resources.of(device, memory, batch_size)

    def open_inputs() -> tuple[LoadedModel, ImageSource]:
        images = options.image_options
        file = trained.weights_file(directory, weights)
        loaded = models.load_model(options.model, weights=file, input_size=input_size or images.size)
        module = part_of(loaded.module, part, loaded.name)
        source = open_source(
            options.data, network=loaded.takes(module), options=images, skip_bad=skip_bad, spread=spread
        )
        if check is not None:
            check(loaded, source)
        return loaded, source

    return freeze_once(directory, options, open_inputs, resources, reporter or Reporter())


def freeze_once(
    run: RunDirectory, options: FreezeOptions, open_inputs: Callable[[], tuple[LoadedModel, ImageSource]],
    resources: Resources, reporter: Reporter,
) -> FreezeResult:  # fmt: skip
    """The same for a network and images that a function returns; nothing is done where the run has them already.

    Raises
    ------
    UsageError
        The run was frozen with other options, weights or images.
    """
    with reporter.stage("freeze", PHASES), ExitStack() as locked:
        if run.run_json.exists():
            run = RunDirectory.open(run)
            locked.enter_context(run.lock())
        else:
            run.check_free()
        before = _frozen_before(run, options)
        reporter.phase(OPEN)
        loaded, source = open_inputs()
        if before is not None:
            from_first(lambda: _require_unchanged(run, before, loaded, source))
            return FreezeResult(run, True, before.get("facts", {}))
        return freeze_loaded(run, loaded, source, options, resources, locked=locked, reporter=reporter)


@exact_float32()
def freeze_loaded(
    run: RunDirectory,
    loaded: LoadedModel,
    source: ImageSource,
    options: FreezeOptions,
    resources: Resources,
    *,
    locked: ExitStack,
    reporter: Reporter,
) -> FreezeResult:
    """The same for a network and images in memory.

    Parameters
    ----------
    run : RunDirectory
        Created where it does not exist.
    loaded : LoadedModel
    source : ImageSource
        With images as the network takes them.
    options : FreezeOptions
        Recorded in the run.
    resources : decomp.pipelines.measure.resources.Resources
    locked : contextlib.ExitStack
        The run is created, and locked for the life of this stack, once network and images are known to be usable.
    reporter : Reporter
    """
    _announce(loaded, source, reporter)
    network, folded, outputs = prepare(loaded, source, options)
    graph = NetworkGraph(network, source.input_shape, loaded.name)
    if not graph.layers:
        raise no_layer(graph, options)
    whole = cost(network, source.input_shape)
    indices = draw_images(source, options.n_images, options.seed)
    most = mixtures_within(len(indices), whole.macs) if options.mix else 0
    mixtures = draw_mixtures(len(indices), options.seed, most=most)
    if options.mix and (words := fewer_words(len(indices), whole.macs)):
        reporter.step(words)
    mixed = {} if mixtures is None else {"n_mixtures": len(mixtures)}
    n_recorded = len(indices) + mixed.get("n_mixtures", 0)
    # The first process has the folder, and the least memory decides.
    from_first(lambda: require_space(run.path, _bytes_needed(graph, n_recorded, options.n_points)))
    limits = set_limits(
        network, measure(network, source.train.images(indices[:1])), resources, folder=run.path, command="freeze"
    )
    batch_size = min(gathered(limits.batch_size))
    # As late as this, so that a mistyped name leaves nothing behind.
    run = RunDirectory.create(run)
    locked.enter_context(run.lock())
    exchanged = network.meta["exchanged"]
    edited = [*exchanged, *(path for pair in folded for path in pair)]
    kept = {} if loaded.dtype == torch.float32 else {"dtype": str(loaded.dtype).removeprefix("torch.")}
    about = {"model": options.model, "normalised": [list(pair) for pair in folded], **kept}
    network_file.save(
        network, run.original_dir, edited=edited, input_shape=source.input_shape, meta=about, part=options.part,
        leaves=options.leaves,
    )  # fmt: skip
    about_source = from_first(source.describe)  # with the digest of all images
    meta = {
        **options.to_json(), "weights_digest": loaded.weights_digest, "data": about_source,
        "n_images": len(indices), "input_shape": list(source.input_shape), "n_classes": loaded.n_classes,
        "network": digest_file(run.original_dir / "structure.json"), **kept, **mixed,
    }  # fmt: skip
    if source.skipped:
        said = f"{counted(len(source.skipped), 'image')} left out, unreadable or with NaN (--skip-bad)"
        said = f"{said}: {listed(source.skipped, 3)}"
        reporter.warn(said, files=", ".join(source.skipped))
    reporter.phase(RECORD)
    reporter.expect({"recording outputs": 1.0})
    recording = ResponseRecording(graph, options.n_points, options.seed, indices, outputs, mixtures)
    check = sanity.Sanity(outputs.scores is not None)
    content = recording.write(run, meta, source, batch_size, resources.device, reporter, watch=check.add)
    facts = {
        "model": options.model, "n_convs": sum(layer.kind == "conv" for layer in graph.layers),
        "n_linears": sum(layer.kind == "linear" for layer in graph.layers), "macs": whole.macs,
        "params": whole.params, "n_folded": len(folded), "n_images": len(indices), "n_points": options.n_points,
        "bytes": from_first(lambda: run.frozen.stat().st_size), "branches": network.meta["branches"],
        "autocast": network.meta["autocast"], "shape": source.input_shape,
        "preprocessing": source.preprocessing,
        "sanity": from_first(lambda: check.facts(source.train.labels(indices), source.class_names)),
        "outputs": recording.outputs.to_json(), **mixed,
    }  # fmt: skip
    record = {"asked": options.to_json(), "facts": facts, "weights_digest": loaded.weights_digest, "frozen": content}
    run.update_config("freeze", {**record, "source": about_source, "outputs": facts["outputs"]})
    return FreezeResult(run, False, facts)


def _announce(loaded: LoadedModel, source: ImageSource, reporter: Reporter) -> None:
    """Say how weights and images are taken."""
    if loaded.note:
        reporter.step(f"weights: {loaded.note}")
    if loaded.dtype != torch.float32:
        precision = str(loaded.dtype).removeprefix("torch.")
        reporter.step(f"weights: in {precision}; fitted in float32, loaded and exported in {precision}")
    for names in shared_tensors(loaded.module):
        reporter.step(f"weights: {names} are one tensor; they are fitted, stored and counted each for itself")
    reporter.step(f"images: {source.preprocessing}")
    if source.labels_ignored:
        reporter.step(f"labels are not class numbers ({source.labels_ignored}); ignored")


def _frozen_before(run: RunDirectory, options: FreezeOptions) -> dict[str, Any] | None:
    """The record of an earlier call with these options, or None; an error where the options were others."""
    before = run.config("freeze") if run.run_json.exists() else None
    if before is None or not run.frozen.is_file():
        return None
    fix = "give another --run to keep this one, or remove it to start again"
    require_same_options(run, "frozen", options, before["asked"], fix)
    FrozenFile(run.frozen).close()
    return before


def _require_unchanged(run: RunDirectory, before: dict[str, Any], loaded: LoadedModel, source: ImageSource) -> None:
    """Refuse a network or images that have the names of those that were frozen, but are others."""
    for what, then, now in (
        ("weights", before["weights_digest"], loaded.weights_digest),
        ("training images", before["source"]["digest"], source.digest("train")),
    ):
        if then != now:
            raise UsageError(
                run.path, f"was frozen with other {what}, of digest {str(then)[:12]}", got=str(now)[:12],
                fix="give another --run for these",
            )  # fmt: skip
    recorded, made = before["source"].get("prepared") or {}, source.prepared or {}
    require_same_transforms(str(made.get("transforms")), recorded.get("first"), made.get("first"))


def _bytes_needed(graph: NetworkGraph, n_images: int, n_points: int) -> int:
    """Upper estimate of the bytes of the frozen file and the original network."""
    channels, height, width = graph.input_shape
    numbers = n_images * channels * height * width
    for layer in graph.layers:
        points = sum(points_of_calls(n_points, [out_hw for _, out_hw in layer.calls]))
        numbers += n_images * points * (layer.out_channels * (1 if layer.recovers is None else 2) + 2)
    numbers += sum(p.numel() for p in graph.module.parameters())
    return int(numbers * 4 * 1.05) + (1 << 20)
