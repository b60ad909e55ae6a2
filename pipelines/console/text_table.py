"""Tables of texts, for a terminal and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def text_table(rows: Rows, left: int = 1) -> str:
    """Rows of cells as lines of text, the first `left` columns aligned left, the others right.

    Parameters
    ----------
    rows : sequence of sequence of str
        The header first; the same number of cells in each.
    left : int
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def html_table(rows: Rows, left: int = 1) -> str:
    """The same as HTML, with every text escaped."""

    def cells(row: Sequence[str], tag: str) -> str:
        style = ["left" if i < left else "right" for i in range(len(row))]
        return "".join(f'<{tag} style="text-align:{s}">{html.escape(c)}</{tag}>' for c, s in zip(row, style))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    return f"<table><thead><tr>{cells(rows[0], 'th')}</tr></thead><tbody>{body}</tbody></table>"
