"""Summary of a decomposition or pruning: costs, fidelity and the change of each layer, from the files of a run."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from decomp.allocation.plan import LayerPlan, Plan, latency_words
from decomp.cost.count import cost
from decomp.modules.convolution import CONVOLUTIONS

from ...data.formats import network_file
from ...data.formats.json_files import read_json
from ..console.layer_table import LayerSummary, layer_lines, layer_rows
from ..console.text_table import html_table
from ..run import loading
from ..run.conditions import no_compressed_network
from ..run.directory import RunDirectory
from ..run.networks import compressed
from ..run.target import target_words


@dataclass(frozen=True)
class Summary:
    """Result of a decomposition or a pruning.

    Attributes
    ----------
    model : str
    speedup : float or None
        The target, where one was given; ``macs_before / macs_after`` is the speed-up that was reached.
    macs_before, macs_after, params_before, params_after : int
        Of the whole network, or of its part.
    fidelity : dict
        Difference of the outputs on held-out images, see :func:`decomp.pipelines.measure.fidelity.compare`.
    layers : list of LayerSummary
        In execution order.
    notes : list of str
        What else is to be known about the result.
    network : {'decomposed', 'pruned'}
    part : str, optional
        Path of the submodule that all numbers are about; the whole network if None.
    target : str
        The target where it is no number of multiply-accumulates, see :func:`decomp.pipelines.run.target.target_words`.
    latency : dict
        The measurement of the plan, of a target in measured time.
    """

    model: str
    speedup: float | None
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    fidelity: Mapping[str, Any] = field(repr=False)
    layers: list[LayerSummary] = field(repr=False)
    notes: list[str] = field(default_factory=list, repr=False)
    network: str = "decomposed"
    part: str | None = None
    target: str = ""
    latency: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The network, and the part of it that all numbers are about."""
        return self.model if self.part is None else f"{self.model}, {self.part} alone"

    def costs(self) -> str:
        """The costs in one line, and the target; of one in measured time also what was measured."""
        other = bool(self.target)
        target = "" if self.speedup is None or other else f", target {self.speedup:g}x"
        costs = (
            f"{self.macs_before / 1e6:,.2f} M → {self.macs_after / 1e6:,.2f} M multiply-accumulates "
            f"({self.macs_before / max(self.macs_after, 1):.2f}x{target}), "
            f"{self.params_before / 1e6:,.3f} M → {self.params_after / 1e6:,.3f} M parameters"
        )
        if not other:
            return costs
        shrunk = f" ({self.params_before / max(self.params_after, 1):.2f}x)"
        return f"{costs}{shrunk}; target {self.target}{f': {latency_words(self.latency)}' if self.latency else ''}"

    def rows(self) -> list[tuple[str, ...]]:
        """The table of layers as texts, the header first."""
        return layer_rows(self.layers)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield f"{self.name}: {self.costs()}"
        if self.fidelity:
            yield from self.fidelity["words"].split("\n")
        yield from self.notes
        yield from layer_lines(self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        words = [f"<b>{html.escape(self.name)}</b>: {html.escape(self.costs())}"]
        words += [html.escape(line) for line in (self.fidelity or {}).get("words", "").split("\n") + self.notes if line]
        return f"<div><p>{'<br>'.join(words)}</p>{html_table(self.rows())}</div>"


def summarise(run: str | os.PathLike[str] | RunDirectory) -> Summary:
    """Read the summary of a decomposed or pruned run.

    Raises
    ------
    FileError
        The run holds no such network yet.
    """
    run = RunDirectory.open(run)
    made = compressed(run)
    facts = {} if made is None else run.config(made.stage) or {}
    if made is None or "macs_after" not in facts:
        raise no_compressed_network(run)
    original, network = (loading.load_network(run, path) for path in (run.original_dir, made.path(run)))
    shape = network_file.read_structure(run.original_dir)["input_shape"]
    sizes = planned_sizes(run) if made.name == "decomposed" else {}
    errors = {report["layer"]: _last_error(report) for report in facts.get("layers", [])}
    layers = layer_summaries(original, network, shape, sizes, errors)
    refined = [facts["block_refinement"]["words"]] if "words" in facts.get("block_refinement", {}) else []
    target = target_words(facts)
    return Summary(
        model=str((run.config("freeze") or {}).get("asked", {}).get("model", run.path)),
        speedup=facts["asked"]["speedup"], macs_before=facts["macs_before"], macs_after=facts["macs_after"],
        params_before=facts["params_before"], params_after=facts["params_after"],
        fidelity=facts.get("fidelity") or {}, layers=layers, notes=[*(facts.get("notes") or []), *refined],
        network=made.label, part=(run.config("freeze") or {}).get("asked", {}).get("part"),
        target="" if facts["asked"].get("cost", "macs") == "macs" else target, latency=facts.get("latency") or {},
    )  # fmt: skip


def layer_summaries(
    original: nn.Module, network: nn.Module, shape: Sequence[int],
    planned: Mapping[str, LayerPlan] = MappingProxyType({}), errors: Mapping[str, float] = MappingProxyType({}),
) -> list[LayerSummary]:  # fmt: skip
    """Each layer of a network and what it became, in execution order.

    Parameters
    ----------
    original, network : torch.nn.Module
        The network keeps the module paths of the original.
    shape : sequence of int
        (C, H, W) of an image.
    planned : mapping of str to LayerPlan, optional
    errors : mapping of str to float, optional
        Of the layers that were fitted.
    """
    before, after = cost(original, shape).per_layer, cost(network, shape).per_layer
    layers, modules = [], dict(network.named_modules(remove_duplicate=False))
    for name, macs in before.items():
        if not has_channels(original, name):
            module = dict(original.named_modules()).get(name)
            layers.append(LayerSummary.unchanged(name, macs, 0 if module is None else _params(module)))
            continue
        # Of a branch that is gone, nothing may be left.
        old, new = original.get_submodule(name), modules.get(name, nn.Identity())
        layers.append(
            LayerSummary(
                layer=name,
                kind="linear" if isinstance(old, nn.Linear) else "conv",
                reads=(width(new, "in", first=True), width(old, "in", first=True)),
                writes=(width(new, "out"), width(old, "out")),
                ranks=ranks(planned.get(name), old),
                macs_before=macs,
                macs_after=sum(v for path, v in after.items() if path == name or path.startswith(name + ".")),
                params_before=_params(old),
                params_after=_params(new),
                error=errors.get(name),
            )  # fmt: skip
        )
    return layers


def planned_sizes(run: RunDirectory) -> dict[str, LayerPlan]:
    """Sizes of the layers of a run.

    They are those in the record of the decomposed network, where there is one: plan.json can be edited or deleted
    afterwards.

    Raises
    ------
    DecompError
        There is neither, or plan.json cannot be read.
    """
    made = compressed(run)
    data = None if made is None else network_file.read_structure(made.path(run))["meta"].get("plan")
    if not isinstance(data, dict):  # in the networks of other programs
        data = read_json(run.plan_json, fix="put a copy of it back, or make it anew with decompose --redo")
    return {item.layer: item for item in Plan.from_json(data, str(run.plan_json)).layers}


_WITH_CHANNELS = (*CONVOLUTIONS, nn.Linear)


def has_channels(network: nn.Module, name: str) -> bool:
    """Whether an entry of a cost is a convolution or linear layer, and not another module or a call of a function."""
    return isinstance(dict(network.named_modules()).get(name), _WITH_CHANNELS)


def width(module: nn.Module, side: str, first: bool = False) -> int:
    """Channels on one side, 'in' or 'out', of the first or last layer of a chain."""
    parts = [part for part in module.modules() if isinstance(part, _WITH_CHANNELS)]
    if not parts:
        return 0  # of a branch that is gone
    part = parts[0 if first else -1]
    return int(getattr(part, f"{side}_features" if isinstance(part, nn.Linear) else f"{side}_channels"))


def ranks(planned: LayerPlan | None, old: nn.Module) -> dict[str, tuple[int, int]]:
    """The ranks in the plan of a convolution, and those at which its splits would be exact."""
    if planned is None or not planned.factored or not isinstance(old, CONVOLUTIONS):
        return {}
    height, breadth = old.kernel_size
    exact = {"spatial": min(old.in_channels * height, old.out_channels * breadth), "channel": old.out_channels}
    sizes = {"spatial": planned.spatial_rank, "channel": planned.channel_rank}
    return {step: (size, exact[step]) for step, size in sizes.items() if size is not None}


def _last_error(report: Mapping[str, Any]) -> float:
    errors = list(report["errors"].values())[-1]
    return errors.get("held_out", errors["fitted"])


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
