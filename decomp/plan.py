"""What each layer is to become: ranks and widths, readable and editable as JSON."""

from dataclasses import dataclass, field

from decomp.cost import chain_macs
from decomp.errors import TargetError

STEPS = ("spatial", "channel", "prune")


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
    """

    layer: str
    keep: int | None = None
    spatial_rank: int | None = None
    channel_rank: int | None = None
    left_alone: dict = field(default_factory=dict)

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
        Multiply-accumulates of the original over those of the emitted network.
    steps : tuple of str
        Steps that may be used.
    allocation : str
        How the sizes were chosen.
    layers : list of LayerPlan
        In execution order.
    macs_before, macs_after : int
        Whole network, convolutions and linear layers, one image.
    """

    speedup: float
    steps: tuple
    allocation: str
    layers: list
    macs_before: int
    macs_after: int

    def layer(self, name):
        """The plan of one layer."""
        return next(item for item in self.layers if item.layer == name)

    def to_json(self):
        """As plain data."""
        return {
            "speedup": self.speedup,
            "steps": list(self.steps),
            "allocation": self.allocation,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "layers": [
                {k: v for k, v in vars(item).items() if not (k == "left_alone" and not v)} for item in self.layers
            ],
        }

    @classmethod
    def from_json(cls, data, name="plan.json"):
        """From plain data, which a person may have edited.

        Raises
        ------
        TargetError
            Naming the layer and the field.
        """
        try:
            layers = [LayerPlan(**item) for item in data["layers"]]
            return cls(
                float(data["speedup"]), tuple(data["steps"]), str(data["allocation"]), layers,
                int(data["macs_before"]), int(data["macs_after"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise TargetError(name, f"is not a plan ({error})", fix="make it anew with decompose --redo") from error

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
            missing = sorted(set(known) ^ set(planned)) or planned
            raise TargetError(name, f"must list the {len(known)} layers of the network in order", got=missing[0])
        for item in self.layers:
            _validate_layer(item, graph.layer(item.layer))


def limits(layer):
    """Largest size of each step on a layer: {step: (field, limit, meaning)}."""
    return {
        "prune": ("keep", layer.input_space.width if layer.input_space else layer.in_channels, "input channels"),
        "spatial": ("spatial_rank", layer.max_spatial_rank, "min(c·kh, n·kw)"),
        "channel": ("channel_rank", layer.out_channels, "filters"),
    }


def _validate_layer(item, layer):
    for step, (name, limit, meaning) in limits(layer).items():
        value = getattr(item, name)
        if value is None:
            continue
        if step in layer.left_alone:
            raise TargetError(
                layer.name, f"{name} cannot be set: {layer.left_alone[step]}", got=value, fix="set it to null"
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise TargetError(
                layer.name, f"{name} must be in 1..{limit} ({meaning})", got=value, fix="change it in plan.json"
            )


def carrier_macs(layer, item, per_layer):
    """Multiply-accumulates of the depthwise convolutions between a layer and whoever writes what it reads."""
    space = layer.input_space
    if space is None:
        return 0
    width = space.width if item.keep is None else item.keep
    return sum(per_layer.get(path, 0) * width // space.width for path in space.carriers)


def layer_macs(layer, item, width_out):
    """Multiply-accumulates of one layer under its plan, when ``width_out`` of its outputs are read."""
    width_in = layer.in_channels
    if item.keep is not None:
        width_in = item.keep * layer.input_space.repeat
    return chain_macs(layer, width_in, width_out, item.spatial_rank, item.channel_rank)


def plan_macs(graph, items, per_layer):
    """Multiply-accumulates of the whole network under a list of layer plans.

    Parameters
    ----------
    graph : decomp.graph.NetworkGraph
    items : dict of str to LayerPlan
    per_layer : dict of str to int
        Counted cost of the original (:func:`decomp.cost.cost`): layers that the graph does not treat cost what
        they did.

    Returns
    -------
    int
    """
    width_out = {layer.name: layer.out_channels for layer in graph.layers}
    for layer in graph.layers:
        item = items[layer.name]
        if item.keep is not None and not layer.input_space.sampled:
            width_out[layer.input_space.producer] = item.keep
    total = sum(per_layer.values())
    for layer in graph.layers:
        item = items[layer.name]
        if item.treated or width_out[layer.name] != layer.out_channels:
            total += layer_macs(layer, item, width_out[layer.name]) - per_layer[layer.name]
        if item.keep is not None:
            total += carrier_macs(layer, item, per_layer) - carrier_macs(layer, LayerPlan(layer.name), per_layer)
    return int(total)
