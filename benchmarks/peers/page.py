"""Page of the comparison: tables and figure of all rows available."""

import importlib.metadata
import statistics
from collections import Counter
from pathlib import Path

from benchmarks import peers
from benchmarks.common import markdown, write_csv
from benchmarks.peers import driver, graphs, noise, picture, timing
from benchmarks.peers.groups import DEFAULT, OURS, by_method, epochs_in_words, mean_lost, training_in_words
from benchmarks.peers.methods import METHODS, named

FIELDS = (
    "network", "data", "seed", "speedup", "epochs", "tool", "method", "counted", "macs", "params", "top1",
    "original_top1", "agreement", "kl", "seconds", "peak_mib", "faster_1", "faster_low_1", "faster_high_1", "faster_64",
    "faster_low_64", "faster_high_64", "threads", "machine", "error", "file",
)  # fmt: skip
PACKAGES = ("torch", "torch-pruning", "tensorly", "aimet-torch", "numpy")
COLUMNS = (
    "tool", "method", "counted", "parameters", "top-1", "agreement", "KL", "tool seconds", "peak MiB", "batch 1",
    "batch 64",
)  # fmt: skip
SPEEDUPS, SEEDS, EPOCHS = (2, 3, 4, 5), (0, 1, 2), (1, 5)
TITLE = "Beside other tools"
AHEAD = "points that decomp is ahead of"


def write(out, report=None, note="", title=TITLE):
    """CSV, Markdown and pictures into the folder; the page with the same beside it as well, where one is named."""
    out = Path(out)
    rows = sorted(driver.read(out / "results.jsonl").values(), key=_order)
    times = timing.read(out)
    for row in rows:
        tool, name = named(row["method"])
        row.update({k: v for k, v in times.get(driver.key_of(row), {}).items() if k not in row}, tool=tool, method=name)
    for target in filter(None, (out / "table.md", report)):
        target, pictures = Path(target), {}
        write_csv(target.with_suffix(".csv"), FIELDS, rows)
        for network in dict.fromkeys(row["network"] for row in rows):
            path = target.with_name(f"{target.stem}-{network.split(':')[-1]}.png")
            if picture.draw(path, [r for r in rows if r["network"] == network and "error" not in r]):
                pictures[network] = path.name
        target.write_text(text(rows, pictures, note, graphs.rows(out), title) + "\n")
    print(f"{out / 'table.md'} and table.csv: {len(rows)} rows")


def _order(row):
    keys = list(METHODS)
    place = keys.index(row["method"]) if row["method"] in keys else len(keys)
    return row["network"], row["epochs"], row["speedup"], place, row["seed"]


def text(rows, pictures, note="", of_graphs=([], []), title=TITLE):
    """The whole page."""
    parts = [
        f"# {title}",
        "Written by `python -m benchmarks.peers` from its measurements alone.",
    ]
    parts += [note] if note else []
    parts += ["## Protocol", "\n".join(["```bash", *_commands(), "```"]), _protocol(), _notes()]
    parts += ["## Versions", versions(rows)]
    for network in dict.fromkeys(row["network"] for row in rows):
        of_network = [row for row in rows if row["network"] == network]
        parts.append(f"## {network}, {of_network[0]['data']}")
        parts += [summary(of_network), ahead(of_network)]
        if network in pictures:
            parts.append(f"![accuracy against counted speed-up]({pictures[network]})")
        for epochs, speedup in dict.fromkeys((row["epochs"], row["speedup"]) for row in of_network):
            group = [row for row in of_network if (row["epochs"], row["speedup"]) == (epochs, speedup)]
            title = f"### {speedup:g}x, {training_in_words(epochs, group[0].get('train_images'))}"
            parts += [title, markdown(COLUMNS, [_cells(g) for g in by_method(group)])]
    lines, words = of_graphs
    if lines:
        names = dict.fromkeys(name for line in lines for name in line)
        parts += ["## Twelve small graphs", " ".join(graphs.__doc__.split()), markdown(tuple(names), lines)]
        parts += ["Messages:", "\n".join(words)] if words else []
    failures = [row for row in rows if "error" in row]
    if failures:
        parts += ["## Failures", *(_failure(row) for row in failures)]
    parts += ["## What was not run", missing(rows)]
    return "\n\n".join(parts)


def summary(rows):
    """Points of accuracy lost at each speed-up by this package and by the best method of every other tool.

    The best is picked from the finished table, by what it lost on the test images: this favours the others.
    """
    lines, columns = {}, _columns(rows)
    for column, groups in columns.items():
        for tool, best in best_of_each(groups).items():
            cell = f"{mean_lost(best):.2f} ({best[0]['method']})"
            lines.setdefault(tool, {"points lost": tool})[column] = cell
    return markdown(("points lost", *columns), list(lines.values()))


def ahead(rows):
    """The same against each other tool: the difference in points, its standard error, and whether it is a tie."""
    lines, columns = {}, _columns(rows)
    for column, groups in columns.items():
        best = best_of_each(groups)
        for tool, theirs in best.items():
            found = noise.difference(best.get(OURS, []), theirs) if tool != OURS else None
            if found is not None:
                (points, error), count = (100 * x for x in found[:2]), found[2]
                words = [f"{points:+.2f} ± {error:.2f}", f"{count} seed{'s' * (count > 1)}"]
                words += ["a tie"] if abs(points) < noise.TIE * error else []
                lines.setdefault(tool, {AHEAD: tool})[column] = ", ".join(words)
    return markdown((AHEAD, *columns), list(lines.values())) if lines else ""


def _columns(rows):
    """Groups of rows that differ in the seed alone, by column: speed-up and training."""
    columns = {}
    for epochs, speedup in dict.fromkeys((row["epochs"], row["speedup"]) for row in rows):
        name = f"{speedup:g}x" + (f", {epochs_in_words(epochs)}" if epochs else "")
        columns[name] = by_method([row for row in rows if (row["epochs"], row["speedup"]) == (epochs, speedup)])
    return columns


def best_of_each(groups):
    """The group of every tool that lost least; of this package always all steps, where that is there."""
    best = {}
    for tool in dict.fromkeys(group[0]["tool"] for group in groups):
        own = [group for group in groups if group[0]["tool"] == tool]
        if tool == OURS:
            own = [group for group in own if group[0]["method"] == DEFAULT] or own
        best[tool] = min(own, key=mean_lost)
    return best


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
    words = peers.__doc__.split("Protocol: ")[1].strip()
    return words[0].upper() + words[1:]


def _notes():
    labels = ", ".join(m.key for m in METHODS.values() if m.labels)
    return (
        "*+bn*: the statistics of the batch normalisations are estimated again on the calibration images, as the "
        "mean over batches; *folded*: they are folded into the weights before the tool gets the network. "
        "Torch-Pruning *uniform* prunes the same share of every layer, *global* ranks the channels of all layers "
        "together. *KL* is the mean divergence of the class probabilities from the original's, in nats. These "
        f"methods read the labels of the calibration images: {labels}. *batch 1* and *batch 64*: the original's "
        "time over the network's, median and quartiles of interleaved rounds in eager PyTorch, normalisations "
        f"folded in both; empty where not measured. *{AHEAD.capitalize()}*: from each tool's best method, on the "
        "same images and seeds, ± one standard error over images and, where there are several, seeds; below two "
        "standard errors it is called a tie. A single seed contains no estimate of the spread over seeds."
    )


def versions(rows):
    """Versions of the tools in this environment, and the machines that the rows were made on."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    made_on = Counter(row["machine"] for row in rows if "machine" in row)
    where = "; ".join(f"{name} ({count} rows)" for name, count in made_on.most_common())
    return ", ".join(found) + f". One thread for each row, on: {where or 'machines that were not recorded'}."


def _failure(row):
    return f"- {driver.said({**row, 'error': '`' + row['error'] + '`'})}"


def missing(rows):
    """Which methods have no rows at which speed-ups, seeds and epochs, and which columns are empty."""
    there = {(row["tool"], row["method"]) for row in rows}
    nowhere = [f"{m.tool} {m.name}" for m in METHODS.values() if (m.tool, m.name) not in there]
    lines = [f"- Nowhere: {', '.join(nowhere)}."] if nowhere else []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network and not row["epochs"]]
        for speedup in SPEEDUPS:
            count = len({row["method"] for row in own if row["speedup"] == speedup})
            if count < len(METHODS):
                lines.append(f"- {network} at {speedup}x: {len(METHODS) - count} of the {len(METHODS)} methods.")
        trained = [row for row in rows if row["network"] == network]
        lines += [f"- {network}, seed {seed}: all{_but(own, seed=seed)}." for seed in SEEDS[1:]]
        lines += [f"- {network}, {training_in_words(epochs)}: all{_but(trained, epochs=epochs)}." for epochs in EPOCHS]
    if not any("faster_1" in row for row in rows):
        lines.append("- Latency (`--latency`).")
    return "\n".join(lines)


def _but(rows, **wanted):
    """' but' the methods that have such rows, with the speed-ups at which they have."""
    found = {}
    for row in rows:
        if all(row[name] == value for name, value in wanted.items()):
            found.setdefault(f"{row['tool']} {row['method']}", set()).add(row["speedup"])
    words = [f"{name} ({', '.join(f'{s:g}x' for s in sorted(speedups))})" for name, speedups in found.items()]
    return f" but {', '.join(words)}" if words else ""
