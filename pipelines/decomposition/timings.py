"""Times of convolutions and of whole networks in one runtime, stored in the run directory with their conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from decomp.cost.latency_model import LINEAR, SELECT, FactorKind, nearest_block
from decomp.errors import FileError
from decomp.problem.factors import Geometry
from decomp.runtimes.eager import Eager
from decomp.runtimes.names import LAYOUTS, RUNTIMES
from decomp.runtimes.runtime import Runtime
from decomp.runtimes.runtime import conditions as conditions_of
from decomp.runtimes.timing import WARM_BELOW, WARM_UP, latencies, random_images, times_within

from ...data.formats.json_files import read_json, write_json
from ..measure import devices

KIND = "decomp latencies"
# Repetitions of one factor: at most so many, and at least FEWEST of them even where they take longer than SECONDS.
REPEATS, FEWEST, SECONDS = 20, 3, 0.03
# Rounds of whole networks, the seconds after which no more begin, and the fewest; the same of a chain beside its layer.
ROUNDS, WHOLE_SECONDS, FEWEST_ROUNDS = 30, 2.0, 4
CHAIN_ROUNDS, CHAIN_SECONDS = 15, 0.4
# Seconds after which a whole network is warm, however few runs it had.
WARM_SECONDS = 0.1
# Milliseconds that the runs of a block of whole networks take together at least, unless there are so many runs.
BLOCK, MOST_RUNS = 250.0, 3000
# Channels of the images of a convolution in context, a whole number of blocks in every runtime; and the shortest time
# of a factor, in milliseconds, where the difference of two measurements is smaller.
LEAD, SHORTEST = 16, 1e-4

# Widths at which steps of 4, 8 and 16 channels differ, of a convolution large enough to be told apart from noise.
STAIRS, STAIR_INPUTS, STAIR_ROUNDS, STAIR_SECONDS = (32, 33, 36, 37, 40, 41, 44, 48), 128, 150, 1.5
STAIR_KIND = FactorKind((3, 3), Geometry(padding=(1, 1)), (14, 14))

# Key of the shortest time of the whole original.
ORIGINAL = "original"

Shape = tuple[int, ...]


class Timings:
    """Milliseconds of factors and networks on one device in one runtime, stored in the run directory.

    Parameters
    ----------
    path : Path
    device : torch.device
    batch_size : int
    runtime : decomp.runtimes.runtime.Runtime

    Attributes
    ----------
    measured : int
        Factors that were measured, and not known from the file.
    """

    def __init__(self, path: Path, device: torch.device, batch_size: int, runtime: Runtime) -> None:
        self.path, self.device, self.batch_size, self.runtime = path, device, batch_size, runtime
        self.conditions = conditions(device, batch_size, runtime)
        self._key = "; ".join(f"{name} {value}" for name, value in self.conditions.items())
        self._entries: dict[str, dict[str, float]] = {}
        self._milliseconds: dict[str, float] = {}
        self.measured = 0
        self._prepared_before: dict[int, tuple[nn.Module, Shape, Callable[[Tensor], object]]] = {}
        self._last_chain: tuple[tuple[Shape, int, object], Callable[[Tensor], object]] | None = None
        try:
            self._entries = read_json(path, kind=KIND)["entries"]
            self._milliseconds = dict(self._entries.get(self._key, {}))
        except (FileError, KeyError, TypeError, AttributeError, ValueError):
            self._entries = {}  # none, or a file that cannot be used: all is measured again

    @property
    def in_context(self) -> bool:
        """Whether single convolutions are timed between others: the runtime orders the numbers inside by itself.

        A convolution alone would be charged with the conversion of its input and output, which a network needs once.
        """
        return RUNTIMES[self.runtime.name].layouts != LAYOUTS

    @property
    def pieces(self) -> Runtime:
        """The runtime of single factors. To compile each would take minutes, and compiled ones call the same code."""
        return Eager(self.runtime.layout) if self.runtime.name == "compile" else self.runtime

    def table(self, kind: FactorKind, inputs: Sequence[int], outputs: Sequence[int]) -> list[list[float]]:
        """Times of a kind of factor, (inputs, outputs) in milliseconds."""
        return [[self.factor(kind, n_in, n_out) for n_out in outputs] for n_in in inputs]

    def factor(self, kind: FactorKind, n_in: int, n_out: int) -> float:
        """Median time of one factor in milliseconds; in context, the difference of a chain with it and without it."""
        words = kind.words(n_in, n_out)
        if words not in self._milliseconds:
            shape = self.shape(kind, n_in)
            (module,) = self.placed({"with": kind.build(n_in, n_out)}, kind, n_in).values()
            prepared = {"with": self.pieces.prepare(module, self._images(shape))}
            if self.in_context:
                prepared["without"] = self._without(kind, n_in)
            times = latencies(
                prepared, shape, self.device, REPEATS, layout=self.runtime.layout, max_seconds=SECONDS,
                min_rounds=FEWEST, warm_up=1,
            )  # fmt: skip
            spent = median(times["with"]) - (median(times["without"]) if self.in_context else 0.0)
            self._milliseconds[words] = round(max(spent, SHORTEST), 5)
            self.measured += 1
        return self._milliseconds[words]

    def _without(self, kind: FactorKind, n_in: int) -> Callable[[Tensor], object]:
        """The chain of a factor in context without it, which is the same for all its outputs."""
        shape = self.shape(kind, n_in)
        same = shape, n_in, kind.kernel == SELECT
        if self._last_chain is None or self._last_chain[0] != same:
            (module,) = self.placed({"without": nn.Identity()}, kind, n_in).values()
            self._last_chain = same, self.pieces.prepare(module, self._images(shape))
        return self._last_chain[1]

    def block(self) -> int:
        """Channels that this runtime computes together, from the times of a convolution at several widths.

        The widths are timed in turn, and the low quartile counts, so that a disturbance is not taken for a step.
        """
        words = {n: f"stairs {STAIR_KIND.words(STAIR_INPUTS, n)}" for n in STAIRS}
        if any(key not in self._milliseconds for key in words.values()):
            modules = {str(n): STAIR_KIND.build(STAIR_INPUTS, n) for n in STAIRS}
            shape = self.shape(STAIR_KIND, STAIR_INPUTS)
            placed = self.placed(modules, STAIR_KIND, STAIR_INPUTS)
            prepared = {name: self.pieces.prepare(net, self._images(shape)) for name, net in placed.items()}
            times = latencies(
                prepared, shape, self.device, STAIR_ROUNDS, layout=self.runtime.layout, max_seconds=STAIR_SECONDS
            )  # fmt: skip
            for n, key in words.items():
                self._milliseconds[key] = round(quantiles(times[str(n)], n=4, method="inclusive")[0], 5)
        return nearest_block(STAIRS, [self._milliseconds[key] for key in words.values()])

    def shape(self, kind: FactorKind, n_in: int) -> Shape:
        """Shape of the input of a factor as it is timed."""
        lead = n_in if kind.kernel == LINEAR or not self.in_context else LEAD
        return kind.images(self.batch_size, lead)

    def placed(self, modules: Mapping[str, nn.Module], kind: FactorKind, n_in: int) -> dict[str, nn.Module]:
        """Modules on the input of a factor, each between a small convolution and a mean over the map in context.

        Behind a selection of channels stands a convolution as well: a runtime may order the numbers for it anew.
        """
        if kind.kernel == LINEAR or not self.in_context:
            return dict(modules)

        def behind(module: nn.Module) -> list[nn.Module]:
            if kind.kernel == SELECT:
                return [nn.Conv2d(n_in, LEAD, 1), nn.ReLU()]
            return [] if isinstance(module, nn.Identity) else [nn.ReLU()]

        return {
            name: nn.Sequential(
                nn.Conv2d(LEAD, n_in, 1), nn.ReLU(), module, *behind(module), nn.AdaptiveAvgPool2d(1)
            )
            for name, module in modules.items()
        }  # fmt: skip

    def compare(
        self, networks: Mapping[str, nn.Module], shape: Shape, rounds: int = ROUNDS, seconds: float = WHOLE_SECONDS
    ) -> dict[str, float]:
        """Median times of networks that run in turn, in milliseconds."""
        prepared = {name: self.prepared(network, shape) for name, network in networks.items()}
        times = latencies(prepared, shape, self.device, rounds, layout=self.runtime.layout, max_seconds=seconds)
        return {name: median(values) for name, values in times.items()}

    def within(self, network: nn.Module, names: list[str], shape: Shape) -> tuple[dict[str, float], float]:
        """Times of a network's modules while it runs in eager mode, and of the rest.

        See :func:`decomp.runtimes.timing.times_within`.
        """
        layout = self.runtime.layout
        prepared = Eager(layout).prepare(network, self._images(shape))
        return times_within(prepared, names, shape, self.device, ROUNDS, layout=layout, max_seconds=WHOLE_SECONDS)

    def keep_prepared(self, network: nn.Module, shape: Shape) -> None:
        """Prepare a network for all measurements that follow, such as the original; again, where it was before."""
        self._prepared_before[id(network)] = network, shape, self.runtime.prepare(network, self._images(shape))

    def prepared(self, network: nn.Module, shape: Shape) -> Callable[[Tensor], object]:
        """A network ready to run; the one of :meth:`keep_prepared` where there is one."""
        known = self._prepared_before.get(id(network))
        if known is not None and known[1] == shape:
            return known[2]
        return self.runtime.prepare(network, self._images(shape))

    def _images(self, shape: Shape) -> Tensor:
        return random_images(shape, self.device, self.runtime.layout)

    @property
    def fastest_original(self) -> float | None:
        """The shortest time of the original in all measurements of whole networks, in milliseconds."""
        return self._milliseconds.get(ORIGINAL)

    def note_original(self, milliseconds: float) -> None:
        """Keep a time of the original if it is the shortest."""
        self._milliseconds[ORIGINAL] = round(min(milliseconds, self._milliseconds.get(ORIGINAL, milliseconds)), 5)

    def save(self) -> None:
        """Write all times to the file."""
        self._entries[self._key] = self._milliseconds
        write_json(self.path, {"entries": self._entries}, kind=KIND)


def block_of_rounds(
    prepared: Mapping[str, Callable[[Tensor], object]], shape: Shape, device: torch.device, layout: str,
    seconds: float = WHOLE_SECONDS,
) -> Callable[[], dict[str, list[float]]]:  # fmt: skip
    """A block of interleaved rounds of whole networks, measured at each call; times in milliseconds.

    The networks are warm after the first block. Slow ones have few rounds in it, and very fast ones so many that they
    take :data:`BLOCK` together: else one disturbance could be as long as the block.
    """
    warm_up = iter([WARM_UP])

    def block() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in prepared}
        while sum(map(sum, found.values())) < BLOCK and sum(map(len, found.values())) < MOST_RUNS:
            times = latencies(
                prepared, shape, device, ROUNDS, layout=layout, max_seconds=seconds, min_rounds=FEWEST_ROUNDS,
                warm_up=next(warm_up, 1), warm_below=WARM_BELOW, warm_seconds=WARM_SECONDS,
            )  # fmt: skip
            for name, values in times.items():
                found[name] += values
        return found

    return block


def conditions(device: torch.device, batch_size: int, runtime: Runtime) -> dict[str, Any]:
    """Conditions of a measurement on which a time depends, beside the shapes."""
    return {
        "device": devices.full_name(device), **conditions_of(runtime, device.type), "torch": torch.__version__,
        "batch_size": batch_size,
    }  # fmt: skip
