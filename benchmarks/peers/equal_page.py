"""Page of the comparison at equal measured time: a table and a picture for each network."""

import statistics
from importlib import metadata
from pathlib import Path

from benchmarks.common import machine, markdown, put_section
from benchmarks.peers import driver, equal_time
from benchmarks.peers.groups import OURS, epochs_in_words, lost, training_in_words
from benchmarks.peers.methods import BY_TIME, named
from benchmarks.peers.picture import COLOURS, LEAST_DRAWN, MARKERS

TITLE = "Beside other tools at equal measured time"
#: Heading of a guide under which the comparison can stand.
SECTION = "Other tools at a measured time"
EXPLAINED = (
    "*counted*: fewer multiply-accumulates. *measured*: the original's time over the network's, ratio of medians; "
    "*rounds*: from the tenth to the ninetieth percentile of the ratios of single rounds. *lost*: points of test "
    "accuracy. *busy*: the machine was not quiet in any of the measurements."
)
PACKAGES = ("torch", "onnxruntime", "torch-pruning", "aimet-torch")


def write(out, target, families, epochs, report=None, note="", *, into=None):
    """The page and its picture into the folder and beside `report`, and its section of `into`, where one is named."""
    out = Path(out)
    made, timed = driver.read(out / "results.jsonl"), equal_time.timed_rows(out)
    found = entries(made, timed, families, target, epochs)
    for path in filter(None, (out / "equal-time.md", report)):
        path = Path(path)
        image = path.with_suffix(".png")
        there = draw(image, made, timed, found, target)
        path.write_text(text(found, target, epochs, note, image.name if there else None, made) + "\n")
    if into is not None:
        put_section(into, SECTION, section(found, target, epochs, note, made))
    print(f"{out / 'equal-time.md'}: {len(found)} networks")


def entries(made, timed, families, target, epochs):
    """For each method with a timed network the one closest to the target: its rows by epochs, and its time.

    Seeds of one method stay apart; the table shows their means.
    """
    found = []
    for family in families:
        row = equal_time.chosen(timed, {**family, "epochs": 0}, target)
        if row is None:
            continue
        rows = {count: made.get(driver.key_of({**row, "epochs": count})) for count in (0, *epochs)}
        rows = {count: one for count, one in rows.items() if one and "error" not in one}
        if 0 in rows:
            found.append({**family, "time": timed[driver.key_of(row)], "rows": rows})
    return found


def text(found, target, epochs, note, image, made):
    """The whole page."""
    words = equal_time.__doc__
    command = [line.strip() for line in words.splitlines() if line.startswith("    ")]
    protocol = words.split("Protocol: ")[1].strip()
    parts = [f"# {TITLE}"]
    parts += [line for network in _networks(found) for line in verdicts(found, network, target, epochs)]
    parts += [note] if note else []
    if image:
        parts.append(f"![points of accuracy lost against measured speed-up]({image})")
    for network in _networks(found):
        parts += [f"## {network}", table([one for one in found if one["network"] == network], epochs)]
    parts += [
        EXPLAINED, "## Protocol", "\n".join(["```bash", *command, "```"]), protocol[0].upper() + protocol[1:],
        _versions(made),
    ]  # fmt: skip
    if failures := _failures(made):
        parts += ["## Failures", failures]
    return "\n\n".join(parts)


def section(found, target, epochs, note, made):
    """The comparison under a heading of a guide: no picture, and the protocol by its command."""
    networks = _networks(found)
    parts = [line for network in networks for line in verdicts(found, network, target, epochs)]
    parts += [note] if note else []
    for network in networks:
        parts += [f"### {network}", table([one for one in found if one["network"] == network], epochs)]
    parts += [f"{EXPLAINED} Written by `python -m benchmarks.peers --equal-time {target:g}`.", _versions(made)]
    parts += [f"Failed:\n\n{failures}"] if (failures := _failures(made)) else []
    return "\n\n".join(parts)


def _failures(made):
    return "\n".join(f"- {driver.said(row)}" for row in made.values() if "error" in row)


def _networks(found):
    return list(dict.fromkeys(one["network"] for one in found))


def _groups(found):
    """Entries that differ in the seed alone."""
    groups = {}
    for one in found:
        groups.setdefault(one["method"], []).append(one)
    return list(groups.values())


def mean_points(group, count):
    """Mean points lost by a group after so many epochs; None where not all its seeds were trained."""
    rows = [one["rows"].get(count) for one in group]
    return None if None in rows else 100 * statistics.mean(lost(rows))


def measured(group):
    """Mean measured speed-up of a group."""
    return statistics.mean(one["time"]["measured_speedup"] for one in group)


def table(found, epochs):
    """A line for each method: means over the seeds, and the range of what was lost where there are several."""
    lines = []
    for group in _groups(found):
        tool, method = named(group[0]["method"])
        times, first = [one["time"] for one in group], [one["rows"][0] for one in group]
        line = {
            "tool": tool, "method": method, "counted": f"{statistics.mean(row['counted'] for row in first):.2f}x",
            "measured": f"{measured(group):.2f}x"
            + (" (busy)" if any(t["busy"] for t in times) else ""),
            "rounds": f"{min(t['low'] for t in times):.2f}–{max(t['high'] for t in times):.2f}",
        }  # fmt: skip
        for count in (0, *epochs):
            mean, name = mean_points(group, count), training_in_words(count)
            line[f"lost, {name}"] = None if mean is None else f"{mean:.2f}{_range(group, count)}"
        lines.append(line)
    return markdown(tuple(lines[0]), lines)


def _range(group, count):
    values = [100 * part for part in lost([one["rows"][count] for one in group])]
    return f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""


def verdicts(found, network, target, epochs):
    """What this package loses beside the best of the other tools, a sentence for each length of training."""
    groups = _groups([one for one in found if one["network"] == network])
    ours = next((group for group in groups if group[0]["method"] in BY_TIME), None)
    lines = []
    for count in (0, *epochs) if ours else ():
        own = mean_points(ours, count)
        others = [
            (points, group) for group in groups
            if named(group[0]["method"])[0] != OURS and (points := mean_points(group, count)) is not None
        ]  # fmt: skip
        if own is None or not others:
            continue
        most, best = min(others, key=lambda one: one[0])
        share = f", {own / most:.2f} of it" if most > 0 and own > 0 else ""
        after = f"after {epochs_in_words(count)} of training" if count else "with nothing trained"
        lines.append(
            f"{network}, asked {target:g}x in ONNX Runtime, {after}: decomp (measured {measured(ours):.2f}x) loses "
            f"{own:.2f} points, the best of the others ({' '.join(named(best[0]['method']))}, measured "
            f"{measured(best):.2f}x) {most:.2f}{share}."
        )
    return lines


def _versions(made):
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    counts = sorted({row["train_images"] for row in made.values() if "train_images" in row})
    trained = f" Trained on {', '.join(f'{count:,}' for count in counts)} images." if counts else ""
    return f"{', '.join(found)}; {machine()}; {equal_time.THREADS} threads.{trained}"


def draw(path, made, timed, found, target):
    """Points lost against measured speed-up: all timed networks untrained, those at the target after training."""
    networks = _networks(found)
    if not networks:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = sorted({count for one in found for count in one["rows"]})
    size = (4.6 * len(lengths) + 2.4, 3.6 * len(networks))
    figure, all_axes = pyplot.subplots(len(networks), len(lengths), figsize=size, squeeze=False)
    styles, handles = _styles(found), {}
    for row_of_axes, network in zip(all_axes, networks):
        for axes, count in zip(row_of_axes, lengths):
            for method, points in _points(made, timed, network, count).items():
                if method in styles:
                    handles[method] = axes.plot(*zip(*points), **styles[method])[0]
            axes.axvline(target, color="0.5", linewidth=0.8, linestyle=":")
            if not count:
                axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
            axes.invert_yaxis()
            axes.set(title=f"{network}, {training_in_words(count)}", xlabel="times as fast, measured in ONNX Runtime")
            axes.grid(alpha=0.3, which="both")
        row_of_axes[0].set_ylabel("points of test accuracy lost")
    names = [method for method in styles if method in handles]
    figure.legend(
        [handles[m] for m in names], [" ".join(named(m)) for m in names], fontsize=8, loc="outside center right"
    )
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _styles(found):
    styles, drawn = {}, {}
    for method in dict.fromkeys(one["method"] for one in found):
        tool = named(method)[0]
        place = drawn[tool] = drawn.get(tool, -1) + 1
        styles[method] = {
            "color": COLOURS.get(tool, "0.4"), "marker": MARKERS[place % len(MARKERS)], "markersize": 6,
            "linewidth": 2.5 if method in BY_TIME else 1, "linestyle": "-" if place % 2 == 0 else "--",
        }  # fmt: skip
    return styles


def _points(made, timed, network, count):
    """By method, measured speed-up and points lost of every timed network with this length of training, in order."""
    points = {}
    for time in timed.values():
        row = made.get(driver.key_of({**time, "epochs": count}))
        if time["network"] == network and row and "error" not in row:
            points.setdefault(time["method"], []).append((time["measured_speedup"], 100 * lost([row])[0]))
    return {
        method: sorted((x, y if count else max(y, LEAST_DRAWN)) for x, y in found) for method, found in points.items()
    }
