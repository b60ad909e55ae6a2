"""Stage 1: run the original network once and keep its responses at sampled points."""

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from decomp import seeds
from decomp.cost import count as cost
from decomp.errors import DecompError, NumericalError, UsageError
from decomp.execution import replay as capture
from decomp.execution import sampled_rows
from decomp.execution.outputs import as_tensor
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.size_branches import size_branch_message
from decomp.graph.tracing import trace
from decomp.surgery import batchnorm

from ...data import models, sources
from ...data.formats import network_file
from ...data.formats.atomic import require_space
from ...data.formats.digests import digest_file
from ...data.formats.frozen_file import FrozenFile, FrozenWriter, grid_key, shortcut_key
from ..console.program import program
from ..decomposition.memory import measure, set_limits
from ..measure.devices import pick_device
from ..run.directory import RunDirectory
from ..run.loading import part_of

FOLD_TOLERANCE = 1e-4


@dataclass
class FreezeResult:
    """What the stage did.

    Attributes
    ----------
    run : RunDirectory
    done_before : bool
        The frozen points were there already; nothing was done.
    facts : dict
        Counts for printing.
    """

    run: RunDirectory
    done_before: bool
    facts: dict = field(default_factory=dict)

    def lines(self):
        """Lines for a person."""
        if self.done_before:
            return [f"{self.run.frozen}: already frozen, nothing to do"]
        f = self.facts
        return [
            f"{f['model']}: {f['n_convs']} convolutions and {f['n_linears']} linear layers, "
            f"{f['macs'] / 1e6:,.1f} M multiply-accumulates, {f['params'] / 1e6:,.2f} M parameters",
            f"{f['n_folded']} batch normalisations folded; {f['n_images']:,} images × up to {f['n_points']} points",
            *([size_branch_message(f["branches"], f["shape"])] if f.get("branches") else []),
            f"frozen points in {self.run.frozen} ({f['bytes'] / 2**20:,.0f} MiB)",
            f"next: {program()} decompose --run {self.run.path} --speedup 4x",
        ]


def freeze(
    run, *, model, data, weights=None, input_size=None, part=None, leaves=(), n_images=5000, n_points=10, seed=0,
    batch_size=100, device="auto", skip_bad=False, memory=None, reporter,
):  # fmt: skip
    """Sample the responses of every layer of the original network into one HDF5 file.

    Parameters
    ----------
    run : path or RunDirectory
        Made when it does not exist.
    model, weights, data : str
        As :func:`decomp.data.models.load_model` and :func:`decomp.data.sources.open_source` read them.
    input_size : str, optional
        ``224``, ``28x28`` or ``3x224x224``, where neither the model nor the images tell it.
    part : str, optional
        Path of a submodule that takes the images; it alone is treated.
    leaves : sequence of str
        Paths of modules, in the part, that are not looked into and left alone.
    n_images : int
        Calibration images, drawn from the training split; all there are if fewer.
    n_points : int
        Output positions per image and output grid, drawn for each image by itself.
    seed : int
    batch_size : int
        Images at a time, at most: fewer where memory does not allow as many.
    device : {'auto', 'cpu', 'cuda'}
    memory : int, optional
        Bytes to stay within, see :mod:`decomp.pipelines.decomposition.memory`; half of the machine's where not given.
    skip_bad : bool
        Leave out unreadable images instead of stopping.
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    FreezeResult

    Raises
    ------
    DecompError
        Of the family in decomp.errors, one line each.
    """
    check_counts(n_images, n_points)
    asked = {
        "model": model, "weights": weights, "data": data, "input_size": input_size, "n_images": n_images,
        "n_points": n_points, "seed": seed, "skip_bad": skip_bad, "part": part, "leaves": list(leaves),
    }  # fmt: skip
    run = RunDirectory(run)
    with reporter.stage("freeze"), ExitStack() as held:
        if run.run_json.exists():
            run = RunDirectory.open(run)
            held.enter_context(run.lock())
        else:
            run.check_free()
        before = _before(run, asked)
        loaded = models.load_model(model, weights=weights, input_size=input_size)
        source = sources.open_source(data, input_shape=loaded.input_shape, skip_bad=skip_bad)
        if before is not None:
            _check_unchanged(run, before, loaded, source)
            return FreezeResult(run, True, before.get("facts", {}))
        options = {"batch_size": batch_size, "device": device, "memory": memory, "reporter": reporter}
        return freeze_loaded(run, loaded, source, asked, held=held, **options)


def check_counts(n_images, n_points):
    """Refuse numbers of images and of points with which nothing can be fitted."""
    if n_images < 10 or n_points < 1:
        raise UsageError("freeze", "needs at least 10 images and 1 point each", got=f"{n_images} and {n_points}")


def freeze_loaded(run, loaded, source, asked, *, held=None, batch_size, device, memory=None, reporter):
    """The same for a network and images that are open already; `asked` holds what :func:`freeze` was asked for.

    Parameters
    ----------
    run : RunDirectory
        Locked; or not made yet, with `held`.
    loaded : decomp.data.models.LoadedModel
    source : decomp.data.sources.ImageSource
        With images as the network takes them.
    asked : dict
        Kept with the run: ``model`` (a name), ``n_images``, ``n_points``, ``seed`` and whatever else decides.
    held : contextlib.ExitStack, optional
        The run is made and locked for its length once network and images are known to be good.
    """
    part, leaves = asked.get("part"), asked.get("leaves") or ()
    network, folded = _prepare(loaded, source, part, leaves)
    layers = NetworkGraph(network, source.input_shape, loaded.name)
    if not any(layer.kind == "conv" for layer in layers.layers):
        rule = "has no convolution that could be made cheaper"
        raise UsageError(asked["model"], rule, fix="give a convolutional network")
    whole = cost.cost(network, source.input_shape)
    n_points, seed = asked["n_points"], asked["seed"]
    indices = draw_images(source, asked["n_images"], seed)
    require_space(run.path, _bytes_needed(layers, len(indices), n_points, source.input_shape, network))
    batch_size = set_limits(
        network, measure(network, source.train.images(indices[:1])), memory=memory, batch_size=batch_size,
        folder=run.path, command="freeze",
    ).batch_size  # fmt: skip
    if held is not None:
        # Made this late, so that a name that was mistyped leaves nothing behind.
        run = RunDirectory.create(run)
        held.enter_context(run.lock())
    edited = [*network.meta["batchnorms"], *(path for pair in folded for path in pair)]
    network_file.save(
        network, run.original_dir, edited=edited, input_shape=source.input_shape, meta={"model": asked["model"]},
        part=part, leaves=leaves,
    )  # fmt: skip
    meta = {
        **asked, "weights_digest": loaded.weights_digest, "data": source.describe(), "n_images": len(indices),
        "input_shape": list(source.input_shape), "n_classes": loaded.n_classes,
        "network": digest_file(run.original_dir / "structure.json"),
    }  # fmt: skip
    target = pick_device(device)
    content = _write(
        run, meta, network.to(target), layers, source, indices, n_points, seed, batch_size, target, reporter
    )
    facts = {
        "model": asked["model"], "n_convs": sum(layer.kind == "conv" for layer in layers.layers),
        "n_linears": sum(layer.kind == "linear" for layer in layers.layers), "macs": whole.macs,
        "params": whole.params, "n_folded": len(folded), "n_images": len(indices), "n_points": n_points,
        "bytes": run.frozen.stat().st_size, "branches": network.meta["branches"], "shape": source.input_shape,
    }  # fmt: skip
    section = {"asked": asked, "facts": facts, "weights_digest": loaded.weights_digest, "frozen": content}
    run.update_config("freeze", {**section, "source": source.describe()})
    return FreezeResult(run, False, facts)


def _before(run, asked):
    """What was frozen here before with these options, or None; an error when it was frozen with others."""
    before = run.config("freeze") if run.run_json.exists() else None
    if before is None or not run.frozen.is_file():
        return None
    for key, value in asked.items():
        if before["asked"].get(key) != value:
            raise UsageError(
                run.path, f"holds frozen points for {key} = {before['asked'].get(key)}", got=value,
                fix="give another --run, or remove this one to start again",
            )  # fmt: skip
    FrozenFile(run.frozen).close()
    return before


def _check_unchanged(run, before, loaded, source):
    """Refuse a network or images that go by the same name as those that were frozen, and are others."""
    for what, then, now in (
        ("weights", before["weights_digest"], loaded.weights_digest),
        ("training images", before["source"]["digest"], source.digest("train")),
    ):
        if then != now:
            raise UsageError(
                run.path, f"was frozen with other {what}, of digest {then[:12]}", got=now[:12],
                fix="give another --run for these",
            )  # fmt: skip


def _prepare(loaded, source, part, leaves):
    """The traced network with batch normalisation folded, checked against the model as given."""
    module = part_of(loaded.module, part, loaded.name)
    network = trace(module, loaded.name, leaves, source.input_shape)
    images = source.train.images(torch.arange(min(8, len(source.train))))
    bad = int((~torch.isfinite(images)).sum())
    if bad:
        got = f"{bad} NaN or infinite values in the first {len(images)}"
        raise NumericalError(source.name, "the images must be finite", got=got, fix="check the images")
    try:
        with torch.no_grad():
            before = module(images)
    except Exception as error:
        shape = "x".join(map(str, images.shape[1:]))
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            loaded.name, f"does not run on images of {shape} ({reason})", fix="give --input-size or other --data"
        ) from error
    before = as_tensor(before, loaded.name)
    folded = batchnorm.fold_bn(network)
    with torch.no_grad():
        after = as_tensor(network(images))
    if not torch.isfinite(before).all():
        raise _not_finite(loaded.name, module, images)
    worst = ((after - before).abs().max() / before.abs().max().clamp_min(1e-12)).item()
    if worst > FOLD_TOLERANCE:
        raise DecompError(
            loaded.name, f"folding batch normalisation must keep the outputs to {FOLD_TOLERANCE:g}", got=f"{worst:.2g}"
        )
    return network, folded


def _not_finite(name, module, images):
    """The error that names the first layer whose responses are not finite, and how many of them."""
    found = []

    def look(layer):
        def hook(module, inputs, output):
            if not found and isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append((layer, output.numel() - int(torch.isfinite(output).sum()), output.numel()))

        return hook

    leaves = [(path, child) for path, child in module.named_modules() if not list(child.children())]
    handles = [child.register_forward_hook(look(path)) for path, child in leaves]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    layer, bad, total = found[0] if found else ("its output", "some", "all")
    got = f"{bad} of {total} values NaN or infinite on the first {len(images)} images"
    return NumericalError(f"{name}, {layer}", "the responses must be finite", got=got, fix="check the weights")


def draw_images(source, n_images, seed):
    """Which images calibrate the network.

    Parameters
    ----------
    source : decomp.data.sources.ImageSource
    n_images : int
        At most.
    seed : int
        Of the draw.

    Returns
    -------
    torch.LongTensor
        Indices into the training images, in random order.

    Raises
    ------
    UsageError
        There are fewer than ten.
    """
    available = len(source.train)
    if available < 10:
        raise UsageError(source.name, "at least 10 training images are needed", got=available)
    order = torch.randperm(available, generator=seeds.generator(seed, "freeze", "images"))
    return order[: min(n_images, available)]


def _bytes_needed(layers, n_images, n_points, input_shape, network):
    """Bytes of the frozen file and the kept original, generously."""
    numbers = n_images * (input_shape[0] * input_shape[1] * input_shape[2])
    for layer in layers.layers:
        points = min(n_points, layer.out_hw[0] * layer.out_hw[1])
        numbers += n_images * points * (layer.out_channels * (1 if layer.recovers is None else 2) + 2)
    numbers += sum(p.numel() for p in network.parameters())
    return int(numbers * 4 * 1.05) + (1 << 20)


def _write(run, meta, network, layers, source, indices, n_points, seed, batch_size, device, reporter):
    """One pass over the calibration images into the frozen file; returns its identity."""
    nodes = {layers.node(layer): layer for layer in layers.layers if layer.fitted}
    with FrozenWriter(run.frozen, meta=meta, n_images=len(indices), input_shape=layers.input_shape) as writer:
        positions = {}
        for layer in nodes.values():
            key = grid_key(layer.out_hw)
            if key not in positions:
                positions[key] = sampled_rows.draw_positions(
                    len(indices), n_points, layer.out_hw, seeds.generator(seed, "freeze", "positions", key)
                )
                writer.declare_grid(key, layer.out_hw, positions[key])
            writer.declare_layer(layer.name, key, layer.out_channels)
            if layer.recovers is not None:
                writer.declare_layer(shortcut_key(layer.name), key, layer.out_channels)

        def images(start, stop):
            # Asked for once per batch: what the network sees is what is kept.
            batch = source.train.images(indices[start:stop])
            writer.write_images(start, batch)
            return batch

        replay = capture.Replay(network, images, len(indices), batch_size=batch_size, device=device)
        with reporter.progress(len(indices), "responses", "images") as progress:
            last = 0
            beside = {node: layers.shortcut_node(layer) for node, layer in nodes.items()}
            for start, stop, node, value, other in replay.visit(nodes, beside):
                layer = nodes[node]
                for name, values in ((layer.name, value), (shortcut_key(layer.name), other)):
                    if values is None:
                        continue
                    rows = sampled_rows.responses(values, positions[grid_key(layer.out_hw)][start:stop])
                    # All of them, not those at the points alone: the layers behind read the others too.
                    bad = values.numel() - int(torch.isfinite(values).sum())
                    if bad or not torch.isfinite(rows).all():
                        raise NumericalError(
                            layer.name, "the responses must be finite", got=f"{bad} NaN or infinite values in images "
                            f"{start}..{stop - 1}", fix="check the weights and the images",
                        )  # fmt: skip
                    writer.write_responses(name, start, rows.float().cpu())
                if stop != last:
                    progress.update(stop - last)
                    last = stop
    with FrozenFile(run.frozen) as frozen:
        return frozen.content
