"""Graphviz drawing of the layers and channel spaces of a network."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from decomp.errors import FileError, UsageError
from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph

from ...data.formats.atomic import commit
from ..console.words import counted

_OWN, _SHARED, _FIXED, _ALONE = "#c8e6c9", "#fff3c4", "#f8cfcf", "#dddddd"
_LEGEND = (
    ("#ffffff", "layer that can be reduced"), (_ALONE, "layer excluded from all steps"),
    (_OWN, "channels pruned with the one layer that reads them"),
    (_SHARED, "channels that several layers write or read"), (_FIXED, "channels whose number is fixed"),
    ("#ffffff", "dashed: a depthwise convolution on these channels"),
)  # fmt: skip


def require_dot() -> None:
    """Check that graphviz is installed.

    Raises
    ------
    UsageError
        There is no program ``dot``.
    """
    if shutil.which("dot") is None:
        fix = "install graphviz (apt install graphviz, brew install graphviz), or write --dot FILE"
        raise UsageError("--png", "needs the program dot, which is not installed here", fix=fix)


def as_dot(graph: NetworkGraph, own: Collection[str]) -> str:
    """Source text of a drawing: layers as boxes, channel spaces as rounded boxes, arrows along the data flow.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    own : collection of str
        Names of the channel spaces that are pruned with the one layer that reads them.

    Returns
    -------
    str
    """
    place = {layer.name: layer.index for layer in graph.layers}
    lines = [
        "digraph network {",
        f"  label=<{_legend()}>; labelloc=t; labeljust=l; fontname=Helvetica; fontsize=10;",
        "  rankdir=TB; ranksep=0.3; nodesep=0.25;",
        '  node [fontname="Helvetica", fontsize=10, shape=box, style=filled, height=0.3, margin="0.12,0.05"];',
        "  edge [arrowsize=0.6];",
    ]
    lines += [
        f'  "{layer.name}" [fillcolor="{_fill(layer)}", label="{_layer_label(layer)}"];' for layer in graph.layers
    ]
    for space in graph.spaces.all:
        key, colour = f"space {space.name}", _FIXED if space.frozen else _OWN if space.name in own else _SHARED
        lines.append(f'  "{key}" [style="filled,rounded", fillcolor="{colour}", label="{_space_label(space, place)}"];')
        first = min((place[name] for name in space.consumers if name in place), default=len(place))
        for name in space.producers:
            # An arrow back into a residual stream must not move the stream below its readers.
            back = ' [constraint=false, color="#888888"]' if place.get(name, 0) > first else ""
            lines.append(f'  "{name}" -> "{key}"{back};')
        lines += [f'  "{key}" -> "{name}";' for name in space.consumers]
        lines += [f'  "{key}" -> "{name}" [style=dashed, dir=none];' for name in space.carriers if name in place]
    return "\n".join([*lines, "}", ""])


def _legend() -> str:
    rows = [
        f'<tr><td width="14" bgcolor="{colour}"></td><td align="left">{words}</td></tr>' for colour, words in _LEGEND
    ]
    return f'<table border="0" cellborder="0" cellspacing="2" cellpadding="1">{"".join(rows)}</table>'


def _fill(layer: Layer) -> str:
    return "#ffffff" if layer.fitted else _ALONE


def _layer_label(layer: Layer) -> str:
    size = f"{layer.in_channels}→{layer.out_channels}"
    if layer.kind == "conv":
        size = f"{layer.kernel[0]}×{layer.kernel[1]} {size} at {layer.out_hw[0]}×{layer.out_hw[1]}"
    return f"{layer.name}\\n{size}"


def _space_label(space: ChannelSpace, place: Mapping[str, int]) -> str:
    label = f"{counted(space.width, 'channel')}"
    between = [name for name in space.carriers if name not in place]
    if between:
        label += f"\\nthrough {between[0]}" + (f" and {len(between) - 1} more" if len(between) > 1 else "")
    return label + (f"\\n{space.frozen}" if space.frozen else "")


def draw(path: str | os.PathLike[str], text: str) -> str:
    """Render a drawing as a PNG file with the program ``dot``, whole or not at all.

    Parameters
    ----------
    path : path
    text : str
        As :func:`as_dot` returns it.

    Returns
    -------
    str
        The path.

    Raises
    ------
    FileError
        ``dot`` fails; holds its message.
    """
    with commit(Path(path)) as target:
        done = subprocess.run(["dot", "-Tpng", "-Gdpi=80", "-o", str(target)], input=text.encode(), capture_output=True)
        if done.returncode:
            raise FileError(path, "dot could not draw the network", got=done.stderr.decode()[:120])
    return str(path)
