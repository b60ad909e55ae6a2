"""Table of a network's layers, before → after: the one form of it in commands, in Python and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .text_table import Rows, text_table
from .words import listed


@dataclass(frozen=True)
class LayerSummary:
    """One layer of the original network and its replacement.

    Attributes
    ----------
    layer : str
        Path of the module.
    kind : {'conv', 'linear', 'other'}
        'other' is a module of another class, or calls of functions such as the products of attention.
    reads, writes : tuple of (int, int)
        Channels after and before; zeros for another kind.
    ranks : dict of str to (int, int)
        Rank of each split by the name of its step, and the rank at which that split would be exact.
    macs_before, macs_after : int
        Multiply-accumulates for one image.
    params_before, params_after : int
    error : float or None
        Relative squared error of the layer's outputs after its last step, on held-out images; None where nothing was
        fitted.
    """

    layer: str
    kind: str
    reads: tuple[int, int]
    writes: tuple[int, int]
    ranks: Mapping[str, tuple[int, int]]
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    error: float | None = None

    @classmethod
    def unchanged(cls, name: str, macs: int, params: int) -> LayerSummary:
        """What is neither a convolution nor a linear layer, and keeps its cost."""
        return cls(name, "other", (0, 0), (0, 0), {}, macs, macs, params, params)

    @property
    def becomes(self) -> str:
        """Description of the replacement."""
        if self.writes[0] == 0 < self.writes[1]:
            return "removed with its branch"
        words = [f"{step} rank {rank} of {full}" for step, (rank, full) in self.ranks.items()]
        if self.reads[0] != self.reads[1]:
            words.insert(0, f"reads {self.reads[0]} of {self.reads[1]} channels")
        if self.writes[0] != self.writes[1]:
            words.append(f"writes {self.writes[0]} of {self.writes[1]} channels")
        return ", ".join(words) or "unchanged"


HEADER = ("layer", "reads", "rank", "writes", "MACs", "", "parameters", "error")


def layer_rows(layers: Sequence[LayerSummary]) -> list[tuple[str, ...]]:
    """The table as texts, the header first; columns without an entry are left out."""
    rows: list[tuple[str, ...]] = [HEADER]
    for item in layers:
        ranks = ", ".join(f"{step} {rank} of {full}" for step, (rank, full) in item.ranks.items())
        ratio = f"({item.macs_before / item.macs_after:.1f}x)" if item.macs_after not in (0, item.macs_before) else ""
        rows.append(
            (
                item.layer, _of(*item.reads), ranks, _of(*item.writes), amounts(item.macs_before, item.macs_after),
                ratio, amounts(item.params_before, item.params_after),
                "" if item.error is None else f"{100 * item.error:.1f} %",
            )
        )  # fmt: skip
    used = [i for i in range(len(HEADER)) if i == 0 or any(row[i] for row in rows[1:])]
    return [tuple(row[i] for i in used) for row in rows]


def layer_lines(layers: Sequence[LayerSummary]) -> list[str]:
    """The table as lines of text."""
    return table_lines(layer_rows(layers))


def table_lines(rows: Rows) -> list[str]:
    """Rows of :func:`layer_rows` as lines of text."""
    return text_table(rows).split("\n")


def amounts(before: float, after: float) -> str:
    """``'1.81 → 0.38 M'``: two amounts in the unit of the larger; one where they are the same."""
    unit, scale = next(((unit, scale) for unit, scale in _UNITS if max(before, after) >= scale), ("", 1))
    words = f"{before / scale:.3g}" + ("" if after == before else f" → {after / scale:.3g}")
    return f"{words} {unit}".rstrip()


_UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))


def _of(now: int, before: int) -> str:
    return ("" if now == 0 else f"{now}") if now == before else f"{now} of {before}"


def excluded_lines(left_alone: Mapping[str, Mapping[str, str]], n_steps: int) -> list[str]:
    """One line for each reason for which layers keep their shape, with the layers.

    Parameters
    ----------
    left_alone : mapping
        Layer to step to reason.
    n_steps : int
        Number of all steps; layers that some step can be applied to are not listed.
    """
    layers_by_reason: dict[str, list[str]] = {}
    for layer, reasons in left_alone.items():
        if len(reasons) == n_steps:
            # A convolution without steps has one reason for all; of a linear layer only pruning is a question.
            layers_by_reason.setdefault(reasons.get("prune", next(iter(reasons.values()))), []).append(layer)
    lines = []
    for reason, layers in layers_by_reason.items():
        lines.append(f"cannot be changed: {listed(layers)} ({reason})")
    return lines


def left_alone_lines(reasons: Mapping[str, str]) -> list[str]:
    """One line for each reason for which channel spaces keep all channels, with the spaces."""
    by_reason: dict[str, list[str]] = {}
    for space, reason in reasons.items():
        by_reason.setdefault(reason, []).append(space)
    return [f"keeps all channels: {listed(spaces)} ({reason})" for reason, spaces in by_reason.items()]
