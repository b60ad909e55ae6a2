"""Stage ``inspect``: layers and channel spaces of a network, the steps that apply to each, and the exclusions."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from decomp.allocation.plan import STEP_TABLE, STEPS
from decomp.cost.count import FUNCTIONAL, Cost, cost
from decomp.errors import UsageError
from decomp.graph.call_order import bring_calls_together
from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.shared_spaces import whole_spaces
from decomp.graph.size_branches import size_branch_message
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn

from ...data import models, sources
from ...data.formats.atomic import commit
from ...data.formats.paths import safe_name
from ..console.options import FreezeOptions
from ..console.program import command_line
from ..console.words import counted, listed
from ..reporting.graphviz import as_dot, draw, require_dot
from ..run.loading import part_of


@dataclass(frozen=True)
class InspectResult:
    """Result of the stage.

    Attributes
    ----------
    network : dict
        Name, input shape, multiply-accumulates, parameters, number of calibration images.
    layers : list of dict
        In execution order: name, kind, channels, kernel, share of the cost, channel spaces read and written, and
        the steps that apply.
    spaces : list of dict
        Name, width, layers that write, carry and read it, operations that couple it, and its status.
    other : dict of str to str
        Modules and calls with a cost that are not layers which can be compressed.
    written : list of str
        Paths of the files written.
    """

    network: dict[str, Any]
    layers: list[dict[str, Any]] = field(repr=False)
    spaces: list[dict[str, Any]] = field(repr=False)
    other: dict[str, str] = field(repr=False)
    written: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"network": self.network, "layers": self.layers, "spaces": self.spaces, "other": self.other}

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        n = self.network
        shape = "×".join(map(str, n["input_shape"]))
        layers = counted(len(self.layers), "layer")
        yield f"{n['name']}: {layers}, {n['macs'] / 1e6:,.1f} M multiply-accumulates at {shape}"
        if n["branches"]:
            yield size_branch_message(n["branches"], n["input_shape"])
        yield ""
        yield "layers in execution order (share of the cost; applicable steps)"
        width = max((len(layer["name"]) for layer in self.layers), default=0)
        for layer in self.layers:
            yield f"  {layer['name']:<{width}}  {layer['size']:<24} {100 * layer['share']:5.1f} %  {_step_words(layer)}"
        yield ""
        yield "channel spaces (sets of channels that all layers listed under each share)"
        for space in self.spaces:
            yield f"  {space['name']}: {counted(space['width'], 'channel')}; {space['status']}"
            for word, key in (("written by", "producers"), ("carried by", "carriers"), ("read by", "consumers"),
                              ("coupled by", "couplings")):  # fmt: skip
                if space[key]:
                    yield f"    {word} {listed(space[key], 6)}"
        yield ""
        yield from self._left_alone()
        yield from (f"written: {path}" for path in self.written)
        if self.network.get("next"):
            yield f"next: {self.network['next']}"

    def _left_alone(self) -> Iterator[str]:
        counts = {step: sum(step not in layer["left_alone"] for layer in self.layers) for step in STEPS}
        words = ", ".join(f"{counts[step]} can be {verb}" for step, verb in _VERBS.items())
        images = counted(self.network["n_images"], "calibration image")
        yield f"of {counted(len(self.layers), 'layer')} {words}, with {images}"
        whole = [la for la in self.layers if len(la["left_alone"]) == len(STEPS)]
        # A convolution without steps has one reason for all; of a linear layer only pruning is a question.
        reasons = Counter(la["left_alone"]["prune"] for la in whole)
        yield f"no step for {counted(len(whole), 'layer')}" + (":" if whole else "")
        for reason, count in reasons.most_common():
            yield f"  {count} × {reason}"
        for name, reason in self.other.items():
            yield f"  {name}: {reason}"


_VERBS = {step.name: step.verb for step in STEP_TABLE}


def _step_words(layer: Mapping[str, Any]) -> str:
    if len(layer["left_alone"]) == len(STEPS):
        return f"left alone: {layer['left_alone']['prune']}"
    words = [step for step in ("spatial", "channel") if step not in layer["left_alone"]]
    if layer["prune"]:
        words.append(layer["prune"])
    else:
        words.append(f"no prune: {layer['left_alone']['prune']}")
    if layer["recovers"]:
        words.append("corrects its shortcut")
    return "; ".join(words)


def inspect(
    model: str,
    *,
    data: str | None = None,
    weights: str | None = None,
    input_size: Any = None,
    part: str | None = None,
    leaves: Sequence[str] = (),
    n_images: int = 5000,
    dot: str | os.PathLike[str] | None = None,
    png: str | os.PathLike[str] | None = None,
) -> InspectResult:
    """List the layers and channel spaces of a network; its weights do not matter.

    Parameters
    ----------
    model : str
        As :func:`decomp.data.models.load_model` reads it.
    data : str, optional
        Images that give the input size.
    weights : str, optional
        As for :func:`decomp.pipelines.stages.freeze.freeze`: they must fit, and give the input size and the number of
        classes where these are recorded with them.
    input_size : str, optional
    part : str, optional
        Inspect only this submodule.
    leaves : sequence of str
        Modules that are not traced.
    n_images : int
        Calibration images that the network would be frozen with, at most the training images of `data`: layers with
        too many columns for them are excluded, as `decompose` excludes them.
    dot, png : path, optional
        Write a

    Returns
    -------
    InspectResult
    """
    # Checked like those of freeze, whose run would be decomposed.
    n_images = FreezeOptions(model=model, data=data or "none", n_images=n_images).n_images
    if png:
        require_dot()
    loaded = models.load_model(model, weights="random" if weights is None else weights, input_size=input_size)
    shape = loaded.input_shape
    if data is not None:
        source = sources.open_source(data, network=loaded.takes(part_of(loaded.module, part, model)))
        shape, n_images = source.input_shape, min(n_images, len(source.train))
    if shape is None:
        raise UsageError(model, "does not define its image size", fix="give --input-size CxHxW or --data")
    network = trace(part_of(loaded.module, part, model), model, leaves, shape)
    fold_bn(network)
    bring_calls_together(network)
    graph = NetworkGraph(network, shape, model, fitting=FittingLimits(n_images))
    counted = cost(network, shape)
    drawn = as_dot(graph, _own_spaces(graph)) if dot or png else ""
    written = [_write(Path(dot), drawn)] if dot else []
    if png:
        written.append(draw(png, drawn))
    facts = {"name": model + (f", {part}" if part else ""), "input_shape": list(shape), "macs": counted.macs,
             "params": counted.params, "branches": network.meta["branches"], "n_images": n_images}  # fmt: skip
    facts["next"] = _next(model, data, weights, part, leaves)
    layers = [_layer_facts(graph, layer, counted) for layer in graph.layers]
    return InspectResult(facts, layers, _space_facts(graph), _others(graph, counted, leaves), written)


def _next(model: str, data: str | None, weights: str | None, part: str | None, leaves: Sequence[str]) -> str | None:
    """The command that freezes the network; None where no images are named."""
    if data is None:
        return None
    options = ["--model", model, "--data", data, *(["--weights", weights] if weights else [])]
    options += ["--module", part] if part else []
    options += [word for leaf in leaves for word in ("--leaf", leaf)]
    return command_line("freeze", Path("runs", safe_name(model.rpartition(":")[2])), shlex.join(options))


def _layer_facts(graph: NetworkGraph, layer: Layer, counted: Cost) -> dict[str, Any]:
    module = graph.module.get_submodule(layer.name)
    groups = getattr(module, "groups", 1)
    size = f"{layer.in_channels}→{layer.out_channels}"
    if layer.kind == "conv":
        size += f" {layer.kernel[0]}×{layer.kernel[1]}" + (f" /{groups}" if groups > 1 else "")
        size += f" at {layer.out_hw[0]}×{layer.out_hw[1]}"
    space, prune = layer.input_space, None
    if space is not None:
        prune = (
            f"reads a subset of its {space.width} channels"
            if space.sampled
            else f"prune together with {space.producer}"
        )
        prune += f" through {listed(space.carriers, 2)}" if space.carriers else ""
    macs = counted.per_layer.get(layer.name, 0)
    return {
        "name": layer.name, "kind": layer.kind, "size": size, "in_channels": layer.in_channels,
        "out_channels": layer.out_channels, "kernel": list(layer.kernel), "groups": groups,
        "out_hw": list(layer.out_hw), "activation": layer.activation, "macs": macs,
        "share": macs / max(counted.macs, 1), "reads": [s.name for s in graph.spaces.read_by(layer.name)],
        "writes": [s.name for s in graph.spaces.written_by(layer.name)], "prune": prune, "recovers": layer.recovers,
        "left_alone": dict(layer.left_alone),
    }  # fmt: skip


def _own_spaces(graph: NetworkGraph) -> dict[str, str]:
    """Spaces that are narrowed with the one layer that reads them: {space: layer}."""
    private = [layer for layer in graph.layers if layer.input_space and not layer.input_space.sampled]
    return {graph.own_space(layer).name: layer.name for layer in private}


def _space_facts(graph: NetworkGraph) -> list[dict[str, Any]]:
    own, (whole, _) = _own_spaces(graph), whole_spaces(graph)
    facts: list[dict[str, Any]] = []
    for space in graph.spaces.all:
        if space.frozen is not None:
            status = f"keeps its width: it {space.frozen}"
        elif space.name in own:
            status = f"narrowed with {own[space.name]}"
        else:
            status = "shared: its readers may each take a subset"
            status += "; narrowed as a whole by --coupled" if space.name in whole else ""
        facts.append({
            "name": space.name, "width": space.width, "status": status, "producers": list(space.producers),
            "carriers": list(space.carriers), "consumers": list(space.consumers), "couplings": list(space.couplings),
        })  # fmt: skip
    return facts


def _others(graph: NetworkGraph, counted: Cost, leaves: Sequence[str]) -> dict[str, str]:
    """Modules and calls that have a cost but are not layers, each with the reason why it stays as it is."""
    layers, modules = {layer.name for layer in graph.layers}, dict(graph.module.named_modules())
    other = {}
    for name, macs in counted.per_layer.items():
        if name not in layers and not any(name == leaf or name.startswith(f"{leaf}.") for leaf in leaves):
            share = f"{100 * macs / max(counted.macs, 1):.1f} % of the cost"
            if name in modules:
                other[name] = f"left alone: {_kind(modules[name])}, {share}"
            elif name == FUNCTIONAL:
                other[name] = f"left alone: {len(graph.functional_convs)} that no module makes, {share}"
            else:
                other[name.strip("()")] = f"{macs / 1e6:,.3g} M multiply-accumulates, {share}, stay"
    other.update({leaf: "left alone: given as --leaf" for leaf in leaves})
    return other


def _kind(module: nn.Module) -> str:
    """The class of a module that is no layer here, and what makes it none."""
    if type(module) is nn.Linear:
        return "a linear layer on more than two axes"
    groups = getattr(module, "groups", 1)
    return type(module).__name__ + (f" of {groups} groups" if groups > 1 else "")


def _write(path: Path, text: str) -> str:
    with commit(path) as target:
        target.write_text(text, encoding="utf-8")
    return str(path)
