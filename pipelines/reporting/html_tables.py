"""Tables of the HTML page: sortable by a click on the head of a column, with values that sort as numbers."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..console.layer_table import amounts
from ..measure.intervals import wilson
from .tables import Table

MISSING = "–"
NO_BREAK = "\u2011"  # a hyphen at which a line is not broken


@dataclass(frozen=True)
class Cell:
    """A text, the number that it sorts by (None for a text that sorts as such), and a second text in brackets."""

    text: str
    value: float | None = None
    bracket: str = ""

    def html(self) -> str:
        """The content of the cell; numbers and brackets are not broken."""
        second = f' <span class="i">({html.escape(self.bracket)})</span>' if self.bracket else ""
        first = html.escape(self.text)
        return (first if self.value is None else f'<span class="i">{first}</span>') + second


def html_cells(
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    reflow: bool = False,
    sortable: bool = True,
    long: bool = False,
) -> str:
    """An HTML table.

    Parameters
    ----------
    name : str
        Text alternative of the table.
    header : sequence of str
        A column whose cells have numbers is aligned to the right.
    rows : sequence of sequence of Cell
        The first cell of each is its head.
    reflow : bool
        On a narrow page each row becomes a block with a line for each cell; otherwise the table scrolls sideways under
        its first column.
    sortable : bool
        Whether a click on the head of a column sorts by it.
    long : bool
        Whether the last column holds sentences.
    """
    numeric = [any(row[i].value is not None for row in rows) for i in range(len(header))]
    heads = "".join(
        f'<th scope="col"{_aligned(n)}>{html.escape(h.replace("-", NO_BREAK))}</th>' for h, n in zip(header, numeric)
    )
    lines = []
    for row in rows:
        # A long path is broken between its parts.
        first = re.sub(r"([._/])", r"\1<wbr>", row[0].html())
        cells = [f'<th scope="row"{_sorted(row[0])}>{first}</th>']
        for head, cell, right in list(zip(header, row, numeric))[1:]:
            label = f' data-label="{html.escape(head)}"' if reflow else ""
            cells.append(f"<td{_aligned(right)}{_sorted(cell)}{label}>{cell.html()}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    style = " ".join(word for word, given in (("sortable", sortable), ("reflow", reflow), ("long", long)) if given)
    table = f'<table class="{style}"><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="wide" role="region" aria-label="{html.escape(name)}" tabindex="0">{table}</div>'


def _aligned(right: bool) -> str:
    return ' class="n"' if right else ""


def _sorted(cell: Cell) -> str:
    return "" if cell.value is None else f' data-sort="{cell.value!r}"'


def _share(value: float | None, n: int | None) -> Cell:
    """A share in percent with its interval in brackets."""
    if value is None:
        return Cell(MISSING)
    if not n:
        return Cell(f"{100 * value:.1f} %", value)
    low, high = wilson(round(value * n), n)
    digits = 2 if high - low < 0.004 else 1
    return Cell(f"{100 * value:.{digits}f} %", value, f"{100 * low:.{digits}f}–{100 * high:.{digits}f}")


def networks_table(table: Table) -> str:
    """The networks of one or several runs; what people look for first is in the first columns."""
    rows = table.dicts()
    runs = list(dict.fromkeys(row["run"] for row in rows))
    quality = {"top-1": [_share(row["top1"], row["n_images"]) for row in rows]}
    same = [_share(row["agreement"], None if row["network"] == "original" else row["n_images"]) for row in rows]
    apart = [_percent(row["output_difference"]) for row in rows]
    if all(row["top1"] is None for row in rows):
        quality = {"same top class": same, "change of the outputs": apart}
    columns = {
        **quality,
        "measured speed-up": [Cell(f"{row['measured_speedup']:.2f}x", row["measured_speedup"]) for row in rows],
        "time of a batch": [
            Cell(
                f"{row['latency_ms']:,.2f} ms",
                row["latency_ms"],
                f"{row['latency_low_ms']:,.2f}–{row['latency_high_ms']:,.2f}",
            )
            for row in rows
        ],
        "counted speed-up": [Cell(f"{row['counted_speedup']:.2f}x", row["counted_speedup"]) for row in rows],
        "MACs": [Cell(f"{row['macs'] / 1e6:,.2f} M", row["macs"]) for row in rows],
        "parameters": [Cell(f"{row['params'] / 1e6:,.3f} M", row["params"]) for row in rows],
        "same top class": same,
        "top-5": [_share(row["top5"], row["n_images"]) for row in rows],
    }
    shown = {head: cells for head, cells in columns.items() if any(cell.value is not None for cell in cells)}
    first = [_name(row, runs) for row in rows]
    return html_cells("Networks", ["network", *shown], list(zip(first, *shown.values())), reflow=len(runs) == 1)


def _name(row: Mapping[str, Any], runs: Sequence[str]) -> Cell:
    if len(runs) == 1:
        return Cell(row["network"])
    return Cell(f"{runs.index(row['run']) + 1} {row['run']}: {row['network']}")


def _percent(value: float | None, digits: int = 1) -> Cell:
    if value is None:
        return Cell(MISSING)
    return Cell("< 0.01 %" if 0 < value < 1e-4 else f"{100 * value:.{digits}f} %", value)


def layers_table(table: Table) -> str:
    """The layers before and after, with the share of the result's cost and the reasons for unchanged ones."""
    rows, total = table.dicts(), sum(table.column("macs_after")) or 1
    header = ["layer", "MACs before → after", "ratio", "share", "error", "becomes", "parameters", "not applied"]
    cells = []
    for row in rows:
        before, after, share = row["macs_before"], row["macs_after"], row["macs_after"] / total
        ratio = Cell(f"{before / after:.2f}x", before / after) if after else Cell(MISSING)
        params = amounts(row["params_before"], row["params_after"])
        cells.append(
            (
                Cell(row["layer"]), Cell(amounts(before, after), before), ratio, Cell(f"{100 * share:.1f} %", share),
                _percent(row["error"]), Cell(row["becomes"]), Cell(params, row["params_before"]),
                Cell(row["left_alone"] or ""),
            )
        )  # fmt: skip
    kept = [i for i in range(len(header)) if i < 7 or any(row[7].text for row in cells)]
    return html_cells(
        "Layers", [header[i] for i in kept], [[row[i] for i in kept] for row in cells], long=len(kept) > 7
    )


def outputs_table(table: Table) -> str:
    """Closeness of each output to the original's."""
    rows = table.dicts()
    several = len({row["network"] for row in rows}) > 1
    header = ["output", "kind", "change, share of variance", "divergence, nats", "same top class"]
    cells = [
        (
            Cell(f"{row['network']}: {row['output']}" if several else row["output"]),
            Cell(row["kind"] or MISSING),
            _percent(row["difference"], 2),
            Cell(MISSING) if row["divergence_nats"] is None
            else Cell(f"{row['divergence_nats']:.3g}", row["divergence_nats"]),
            _percent(row["agreement"]),
        )
        for row in rows
    ]  # fmt: skip
    shown = [i for i in range(len(header)) if any(row[i].text != MISSING for row in cells)]
    return html_cells("Outputs", [header[i] for i in shown], [[row[i] for i in shown] for row in cells], reflow=True)


def text_rows(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], reflow: bool = False) -> str:
    """A table of texts, in their order."""
    return html_cells(name, header, [[Cell(text) for text in row] for row in rows], reflow, sortable=False)
