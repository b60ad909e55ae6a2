"""What each layer is to become: ranks and widths, readable and editable as JSON."""

import difflib
import math
from dataclasses import dataclass, field, fields

from decomp.errors import TargetError

STEPS = ("spatial", "channel", "prune")
# The size that goes with each step, in the order in which a plan lists them.
SIZES = {"prune": "keep", "spatial": "spatial_rank", "channel": "channel_rank"}


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
        What a person held the layer to when the plan was made: ``skip`` (the option that names it),
        ``max_speedup``.
    off_multiple : list of str
        Sizes that are not on the plan's multiple, because the target would be missed with it.
    """

    layer: str
    keep: int | None = None
    spatial_rank: int | None = None
    channel_rank: int | None = None
    left_alone: dict = field(default_factory=dict)
    limits: dict = field(default_factory=dict)
    off_multiple: list = field(default_factory=list)

    @property
    def treated(self):
        """Whether any step is applied."""
        return (self.keep, self.spatial_rank, self.channel_rank) != (None, None, None)

    def words(self):
        """What the layer gets, in words."""
        parts = []
        if self.keep is not None:
            parts.append(f"reads {self.keep} channels")
        if self.spatial_rank is not None:
            parts.append(f"spatial rank {self.spatial_rank}")
        if self.channel_rank is not None:
            parts.append(f"channel rank {self.channel_rank}")
        return ", ".join(parts) if parts else "stays as it is"


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
        How the sizes were chosen.
    layers : list of LayerPlan
        In execution order.
    macs_before, macs_after : int
        Multiply-accumulates of the whole network, convolutions and linear layers, one image.
    params_before, params_after : int
        Parameters of the whole network.
    cost : {'macs', 'params', 'latency'}
        What the speed-up is about.
    multiple : int
        Sizes are multiples of it in layers that are wide enough, see :func:`decomp.allocation.sizes.fitting_multiple`.
    spaces : dict of str to int
        Channels that stay in whole channel spaces, which are narrowed before the layers: {space: number}.
    latency : dict
        For a plan by measured time: the device, batch size, threads and versions it was measured with, and the times.
    notes : list of str
        What a reader must know.
    """

    speedup: float
    steps: tuple
    allocation: str
    layers: list
    macs_before: int = 0
    macs_after: int = 0
    params_before: int = 0
    params_after: int = 0
    cost: str = "macs"
    multiple: int = 1
    spaces: dict = field(default_factory=dict)
    latency: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    def layer(self, name):
        """The plan of one layer."""
        return next(item for item in self.layers if item.layer == name)

    def words(self):
        """What the plan as a whole comes to."""
        text = f"{self.macs_before / self.macs_after:.2f}x in multiply-accumulates"
        if self.cost == "params":
            text = f"{self.params_before / self.params_after:.2f}x in parameters, {text}"
        if self.latency:
            text = f"{latency_words(self.latency)}; {text}"
        return f"{text}, by {self.allocation} allocation"

    def to_json(self):
        """As plain data, without what is empty."""
        data = {name: value for name, value in vars(self).items() if value not in ({}, []) and name != "layers"}
        data["steps"] = list(self.steps)
        data["layers"] = [{k: v for k, v in vars(item).items() if v not in ({}, [])} for item in self.layers]
        return data

    @classmethod
    def from_json(cls, data, name="plan.json"):
        """From plain data, which a person may have edited.

        Raises
        ------
        TargetError
            Naming the layer, the field and the rule.
        """
        made = _record(cls, data, name, ("speedup", "steps", "allocation", "layers"))
        if not isinstance(made.layers, list) or not made.layers:
            raise TargetError(name, "layers must be a list of the network's layers", got=_shown(made.layers))
        items = []
        for place, item in enumerate(made.layers):
            known = item.get("layer") if isinstance(item, dict) else None
            items.append(
                _record(LayerPlan, item, known if isinstance(known, str) else f"{name}, layer {place}", ("layer",))
            )
        made.layers = items
        steps = made.steps if isinstance(made.steps, (list, tuple)) else [made.steps]
        unknown = [step for step in steps if step not in STEPS]
        if unknown:
            raise TargetError(name, f"steps must be among {', '.join(STEPS)}", got=_shown(unknown[0]))
        made.steps = tuple(steps)
        number = made.speedup
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 1 <= number < math.inf:
            raise TargetError(name, "speedup must be a number from 1", got=_shown(number))
        made.speedup = float(number)
        for key, kind in (
            ("allocation", str), ("cost", str), ("latency", dict), ("notes", list), ("multiple", int), ("spaces", dict),
        ):  # fmt: skip
            if not isinstance(getattr(made, key), kind):
                raise TargetError(name, f"{key} must be {_KINDS[kind]}", got=_shown(getattr(made, key)))
        lacking = [key for key in LATENCY_FIELDS if key not in made.latency] if made.latency else []
        if lacking:
            raise TargetError(name, f"latency must say {lacking[0]}", got=", ".join(made.latency))
        if made.spaces and made.cost == "latency":
            raise TargetError(name, "spaces must be empty in a plan by latency", got=_shown(made.spaces))
        return made

    def validate(self, graph, name="plan.json"):
        """Check every size against the network.

        Raises
        ------
        TargetError
            Naming layer, field, rule and what was given.
        """
        known = [layer.name for layer in graph.layers]
        planned = [item.layer for item in self.layers]
        if planned != known:
            rule = f"must list the {len(known)} layers of the network in order"
            raise TargetError(name, rule, got=_first_difference(known, planned))
        for item in self.layers:
            _validate_layer(item, graph.layer(item.layer), name)


def latency_words(latency):
    """What was measured for a plan by latency, in words."""
    return (
        f"a network of these sizes was measured {latency['measured_speedup']:.2f}x faster than the original: "
        f"{latency['measured_ms']:.3g} ms for {latency['original_ms']:.3g} ms, batch of {latency['batch_size']}, "
        f"{latency['layout']}, {latency['device']}, {latency['threads']} thread{'s' if latency['threads'] != 1 else ''}"
    )


#: What a plan by latency says of its measurement.
LATENCY_FIELDS = (
    "device",
    "threads",
    "torch",
    "batch_size",
    "layout",
    "original_ms",
    "measured_ms",
    "measured_speedup",
)
_KINDS = {str: "text", dict: "an object", list: "a list", int: "a whole number"}


def _record(kind, data, name, needed):
    """A dataclass from an object whose keys must be its fields."""
    if not isinstance(data, dict):
        raise TargetError(name, "must be an object", got=_shown(data))
    if kind is Plan and not any(key in data for key in needed):
        raise TargetError(
            name, "is not a plan", got=f"an object without {needed[0]}", fix="make it anew with decompose --redo"
        )
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            fix = f"perhaps {close[0]} is meant" if close else f"there are {', '.join(known)}"
            raise TargetError(name, "holds a field that a plan does not have", got=_shown(key), fix=fix)
    for key in needed:
        if key not in data:
            raise TargetError(name, f"is not a whole plan: {key} is missing", fix="make it anew with decompose --redo")
    return kind(**data)


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _first_difference(known, planned):
    """The first place where a plan's layers are not the network's, in words."""
    for place, (wanted, given) in enumerate(zip(known, planned)):
        if wanted != given:
            return f"{_shown(given)} where {wanted} is due (place {place})"
    if len(planned) < len(known):
        return f"{len(planned)} layers, {known[len(planned)]} is missing"
    return f"{len(planned)} layers, {_shown(planned[len(known)])} is one too many"


def limits(layer):
    """Largest size of each step on a layer: {step: (field, limit, meaning)}."""
    return {
        "prune": ("keep", layer.input_width, "input channels"),
        "spatial": ("spatial_rank", layer.max_spatial_rank, "min(c·kh, n·kw)"),
        "channel": ("channel_rank", layer.out_channels, "filters"),
    }


def _validate_layer(item, layer, plan):
    for step, (name, limit, meaning) in limits(layer).items():
        value = getattr(item, name)
        if value is None:
            continue
        if step in layer.left_alone:
            raise TargetError(
                layer.name, f"{name} cannot be set: {layer.left_alone[step]}", got=_shown(value),
                fix=f"set it to null in {plan}",
            )  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            rule = f"{name} must be in 1..{limit} ({meaning})"
            raise TargetError(layer.name, rule, got=_shown(value), fix=f"change it in {plan}")


def columns(layer, keep):
    """Columns that a layer reads when ``keep`` channels of its input space stay; None: all."""
    return layer.in_channels if keep is None else keep * layer.input_space.repeat


def widths_written(graph, items):
    """Outputs of each layer that are still read under layer plans: {layer: width}."""
    width_out = {layer.name: layer.out_channels for layer in graph.layers}
    for layer in graph.layers:
        if items[layer.name].keep is not None and not layer.input_space.sampled:
            width_out[layer.input_space.producer] = items[layer.name].keep
    return width_out
