"""Tables of texts, for a terminal and for a browser."""

import html


def text_table(rows, left=1):
    """Rows of cells as lines, the first `left` columns flush left, the others right.

    Parameters
    ----------
    rows : list of sequence of str
        The header first; equally many cells in each.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def html_table(rows, left=1):
    """The same as HTML, with every text escaped."""

    def cells(row, tag):
        style = ["left" if i < left else "right" for i in range(len(row))]
        return "".join(f'<{tag} style="text-align:{s}">{html.escape(c)}</{tag}>' for c, s in zip(row, style))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    return f"<table><thead><tr>{cells(rows[0], 'th')}</tr></thead><tbody>{body}</tbody></table>"
