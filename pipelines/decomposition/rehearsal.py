"""Rehearsal: a random network of the planned kind goes through surgery, files and its class before any long work.

Whatever the end of a decomposition demands can be tried in the first minute, as none of it depends on the weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from decomp.allocation.plan import LayerPlan, limits
from decomp.errors import DecompError
from decomp.graph.network_graph import NetworkGraph
from decomp.modules.copies import deep_copy
from decomp.problem.factors import LayerSolution
from decomp.surgery.apply_solution import apply_solution
from decomp.surgery.narrow_network import shrink
from decomp.surgery.random_network import random_solution
from decomp.time_spent import part

from ...data.formats.layer_file import read_layer, write_layer
from ...data.formats.network_file import Verified
from ..console.options import DecomposeOptions
from .emission import emit
from .rules import plan_rules
from .session import OpenedRun

#: Sizes of the random layers, as a share of the largest: small ones take little time.
SHARE = 1 / 8


@part("rehearsal")
def rehearse(
    opened: OpenedRun, options: DecomposeOptions, widths: Mapping[str, int], *, original: nn.Module | None = None,
    use: Callable[[Path], None] | None = None,
) -> Verified:  # fmt: skip
    """Take a network of random layers through all that a decomposition ends with.

    Parameters
    ----------
    opened : OpenedRun
        Not changed, and neither is the state of any random number generator.
    options : DecomposeOptions
        Steps, and layers that keep their shape.
    widths : mapping of str to int
        Channel spaces that will be narrowed as a whole, with their numbers of remaining channels.
    original : torch.nn.Module, optional
        An instance of the original class, where the name of the model does not build one.
    use : callable, optional
        Called with the folder of the written network; what it raises is passed on.

    Returns
    -------
    network_file.Verified
        Whether the network will also go into the class of the original.

    Raises
    ------
    DecompError
        The layers cannot be exchanged, or the network cannot be written and read again; says the way out.
    """
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(prefix="decomp-") as folder:
        graph, edited = _narrowed(opened, options, widths)
        network = deep_copy(graph.module)
        plans, written = rehearsal_plans(graph, options), set[str]()
        for layer in graph.layers:
            if not layer.fitted:
                continue
            with _refused(layer.name):
                solution = random_solution(graph, layer, plans[layer.name])
                chain = solution.factored
                form = str([(name, factor.geometry) for name, factor in zip(chain.names, chain.factors)])
                if form not in written:  # files of one form differ in their numbers only
                    written.add(form)
                    solution = _through_a_file(solution, Path(folder) / "layer")
                edited += apply_solution(network, graph, solution)
        written_to = Path(folder) / "model"
        with _refused("the network"):
            verified = emit(opened, network.cpu(), written_to, edited=edited, meta={}, original=original)
        if use is not None:
            use(written_to)
        return verified


def rehearsal_plans(graph: NetworkGraph, options: DecomposeOptions) -> dict[str, LayerPlan]:
    """A plan for each layer: every step that the options allow, at a small size."""
    rules, plans = plan_rules(options, graph), dict[str, LayerPlan]()
    for layer in graph.layers:
        plan = plans[layer.name] = LayerPlan(layer.name)
        steps = () if layer.name in rules.rules.skip else options.steps
        for step, (size, largest, _) in limits(layer).items():
            if step in steps and step not in layer.left_alone:
                setattr(plan, size, max(1, round(largest * SHARE)))
    return plans


def _narrowed(
    opened: OpenedRun, options: DecomposeOptions, widths: Mapping[str, int]
) -> tuple[NetworkGraph, list[str]]:
    """The graph that the layers will be planned on, with the first channels of narrowed spaces."""
    graph = opened.graph
    if not widths and options.sampler:
        return graph, []
    if not widths:
        return graph.rebuilt(sampler=options.sampler), []
    module = deep_copy(graph.module)
    edited = shrink(module, graph.spaces, {name: range(width) for name, width in widths.items()})
    return graph.rebuilt(module, sampler=options.sampler), edited


def _through_a_file(solution: LayerSolution, path: Path) -> LayerSolution:
    write_layer(path, solution, {}, "rehearsal")
    return read_layer(path, "rehearsal", solution.name)[0]


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Turn an error of surgery or files into one line with the ways out."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = error.rule if isinstance(error, DecompError) else f"{type(error).__name__}: {error}"
        leaf = "MODULE, the part it lies in" if name == "the network" else name
        raise DecompError(
            name,
            f"cannot be exchanged and written in this network ({reason[:200]}), as random weights show",
            fix=f"run freeze again with --leaf {leaf}, or with --module for another part",
        ) from error
