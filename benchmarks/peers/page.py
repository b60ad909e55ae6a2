"""Tables, picture and page of all rows that are there."""

import importlib.metadata
import statistics
from pathlib import Path

from benchmarks import peers
from benchmarks.common import machine, markdown, write_csv
from benchmarks.peers import driver, timing
from benchmarks.peers.methods import METHODS

FIELDS = (
    "network", "data", "seed", "speedup", "epochs", "tool", "method", "counted", "macs", "params", "top1", "agreement",
    "kl", "seconds", "peak_mib", "faster_1", "faster_low_1", "faster_high_1", "faster_64", "faster_low_64",
    "faster_high_64", "threads", "error", "file",
)  # fmt: skip
PACKAGES = ("torch", "torch-pruning", "tensorly", "aimet-torch", "numpy")
COLUMNS = (
    "tool", "method", "counted", "parameters", "top-1", "agreement", "KL", "tool seconds", "peak MiB", "batch 1",
    "batch 64",
)  # fmt: skip
LINES = {"decomp": "-", "torch-pruning": "--", "tensorly": ":", "aimet-torch": "-."}


def write(out, report=None):
    """CSV, Markdown and pictures into the folder; the page with its pictures beside it as well, where one is named."""
    out = Path(out)
    rows = sorted(driver.read(out / "results.jsonl").values(), key=_order)
    times = timing.read(out)
    for row in rows:
        tool, _, name = row["method"].partition("/")
        row.update({k: v for k, v in times.get(driver.key_of(row), {}).items() if k not in row}, tool=tool, method=name)
    write_csv(out / "table.csv", FIELDS, rows)
    for target in filter(None, (out / "table.md", report)):
        target = Path(target)
        pictures = {}
        for network in dict.fromkeys(row["network"] for row in rows):
            path = target.with_name(f"{target.stem}-{network.split(':')[-1]}.png")
            if draw(path, [r for r in rows if r["network"] == network and "error" not in r and not r["epochs"]]):
                pictures[network] = path.name
        target.write_text(text(rows, pictures) + "\n")
    print(f"{out / 'table.md'} and table.csv: {len(rows)} rows")


def _order(row):
    keys = list(METHODS)
    place = keys.index(row["method"]) if row["method"] in keys else len(keys)
    return row["network"], row["epochs"], row["speedup"], place, row["seed"]


def text(rows, pictures):
    """The whole page."""
    parts = [
        "# Beside other tools",
        "Written by `python -m benchmarks.peers`, from what was measured and nothing else.",
    ]
    parts += ["## Protocol", "```bash", *_commands(), "```", _protocol(), _notes()]
    parts += ["## Versions", versions()]
    for network in dict.fromkeys(row["network"] for row in rows):
        of_network = [row for row in rows if row["network"] == network]
        parts.append(f"## {network}, {of_network[0]['data']}")
        if network in pictures:
            parts.append(f"![accuracy against counted speed-up]({pictures[network]})")
        for epochs, speedup in dict.fromkeys((row["epochs"], row["speedup"]) for row in of_network):
            group = [row for row in of_network if (row["epochs"], row["speedup"]) == (epochs, speedup)]
            trained = "nothing trained" if not epochs else f"{epochs} epoch{'s' * (epochs > 1)} of training"
            parts += [f"### {speedup:g}x, {trained}", markdown(COLUMNS, [_cells(g) for g in by_method(group)])]
    failures = [row for row in rows if "error" in row]
    if failures:
        parts += ["## What did not work", *(_failure(row) for row in failures)]
    parts += ["## What was not run", missing(rows)]
    return "\n\n".join(parts).replace("```bash\n\n", "```bash\n").replace("\n\n```\n\nThe", "\n```\n\nThe")


def by_method(rows):
    """Lists of rows that differ in the seed alone."""
    groups = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault((row["tool"], row["method"]), []).append(row)
    return list(groups.values())


def _cells(group):
    """One line of a table: means over the seeds, and the range of the accuracy where there are several."""

    def mean(name):
        return statistics.mean(row[name] for row in group)

    def faster(size):
        timed = [row for row in group if f"faster_{size}" in row]
        if not timed:
            return None
        low, high = (min(r[f"faster_low_{size}"] for r in timed), max(r[f"faster_high_{size}"] for r in timed))
        return f"{statistics.mean(r[f'faster_{size}'] for r in timed):.2f}x ({low:.2f}–{high:.2f})"

    tops = [row["top1"] for row in group]
    spread = f" ({min(tops):.2%}–{max(tops):.2%})" if len(tops) > 1 else ""
    return {
        "tool": group[0]["tool"], "method": group[0]["method"], "counted": f"{mean('counted'):.2f}x",
        "parameters": f"{mean('params'):,.0f}", "top-1": f"{mean('top1'):.2%}{spread}",
        "agreement": f"{mean('agreement'):.2%}", "KL": f"{mean('kl'):.4f}", "tool seconds": f"{mean('seconds'):.0f}",
        "peak MiB": f"{mean('peak_mib'):.0f}", "batch 1": faster(1), "batch 64": faster(64),
    }  # fmt: skip


def _commands():
    return [line.strip() for line in peers.__doc__.splitlines() if line.startswith("    ")]


def _protocol():
    return peers.__doc__.split("Protocol: ")[1].strip().replace("\n", " ")


def _notes():
    labels = ", ".join(m.key for m in METHODS.values() if m.labels)
    return (
        "*+bn*: the statistics of the batch normalisations are taken anew on the calibration images, by the mean over "
        "batches; *folded*: they are folded into the weights before the tool sees these. Torch-Pruning *uniform* "
        "prunes the same share of every layer, *global* ranks the channels of all layers together. *KL* is the mean "
        "divergence of the class probabilities from the original's, in nats. These methods read the labels of the "
        f"calibration images: {labels}. *batch 1* and *batch 64*: how many times faster than the original, median and "
        "quartiles of interleaved rounds; empty where it has not been measured."
    )


def versions():
    """Versions of the tools in this environment and the machine."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found) + f"; {machine()}, one thread for each row."


def _failure(row):
    return f"- {row['network']} {row['tool']} {row['method']} {row['speedup']:g}x, {row['epochs']} epochs: `{row['error']}`"


def missing(rows):
    """What the issue of such a comparison is and has no rows here."""
    there = {(row["network"], row["speedup"], row["epochs"], f"{row['tool']}/{row['method']}") for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    lines = [f"- Seeds: {', '.join(map(str, seeds))} were run."]
    for network, speedup, epochs in dict.fromkeys(key[:3] for key in sorted(there)):
        absent = [key for key in METHODS if (network, speedup, epochs, key.replace("-", " ")) not in _spoken(there)]
        if absent:
            lines.append(f"- {network}, {speedup:g}x, {epochs} epochs: {', '.join(absent)}.")
    if not any("faster_1" in row for row in rows):
        lines.append("- Latency.")
    return "\n".join(lines)


def _spoken(keys):
    return {(*key[:3], key[3].replace("-", " ")) for key in keys}


def draw(path, rows):
    """Accuracy against counted speed-up, a line for each method; False where there is nothing to draw."""
    if not rows:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 6))
    for (tool, method), group in _lines(rows).items():
        points = sorted(
            (statistics.mean(r["counted"] for r in g), statistics.mean(r["top1"] for r in g)) for g in group
        )
        style = {"linestyle": LINES.get(tool, "-"), "linewidth": 2 if tool == "decomp" else 1, "marker": "."}
        axes.plot([x for x, _ in points], [100 * y for _, y in points], label=f"{tool} {method}", **style)
    axes.set_xlabel("times fewer multiply-accumulates, counted")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{rows[0]['network']}, nothing trained")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _lines(rows):
    lines = {}
    for row in rows:
        lines.setdefault((row["tool"], row["method"]), {}).setdefault(row["speedup"], []).append(row)
    return {name: list(group.values()) for name, group in lines.items()}
