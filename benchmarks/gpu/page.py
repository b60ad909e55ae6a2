"""Page of the benchmark on a GPU: the table of figures below the guide's text."""

from benchmarks.common import markdown
from benchmarks.gpu.settings import aim, met

FIELDS = ("part", "figure", "value", "unit", "aim", "met", "note")
#: The part of the page that the benchmark writes begins here.
MARK = "## Measured"


def table(rows):
    """The figures as a Markdown table."""
    shown = [
        {"figure": row["what"], **row, "aim": aim(row), "met": met(row), "note": row["note"].replace("|", "/")}
        for row in rows
        if row["what"] != "ended"
    ]
    return markdown(FIELDS, shown)


def write(path, rows):
    """Replace the figures of a page, and leave the text above them."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# On a GPU\n\n"
    about = list(dict.fromkeys(f"{row['device']}, torch {row['torch']}" for row in rows if "device" in row))
    how = "By `python -m benchmarks.gpu --out runs/gpu --report docs/gpu.md`; each part once, in a process of its own."
    figures = f"{MARK}\n\n{'; '.join(about)}. {how}\n\n{table(rows)}\n"
    path.write_text(text.partition(MARK)[0].rstrip() + "\n\n" + figures, encoding="utf-8")
