"""Rows of the comparison: a file of them, and the table of means over seeds."""

import json
import statistics

from benchmarks.common import machine, markdown

FIELDS = ("method", "seeds", "accuracy", "forgetting", "size", "shared", "seconds")


def read(path):
    """Rows of a file, by data, method and seed."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["data"], row["method"], row["seed"]): row for row in rows}


def append(path, row):
    """Add a row to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "machine": machine()}) + "\n")


def forgetting(matrix):
    """Mean over the tasks of what each lost: accuracy right after learning less accuracy at the end."""
    return statistics.mean(matrix[task][task] - matrix[-1][task] for task in range(len(matrix)))


def summary(rows, data):
    """One row per method: means over seeds with standard errors, in percent."""
    methods = list(dict.fromkeys(row["method"] for row in rows if row["data"] == data))
    table = []
    for method in methods:
        own = [row for row in rows if row["data"] == data and row["method"] == method]
        means = [100 * statistics.mean(row["matrix"][-1]) for row in own]
        lost = [100 * forgetting(row["matrix"]) for row in own]
        shared = [value for row in own for value in row.get("shared") or [] if value is not None]
        table.append({
            "method": method, "seeds": len(own), "accuracy": _with_error(means), "forgetting": _with_error(lost),
            "size": f"{statistics.mean(row['size'] for row in own):.2f}",
            "shared": f"{statistics.mean(shared):.2f}" if shared else "",
            "seconds": f"{statistics.mean(row['seconds'] for row in own):.0f}",
        })  # fmt: skip
    return table


def _with_error(values):
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


def page(rows, data):
    """The table as Markdown, with the machines that made it."""
    machines = sorted({row["machine"] for row in rows if row["data"] == data})
    return f"{markdown(FIELDS, summary(rows, data))}\n\n{data}; {'; '.join(machines)}."
