"""Recording of sampled responses: one pass over the calibration images into the frozen file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from decomp import seeds
from decomp.execution.output_change import Outputs
from decomp.execution.output_spread import Spread
from decomp.execution.replay import Replay
from decomp.execution.sampled_rows import draw_positions, responses
from decomp.graph.network_graph import NetworkGraph

from ...data.formats.frozen_file import FrozenFile, FrozenWriter
from ...data.formats.frozen_keys import keys_of, shortcut_key
from ...data.splits import ImageSource
from ..console.reporter import Reporter
from ..distributed.process_group import count, from_first, gathered_by_first, number
from ..run.calibration import Mixtures
from ..run.directory import RunDirectory
from .refusals import require_finite


class Written:
    """The images and responses of one batch, on their way to the process that writes the file."""

    def __init__(self) -> None:
        self._images: list[tuple[int, Tensor]] = []
        self._responses: list[tuple[str, int, Tensor]] = []

    def write_images(self, start: int, batch: Tensor) -> None:
        self._images.append((start, batch))

    def write_responses(self, name: str, start: int, rows: Tensor) -> None:
        self._responses.append((name, start, rows))

    def exchanged(
        self, n: int, outputs: dict[str, Tensor], writer: FrozenWriter | None
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Write the batches of all processes, in their order, and yield the number of images and the outputs of each.

        Called by all processes, each with its batch or with none (n = 0); only the first one writes and yields.
        """
        on_cpu = {name: value.cpu() for name, value in outputs.items()}
        batches = gathered_by_first((n, on_cpu, self._images, self._responses))
        self._images, self._responses = [], []
        for n_images, tensors, images, responses_of_batch in batches:
            assert writer is not None
            for start, batch in images:
                writer.write_images(start, batch)
            for name, start, rows in responses_of_batch:
                writer.write_responses(name, start, rows)
            if n_images:
                yield n_images, tensors


def _own_batches(n: int) -> range:
    """Every so many-th of n batches: those of this process."""
    return range(number(), n, count())


class ResponseRecording:
    """One pass over the calibration images that writes them and the sampled responses into the frozen file.

    Parameters
    ----------
    graph : NetworkGraph
        Of the original network; its fitted layers are recorded, and the values that their outputs are added to.
    n_points : int
        Output positions per image and output grid; layers with the same grid share them.
    seed : int
        Of the positions.
    indices : torch.LongTensor, shape (M,)
        Calibration images, as indices into the training split.
    outputs : Outputs
        Of the network; their spreads are measured in the same pass, written into the file and then here.
    mixtures : Mixtures, optional
        Of these images; recorded behind them.
    """

    def __init__(
        self, graph: NetworkGraph, n_points: int, seed: int, indices: Tensor, outputs: Outputs,
        mixtures: Mixtures | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.n_points, self.seed, self.indices = graph, n_points, seed, indices
        self.outputs, self.mixtures = outputs, mixtures
        self.n_recorded = len(indices) + (0 if mixtures is None else len(mixtures))
        self.layers = [layer for layer in graph.layers if layer.recorded]
        # For every call of these layers: names of the responses and of the grid of each of its maps.
        self.keys: dict[fx.Node, list[tuple[str, str]]] = {}
        for layer in self.layers:
            names = iter([(name, grid) for name, grid, _ in keys_of(layer, n_points)])
            self.keys.update({node: [next(names) for _ in range(graph.maps(node).n)] for node in graph.calls(layer)})
        self.positions: dict[str, Tensor] = {}

    def write(
        self,
        run: RunDirectory,
        meta: dict[str, Any],
        source: ImageSource,
        batch_size: int,
        device: torch.device,
        reporter: Reporter,
        watch: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> str:
        """Write the frozen file of a run.

        Parameters
        ----------
        run : RunDirectory
        meta : dict
            Written into the file, see :mod:`decomp.data.formats.frozen_file`.
        source : ImageSource
        batch_size : int
        device : torch.device
            The network is moved there.
        reporter : Reporter
        watch : callable, optional
            Called with the network's outputs for each batch by name, in order; not for mixtures.

        Returns
        -------
        str
            Digest of the file's content.

        Raises
        ------
        NumericalError
            A response is NaN or infinite; names the layer and the images.
        """
        n_images, n_done = len(self.indices), 0
        self._draw_positions()
        if number() > 0:
            for _ in self._computed(source, batch_size, device, None):
                pass
            self.outputs, content = from_first(lambda: (self.outputs, ""))
            return content
        spread = Spread(self.outputs)
        with (
            FrozenWriter(run.frozen, meta=meta, n_images=self.n_recorded, input_shape=self.graph.input_shape) as writer,
            reporter.progress(self.n_recorded, "recording outputs", "images") as progress,
        ):
            self._declare(writer)
            writer.drawn = [int(index) for index in self.indices]
            for n, tensors in self._computed(source, batch_size, device, writer):
                # Mixtures are no images of the kind that the network is for.
                own = {name: value[: max(0, n_images - n_done)] for name, value in tensors.items()}
                if n_done < n_images:
                    spread.add(own)
                    if watch is not None:
                        watch(own)
                n_done += n
                progress.update(n)
            self.outputs = spread.measured()
            writer.meta["outputs"] = self.outputs.to_json()
        with FrozenFile(run.frozen) as frozen:
            return from_first(lambda: (self.outputs, frozen.content))[1]

    def _computed(
        self, source: ImageSource, batch_size: int, device: torch.device, writer: FrozenWriter | None
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Number of images and outputs of every batch, in order, after its images and responses were written.

        Each process computes every so many-th batch; the first one, which has the writer, gets those of the others.
        """
        target: FrozenWriter | Written = Written() if count() > 1 or writer is None else writer

        def images(start: int, stop: int) -> Tensor:
            # Called once per batch: the network gets exactly the images that are written.
            batch = self._images(source, start, stop)
            target.write_images(start, batch)
            return batch

        network = self.graph.module.to(device)
        replay = Replay(
            network, images, self.n_recorded, batch_size=batch_size, device=device, own=_own_batches
        )  # fmt: skip
        rounds, last = -(-self.n_recorded // (batch_size * count())), replay.nodes[-1]
        shortcuts = {call: other for la in self.layers for call, other in self.graph.shortcuts(la).items()}
        for start, stop, node, value, shortcut in replay.visit({*self.keys, last}, shortcuts):
            if node is last:
                tensors = self._finite_outputs(value, start, stop)
                if isinstance(target, Written):
                    rounds -= 1
                    yield from target.exchanged(stop - start, tensors, writer)
                else:
                    yield stop - start, tensors
                continue
            maps = self.graph.maps(node)
            for (name, grid), part in zip(self.keys[node], maps.split(value)):
                self._write_rows(target, name, grid, start, stop, part)
            for (name, grid), part in zip(self.keys[node], [] if shortcut is None else maps.split(shortcut)):
                self._write_rows(target, shortcut_key(name), grid, start, stop, part)
        if isinstance(target, Written) and rounds:
            yield from target.exchanged(0, {}, writer)  # the last round has fewer batches than processes

    def _images(self, source: ImageSource, start: int, stop: int) -> Tensor:
        """Images start..stop-1: those of the source, then the mixtures."""
        n = len(self.indices)
        parts = [source.train.images(self.indices[start:stop])] if start < n else []
        if self.mixtures is not None and stop > n:
            places = slice(max(0, start - n), stop - n)
            first, second = (
                source.train.images(self.indices[own[places]]) for own in (self.mixtures.first, self.mixtures.second)
            )
            parts.append(self.mixtures.images(first, second, places))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _finite_outputs(self, output: Any, start: int, stop: int) -> dict[str, Tensor]:
        tensors = self.outputs.named(output, stop - start)
        for name, value in tensors.items():
            require_finite(value, f"output {name}", "the outputs", start, stop)
        return tensors

    def _draw_positions(self) -> None:
        for layer in self.layers:
            for (_, grid, points), (_, hw) in zip(keys_of(layer, self.n_points), layer.calls):
                if grid not in self.positions:
                    generator = seeds.generator(self.seed, "freeze", "positions", grid)
                    self.positions[grid] = draw_positions(self.n_recorded, points, hw, generator)

    def _declare(self, writer: FrozenWriter) -> None:
        declared = set()
        for layer in self.layers:
            for (name, grid, _), (_, hw) in zip(keys_of(layer, self.n_points), layer.calls):
                if grid not in declared:
                    declared.add(grid)
                    writer.declare_grid(grid, hw, self.positions[grid])
                writer.declare_layer(name, grid, layer.out_channels)
                if layer.recovers is not None:
                    writer.declare_layer(shortcut_key(name), grid, layer.out_channels)

    def _write_rows(
        self, writer: FrozenWriter | Written, name: str, grid: str, start: int, stop: int, values: Tensor
    ) -> None:
        rows = responses(values, self.positions[grid][start:stop])
        # All values, not only the sampled ones: the layers behind read the others too.
        require_finite(values, name.removesuffix(shortcut_key("")), "the responses", start, stop)
        writer.write_responses(name, start, rows.float().cpu())
