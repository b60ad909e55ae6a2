"""Measured cost of a choice of channels: whole narrowed networks timed in turn with the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import torch

from decomp.graph.branches import Branch, without_branches
from decomp.modules.copies import deep_copy
from decomp.runtimes.choice import runtime
from decomp.runtimes.names import require_installed, require_supported
from decomp.runtimes.timing import latencies, random_images
from decomp.surgery.narrow_network import shrink
from decomp.surgery.residual_branches import remove_branches

from ..console.prune_options import PruneOptions
from ..console.reporter import Reporter
from .unfolded import Unfolded, folded_copy

#: Rounds of one measurement, and the seconds after which no new one starts.
ROUNDS, MAX_SECONDS = 30, 10.0


def require_runtime(options: PruneOptions, device: torch.device) -> None:
    """Refuse a runtime that cannot measure, where the options lead to a measurement.

    Raises
    ------
    DecompError
        It is not installed, or does not take the layout or the device.
    """
    if options.runtime is not None and options.latency_layout is not None:
        require_installed(options.runtime)
        require_supported(options.runtime, options.latency_layout, device.type)


class MeasuredCost:
    """Latency of a narrowed network as a share of the original's, in the same rounds.

    Each call measures once; a choice that was measured is not measured again.

    Parameters
    ----------
    source : Unfolded
        The original; measured with its batch normalisations folded, as all networks are.
    options : PruneOptions
        Runtime, batch size and memory layout.
    device : torch.device
    reporter : Reporter
    branches : sequence of decomp.graph.branches.Branch
        That can go.

    Raises
    ------
    DecompError
        See :func:`require_runtime`.
    """

    def __init__(
        self, source: Unfolded, options: PruneOptions, device: torch.device, reporter: Reporter,
        branches: Sequence[Branch] = (),
    ) -> None:  # fmt: skip
        self.branches = branches
        assert options.latency_batch is not None and options.latency_layout is not None
        self.source, self.graph, self.device, self.reporter = source, source.graph, device, reporter
        self.shape = (options.latency_batch, *source.graph.input_shape)
        self.layout = options.latency_layout
        assert options.runtime is not None
        require_runtime(options, device)
        self.runtime = runtime(options.runtime, self.layout)
        self._known: dict[str, float] = {}

    def __call__(self, keep: Mapping[str, list[int]]) -> float:
        """Median over the rounds of the narrowed network's time over the original's.

        Parameters
        ----------
        keep : mapping of str to list of int
            Channels that stay, by channel space.
        """
        lost = {name: places for name, places in keep.items() if len(places) < self.graph.spaces[name].width}
        key = repr([(name, len(places)) for name, places in lost.items()])
        if key not in self._known:
            self._known[key] = self._measure(lost) if lost else 1.0
        return self._known[key]

    def _measure(self, keep: Mapping[str, list[int]]) -> float:
        narrow = deep_copy(self.source.network)
        left, gone = without_branches(keep, self.branches, self.graph)
        shrink(narrow, self.graph.spaces, left)
        remove_branches(narrow, dict.fromkeys(path for branch in gone for path in branch.layers))
        images = random_images(self.shape, self.device, self.layout)
        networks = {
            name: self.runtime.prepare(folded_copy(module), images)
            for name, module in (("original", self.source.network), ("narrow", narrow))
        }
        times = latencies(networks, self.shape, self.device, ROUNDS, layout=self.layout, max_seconds=MAX_SECONDS)
        share = median(one / other for one, other in zip(times["narrow"], times["original"]))
        stay = sum(len(places) for places in keep.values())
        whole = sum(self.graph.spaces[name].width for name in keep)
        how = f"measured in {self.runtime.name} with {stay:,} of {whole:,} channels"
        self.reporter.step(f"{how}: {1 / share:.2f}x as fast as the original")
        return share
