"""Recording of sampled responses: one pass over the calibration images into the frozen file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from decomp import seeds
from decomp.errors import NumericalError
from decomp.execution.output_change import Outputs
from decomp.execution.output_spread import Spread
from decomp.execution.replay import Replay
from decomp.execution.sampled_rows import draw_positions, responses
from decomp.graph.network_graph import NetworkGraph

from ...data.formats.frozen_file import FrozenFile, FrozenWriter
from ...data.formats.frozen_keys import keys_of, shortcut_key
from ...data.splits import ImageSource
from ..console.reporter import Reporter
from ..run.directory import RunDirectory


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
    """

    def __init__(self, graph: NetworkGraph, n_points: int, seed: int, indices: Tensor, outputs: Outputs) -> None:
        self.graph, self.n_points, self.seed, self.indices = graph, n_points, seed, indices
        self.outputs = outputs
        self.layers = [layer for layer in graph.layers if layer.fitted]
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
            Called with the network's outputs for each batch by name, in order.

        Returns
        -------
        str
            Digest of the file's content.

        Raises
        ------
        NumericalError
            A response is NaN or infinite; names the layer and the images.
        """
        n_images, network = len(self.indices), self.graph.module.to(device)
        with FrozenWriter(run.frozen, meta=meta, n_images=n_images, input_shape=self.graph.input_shape) as writer:
            self._declare(writer)
            writer.drawn = [int(index) for index in self.indices]

            def images(start: int, stop: int) -> Tensor:
                # Called once per batch: the network gets exactly the images that are written.
                batch = source.train.images(self.indices[start:stop])
                writer.write_images(start, batch)
                return batch

            replay = Replay(network, images, n_images, batch_size=batch_size, device=device)
            shortcuts = {call: other for la in self.layers for call, other in self.graph.shortcuts(la).items()}
            with reporter.progress(n_images, "recording outputs", "images") as progress:
                spread, last = Spread(self.outputs), replay.nodes[-1]
                for start, stop, node, value, shortcut in replay.visit({*self.keys, last}, shortcuts):
                    if node is last:
                        tensors = self._finite_outputs(value, start, stop)
                        spread.add(tensors)
                        if watch is not None:
                            watch(tensors)
                        progress.update(stop - start)
                        continue
                    maps = self.graph.maps(node)
                    for (name, grid), part in zip(self.keys[node], maps.split(value)):
                        self._write_rows(writer, name, grid, start, stop, part)
                    for (name, grid), part in zip(self.keys[node], [] if shortcut is None else maps.split(shortcut)):
                        self._write_rows(writer, shortcut_key(name), grid, start, stop, part)
            self.outputs = spread.measured()
            writer.meta["outputs"] = self.outputs.to_json()
        with FrozenFile(run.frozen) as frozen:
            return frozen.content

    def _finite_outputs(self, output: Any, start: int, stop: int) -> dict[str, Tensor]:
        tensors = self.outputs.named(output, stop - start)
        for name, value in tensors.items():
            bad = value.numel() - int(torch.isfinite(value).sum())
            if bad:
                raise NumericalError(
                    f"output {name}", "the outputs must be finite",
                    got=f"{bad} NaN or infinite values in images {start}..{stop - 1}",
                    fix="check the weights and the images",
                )  # fmt: skip
        return tensors

    def _declare(self, writer: FrozenWriter) -> None:
        for layer in self.layers:
            for (name, grid, points), (_, hw) in zip(keys_of(layer, self.n_points), layer.calls):
                if grid not in self.positions:
                    generator = seeds.generator(self.seed, "freeze", "positions", grid)
                    self.positions[grid] = draw_positions(len(self.indices), points, hw, generator)
                    writer.declare_grid(grid, hw, self.positions[grid])
                writer.declare_layer(name, grid, layer.out_channels)
                if layer.recovers is not None:
                    writer.declare_layer(shortcut_key(name), grid, layer.out_channels)

    def _write_rows(self, writer: FrozenWriter, name: str, grid: str, start: int, stop: int, values: Tensor) -> None:
        rows = responses(values, self.positions[grid][start:stop])
        # All values, not only the sampled ones: the layers behind read the others too.
        bad = values.numel() - int(torch.isfinite(values).sum())
        if bad or not torch.isfinite(rows).all():
            raise NumericalError(
                name.removesuffix(shortcut_key("")), "the responses must be finite",
                got=f"{bad} NaN or infinite values in images {start}..{stop - 1}",
                fix="check the weights and the images",
            )  # fmt: skip
        writer.write_responses(name, start, rows.float().cpu())
