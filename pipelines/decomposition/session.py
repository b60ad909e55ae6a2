"""The network of a run that is to become cheaper: its frozen points, its graph, its cost and what is known of it."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from decomp.cost import count as cost
from decomp.errors import FileError
from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.shared_spaces import kept_outputs
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import shrink

from ...data.formats import curves_file
from ...data.formats.atomic import scratch
from ...data.formats.frozen_file import FrozenFile, shortcut_key
from ..run.directory import RunDirectory
from ..run.loading import open_frozen
from . import shared_channels as coupling
from . import survey
from .memory import StageMemory, measure, problem_bytes, row_bytes, set_limits


@dataclass
class Subject:
    """What a plan is made from.

    Attributes
    ----------
    frozen : FrozenFile
    original : torch.nn.Module
        As frozen.
    view : decomp.graph.network_graph.NetworkGraph
        Of a traced copy on the device, which will be changed.
    counted : decomp.cost.count.Cost
        Of the original.
    per_layer : dict of str to int
        Multiply-accumulates by module path of the network behind ``view``.
    known : decomp.data.formats.curves_file.Survey or None
        After :meth:`survey`.
    space : decomp.pipelines.decomposition.memory.StageMemory
        The memory and disk that there is for this.
    sampler : bool
        Whether layers may read a subset of channels that others need too.
    spaces : dict of str to int
        Whole channel spaces that have been narrowed, and how many of their channels stay.
    keep : dict of str to list of int
        Which ones.
    kept : dict of str to torch.LongTensor
        Outputs that stay, of the layers that lost some to that.
    edited : list of str
        Paths of the modules that were exchanged for that.
    """

    frozen: FrozenFile
    original: torch.nn.Module
    view: NetworkGraph
    counted: cost.Cost
    per_layer: dict
    space: StageMemory
    known: curves_file.Survey | None = None
    sampler: bool = True
    spaces: dict = field(default_factory=dict)
    keep: dict = field(default_factory=dict)
    kept: dict = field(default_factory=dict)
    edited: list = field(default_factory=list)

    @property
    def input_shape(self):
        """(C, H, W)."""
        return tuple(self.frozen.meta["input_shape"])

    def narrow(self, run, counts, *, device, reporter):
        """Take channels out of whole channel spaces of the network; before :meth:`survey`."""
        options = {"device": device, "space": self.space, "reporter": reporter}
        self.spaces, self.keep = dict(counts), coupling.choose(run, counts, self.frozen, self.view, **options)
        self.kept = kept_outputs(self.view, self.keep)
        self.edited = shrink(self.view.module, self.view.spaces, self.keep)
        fitting = FittingLimits(self.frozen.n_images)
        self.view = NetworkGraph(self.view.module, self.input_shape, self.view.name, fitting=fitting)
        self.per_layer = cost.cost(self.view.module, self.input_shape).per_layer

    def survey(self, run, *, device, reporter):
        """Find out, or read from the run, what every size of every layer loses."""
        options = {"device": device, "space": self.space, "reporter": reporter}
        self.known = survey.survey(run, self.frozen, self.view, kept=self.kept, **options)
        if not self.sampler:
            # Surveyed with samplers, so that both ways share one survey.
            rules = {"fitting": FittingLimits(self.frozen.n_images), "sampler": False}
            self.view = NetworkGraph(self.view.module, self.input_shape, self.view.name, **rules)
        return self.known


@contextmanager
def opened(run, device, *, sampler=True, memory=None, batch_size=100):
    """The subject of a run, for the length of the block.

    Parameters
    ----------
    run : path or RunDirectory
    device : torch.device
    sampler : bool
        Whether layers may read a subset of channels that others need too.
    memory : int, optional
        Bytes to stay within, see :func:`decomp.pipelines.decomposition.memory.set_limits`.
    batch_size : int
        Images at a time, at most.
    """
    run = RunDirectory(run)
    frozen, original = open_frozen(run)
    with frozen, scratch(run.scratch_dir) as folder:
        shape, name = tuple(frozen.meta["input_shape"]), frozen.meta["model"]
        network = trace(original, name, frozen.meta.get("leaves") or ())
        view = NetworkGraph(network, shape, name, fitting=FittingLimits(frozen.n_images))
        for layer in view.layers:
            if layer.recovers is not None and shortcut_key(layer.name) not in frozen.layers:
                rule = f"must hold what the output of {layer.name} is added to"
                raise FileError(run.frozen, rule, got="a file of an earlier version", fix="run freeze again")
        counted = cost.cost(network, shape)
        network.to(device)
        space = _workspace(run, view, frozen, memory, batch_size, folder)
        yield Subject(frozen, original, view, counted, counted.per_layer, space, sampler=sampler)


def _workspace(run, view, frozen, memory, batch_size, folder):
    foot = measure(view.module, frozen.images(0, 1))
    fitted = [layer for layer in view.layers if layer.fitted]
    n_points = frozen.meta["n_points"]
    limits = set_limits(
        view.module, foot, memory=memory, batch_size=batch_size, folder=folder,
        solver=max((problem_bytes(layer, frozen.n_images, n_points) for layer in fitted), default=0),
        rows=max((row_bytes(layer, n_points) for layer in fitted), default=0),
        # Layers that are committed were fitted with these; from other ones the rest would not follow.
        before=(run.config("decompose") or {}).get("limits") if run.layers_dir.is_dir() else None,
    )  # fmt: skip
    return StageMemory(view.module, foot, limits, folder)
