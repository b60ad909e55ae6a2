"""Plan: the sizes of every layer, readable and editable as JSON; and the table of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from decomp.errors import TargetError, near_miss

if TYPE_CHECKING:  # which need numpy; the command line reads the tables here without it
    from decomp.allocation.interfaces import Graph, Layer


@dataclass(frozen=True)
class Step:
    """One way to make a layer cheaper.

    Attributes
    ----------
    name : str
        In options, plans and reports.
    size : str
        Field of :class:`LayerPlan` with the size that it leaves.
    is_rank : bool
        Whether the size is a rank, which concerns one layer only, or a width, which two layers share.
    largest : callable
        Largest size on a layer.
    bound : str
        The same in words.
    channels : callable
        Channels of a layer that decide its multiple, see :func:`decomp.allocation.sizes.fitting_multiple`.
    words : str
        Phrase for a layer at size ``{}``.
    verb : str
        Participle for a layer to which the step is applied.
    """

    name: str
    size: str
    is_rank: bool
    largest: Callable[[Layer], int]
    bound: str
    channels: Callable[[Layer], int]
    words: str
    verb: str


STEP_TABLE = (
    Step(
        "spatial", "spatial_rank", True, lambda layer: layer.max_spatial_rank, "min(c·kh, n·kw)",
        lambda layer: min(layer.in_channels, layer.out_channels), "spatial rank {}", "split spatially",
    ),
    Step(
        "channel", "channel_rank", True, lambda layer: layer.out_channels, "filters",
        lambda layer: layer.out_channels, "channel rank {}", "split by channels",
    ),
    Step(
        "prune", "keep", False, lambda layer: layer.input_width, "input channels",
        lambda layer: layer.input_width, "reads {} channels", "pruned",
    ),
)  # fmt: skip
#: Names of the steps.
STEPS = tuple(step.name for step in STEP_TABLE)
#: Sizes that are ranks, in the order in which cost models take them.
RANKS = tuple(step.size for step in STEP_TABLE if step.is_rank)
#: Rules by which sizes are shared out, see :class:`decomp.allocation.allocator.Allocator`.
ALLOCATIONS = ("joint", "energy", "uniform")
#: Names of the cost models.
COSTS = ("macs", "params", "latency")


@dataclass
class LayerPlan:
    """Sizes of one layer; None means that the step is not applied.

    Attributes
    ----------
    layer : str
        Module path.
    keep : int or None
        Input channels that stay, in 1..c.
    spatial_rank : int or None
        Filters between the vertical and the horizontal half, in 1..min(c·kh, n·kw).
    channel_rank : int or None
        Filters in front of the 1×1 convolution, in 1..n.
    left_alone : dict of str to str
        Steps that cannot be applied here and why.
    limits : dict of str to str or float
        Rules that held for the layer when the plan was made: ``skip`` (the option that names it), ``max_speedup``.
    off_multiple : list of str
        Sizes that are not on the plan's multiple, because the target would be missed with it.
    """

    layer: str
    keep: int | None = None
    spatial_rank: int | None = None
    channel_rank: int | None = None
    left_alone: dict[str, str] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    off_multiple: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, layer: str, keep: int | None, ranks: tuple[int | None, ...]) -> LayerPlan:
        """From a width and the ranks in the order of :data:`RANKS`."""
        plan = cls(layer, keep)
        plan.ranks = ranks
        return plan

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """The sizes named in :data:`RANKS`."""
        return tuple(getattr(self, name) for name in RANKS)

    @ranks.setter
    def ranks(self, values: tuple[int | None, ...]) -> None:
        for name, value in zip(RANKS, values):
            setattr(self, name, value)

    @property
    def factored(self) -> bool:
        """Whether the layer becomes a chain of several convolutions."""
        return any(rank is not None for rank in self.ranks)

    @property
    def treated(self) -> bool:
        """Whether any step is applied."""
        return any(getattr(self, name) is not None for name in SIZES.values())

    def words(self) -> str:
        """Human-readable summary of the sizes."""
        phrases = {step.name: step.words for step in STEP_TABLE}
        sizes = {name: getattr(self, size) for name, size in SIZES.items()}
        parts = [phrases[name].format(size) for name, size in sizes.items() if size is not None]
        return ", ".join(parts) if parts else "unchanged"


#: Field of :class:`LayerPlan` for each step, in the order of the fields.
SIZES = {step.name: step.size for f in fields(LayerPlan) for step in STEP_TABLE if step.size == f.name}


@dataclass
class Plan:
    """Sizes of all layers for one target.

    Attributes
    ----------
    speedup : float
        Cost of the original over that of the emitted network.
    steps : tuple of str
        Steps that may be used.
    allocation : str
        Rule by which the sizes were chosen, see :data:`ALLOCATIONS`.
    layers : list of LayerPlan
        In execution order.
    macs_before, macs_after : int
        Multiply-accumulates of the whole network, convolutions and linear layers, one image.
    params_before, params_after : int
        Parameters of the whole network.
    cost : {'macs', 'params', 'latency'}
        The quantity that the speed-up is about.
    multiple : int
        Sizes are multiples of it in layers that are wide enough, see :func:`decomp.allocation.sizes.fitting_multiple`.
    spaces : dict of str to int
        Channels that stay in whole channel spaces, which are narrowed before the layers: {space: number}.
    left_out : list of str
        Residual blocks without which the network goes on, by the paths of their last layers; the sizes of their layers
        have no effect.
    latency : dict
        For a plan by measured time: the device, batch size, threads and versions it was measured with, the times, and
        a digest of the ``sizes`` that were measured; ``other_sizes`` is true where the plan has others by now.
    notes : list of str
        Warnings for the reader of the plan.
    """

    speedup: float
    steps: tuple[str, ...]
    allocation: str
    layers: list[LayerPlan]
    macs_before: int = 0
    macs_after: int = 0
    params_before: int = 0
    params_after: int = 0
    cost: str = "macs"
    multiple: int = 1
    spaces: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    latency: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def layer(self, name: str) -> LayerPlan:
        """The plan of one layer."""
        return next(layer for layer in self.layers if layer.layer == name)

    def words(self) -> str:
        """Human-readable summary of the speed-ups."""
        text = f"{self.macs_before / self.macs_after:.2f}x in multiply-accumulates"
        if self.cost == "params":
            text = f"{self.params_before / self.params_after:.2f}x in parameters, {text}"
        if self.latency:
            text = f"{latency_words(self.latency)}; {text}"
        return f"{text}, by {self.allocation} allocation"

    def to_json(self) -> dict[str, Any]:
        """As plain data, without empty fields."""
        data = {name: value for name, value in vars(self).items() if value not in ({}, []) and name != "layers"}
        data["steps"] = list(self.steps)
        data["layers"] = [{k: v for k, v in vars(layer).items() if v not in ({}, [])} for layer in self.layers]
        return data

    @classmethod
    def from_json(cls, data: Any, name: str = "plan.json", renew: str = "make a new plan") -> Plan:
        """From plain data, which may have been edited by hand.

        Parameters
        ----------
        data : object
            As read from JSON.
        name : str
            Of the file, for messages.
        renew : str
            The way to a new plan, for messages.

        Raises
        ------
        TargetError
            Naming the layer, the field and the rule.
        """
        plan = _record(cls, data, name, ("speedup", "steps", "allocation", "layers"), renew)
        plan.layers = _layers_from_json(plan.layers, name, renew)
        plan.steps = _steps_from_json(plan.steps, name)
        number: object = plan.speedup
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 1 <= number < math.inf:
            raise TargetError(name, "speedup must be a number from 1", got=_shown(number))
        plan.speedup = float(number)
        _check_fields(plan, name)
        return plan

    def validate(self, graph: Graph, name: str = "plan.json", gone: Collection[str] = ()) -> None:
        """Check every size against the network.

        Parameters
        ----------
        graph : decomp.graph.network_graph.NetworkGraph
        name : str
            Of the plan, for messages.
        gone : collection of str
            Layers of blocks that are left out: the plan may list them or not.

        Raises
        ------
        TargetError
            Naming layer, field, rule and the given value.
        """
        known = [layer.name for layer in graph.layers]
        there = [layer for layer in self.layers if layer.layer not in gone]
        planned = [layer.layer for layer in there]
        if planned != known:
            rule = f"must list the {len(known)} layers of the network in order"
            raise TargetError(name, rule, got=_first_difference(known, planned))
        for layer in there:
            _validate_layer(layer, graph.layer(layer.layer), name)


def latency_words(latency: Mapping[str, Any]) -> str:
    """Human-readable summary of the measurement in a plan by latency: a claim only about sizes that were measured."""
    rounds = f" ({latency['low']:.2f}x to {latency['high']:.2f}x in eight of ten rounds)" if "low" in latency else ""
    measured = (
        f"measured {latency['measured_speedup']:.2f}x as fast as the original in "
        f"{latency.get('runtime', 'eager')}{rounds}: "
        f"{latency['measured_ms']:.3g} ms for {latency['original_ms']:.3g} ms, batch of {latency['batch_size']}, "
        f"{latency['layout']}, {latency['device']}, {latency['threads']} thread{'s' if latency['threads'] != 1 else ''}"
    )
    if latency.get("other_sizes"):
        return f"the time of these sizes was not measured, evaluate does; before the plan was edited: {measured}"
    return f"a network of {'these' if 'sizes' in latency else 'the planned'} sizes was {measured}"


#: Fields of the measurement in a plan by latency.
LATENCY_FIELDS = (
    "device", "threads", "torch", "batch_size", "layout", "original_ms", "measured_ms", "measured_speedup",
)  # fmt: skip
_KINDS = {str: "text", dict: "an object", list: "a list", int: "a whole number"}
_FIELD_KINDS = {
    "allocation": str, "cost": str, "latency": dict, "notes": list, "multiple": int, "spaces": dict, "left_out": list,
}  # fmt: skip
_Record = TypeVar("_Record", "Plan", LayerPlan)


def _record(kind: type[_Record], data: Any, name: str, needed: tuple[str, ...], renew: str) -> _Record:
    """A dataclass from an object whose keys must be its fields."""
    if not isinstance(data, dict):
        raise TargetError(name, "must be an object", got=_shown(data))
    if kind is Plan and not any(key in data for key in needed):
        if {"options", "left_alone"} <= data.keys():
            got, renew = "a plan of channels to prune", "give it to prune, as the channels to keep"
            raise TargetError(name, "is not a plan of decompose", got=got, fix=renew)
        raise TargetError(name, "is not a plan", got=f"an object without {needed[0]}", fix=renew)
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            fix = near_miss(key, known) or f"there are {', '.join(known)}"
            raise TargetError(name, "holds a field that a plan does not have", got=_shown(key), fix=fix)
    for key in needed:
        if key not in data:
            raise TargetError(name, f"is not a whole plan: {key} is missing", fix=renew)
    return kind(**data)


def _layers_from_json(data: Any, name: str, renew: str) -> list[LayerPlan]:
    if not isinstance(data, list) or not data:
        raise TargetError(name, "layers must be a list of the network's layers", got=_shown(data))
    layers = []
    for place, entry in enumerate(data):
        layer = entry.get("layer") if isinstance(entry, dict) else None
        thing = layer if isinstance(layer, str) else f"{name}, layer {place}"
        layers.append(_record(LayerPlan, entry, thing, ("layer",), renew))
    return layers


def _steps_from_json(data: Any, name: str) -> tuple[str, ...]:
    steps = data if isinstance(data, (list, tuple)) else [data]
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise TargetError(name, f"steps must be among {', '.join(STEPS)}", got=_shown(unknown[0]))
    return tuple(steps)


def _check_fields(plan: Plan, name: str) -> None:
    for key, kind in _FIELD_KINDS.items():
        if not isinstance(getattr(plan, key), kind):
            raise TargetError(name, f"{key} must be {_KINDS[kind]}", got=_shown(getattr(plan, key)))
    if plan.cost not in COSTS:
        raise TargetError(
            name, f"cost must be one of {', '.join(COSTS)}", got=_shown(plan.cost), fix=near_miss(plan.cost, COSTS)
        )
    for entry in plan.left_out:
        if not isinstance(entry, str):
            raise TargetError(name, "left_out must list names of blocks", got=_shown(entry))
    lacking = [key for key in LATENCY_FIELDS if key not in plan.latency] if plan.latency else []
    if lacking:
        raise TargetError(name, f"latency must say {lacking[0]}", got=", ".join(plan.latency))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _first_difference(known: list[str], planned: list[str]) -> str:
    """The first place where a plan's layers are not the network's, in words."""
    for place, (wanted, given) in enumerate(zip(known, planned)):
        if wanted != given:
            return f"{_shown(given)} where {wanted} is due (place {place})"
    if len(planned) < len(known):
        return f"{len(planned)} layers, {known[len(planned)]} is missing"
    return f"{len(planned)} layers, {_shown(planned[len(known)])} is one too many"


def limits(layer: Layer) -> dict[str, tuple[str, int, str]]:
    """Largest size of each step on a layer: {step: (field, limit, limit in words)}, in the order of `SIZES`."""
    table = {step.name: step for step in STEP_TABLE}
    return {name: (size, table[name].largest(layer), table[name].bound) for name, size in SIZES.items()}


def _validate_layer(plan: LayerPlan, layer: Layer, file: str) -> None:
    for step, (name, limit, bound) in limits(layer).items():
        value = getattr(plan, name)
        if value is None:
            continue
        if step in layer.left_alone:
            raise TargetError(
                layer.name, f"{name} cannot be set: {layer.left_alone[step]}", got=_shown(value),
                fix=f"set it to null in {file}",
            )  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            rule = f"{name} must be in 1..{limit} ({bound})"
            raise TargetError(layer.name, rule, got=_shown(value), fix=f"change it in {file}")


def columns(layer: Layer, keep: int | None) -> int:
    """Columns that a layer reads when ``keep`` channels of its input space stay; None: all."""
    if keep is None or layer.input_space is None:
        return layer.in_channels
    return keep * layer.input_space.repeat


def widths_written(graph: Graph, plans: Mapping[str, LayerPlan]) -> dict[str, int]:
    """Outputs of each layer that are still read under layer plans: {layer: width}."""
    width_out = {layer.name: layer.out_channels for layer in graph.layers}
    for layer in graph.layers:
        keep, space = plans[layer.name].keep, layer.input_space
        if keep is not None and space is not None and space.producer is not None:
            width_out[space.producer] = keep
    return width_out
