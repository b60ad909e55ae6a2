"""Tables, picture and page of the benchmark of asked and measured time."""

import statistics
from importlib import metadata

from benchmarks import clock_planning
from benchmarks.common import machine, markdown
from decomp.pipelines.decomposition.target_search import LEAST, MOST

#: A row of the table is of one of each; the code has a column where rows have a label.
KEY = ("code", "network", "runtime", "asked")
FIELDS = (
    *KEY, "plans", "planned", "measured", "low", "high", "kept", "busy", "table error",
    "seconds",
)  # fmt: skip

PLANNING = (
    "own seconds: of `decompose --plan-only`, for multiply-accumulates (macs) with the survey of the layers, for the "
    "time in a runtime from the curves of that survey. seconds: with the survey in both. processor seconds: the same "
    "of the processors. Written by `python -m benchmarks.clock_planning`."
)


def is_kept(row):
    """Whether a repetition measured what was asked."""
    return LEAST * row["asked"] <= row["measured_speedup"] <= MOST * row["asked"]


def is_busy(row):
    """Whether the machine was busy in a repetition, or when its plan was made."""
    return bool(row.get("busy") or row.get("plan_busy"))


def counted(rows, with_busy=False):
    """The repetitions that count."""
    return [row for row in rows if "measured_speedup" in row and (with_busy or not is_busy(row))]


def key_of(row):
    """Code, network, runtime and asked speed-up of a row."""
    return tuple(row.get(name, "") for name in KEY)


def groups_of(rows):
    """The rows of each key, in the order of the rows."""
    return {key: [row for row in rows if key_of(row) == key] for key in dict.fromkeys(map(key_of, rows))}


def summary(rows, with_busy=False):
    """A row of the table for each code, network, runtime and asked speed-up, in the order of the rows."""
    table = []
    for key, own in groups_of(rows).items():
        timed = [row for row in own if "measured_speedup" in row]
        if not timed:
            continue
        last, used = timed[-1], counted(timed, with_busy)
        entry = dict(zip(KEY, key, strict=True))
        entry |= {
            "plans": len(last.get("tries", [last])), "planned": last["planned"], "seconds": last.get("seconds"),
            "busy": len(timed) - len(counted(timed)),
        }  # fmt: skip
        entry["table error"] = f"{100 * last['table_error']:+.0f} %"
        if used:
            found = [row["measured_speedup"] for row in used]
            entry |= {"measured": statistics.median(found), "low": min(found), "high": max(found)}
            entry["kept"] = f"{sum(map(is_kept, used))} of {len(used)}"
        table.append(entry)
    return table


def verdict(rows, with_busy=False):
    """How many promises were kept, and how far off the table of times was; of several codes each for itself."""
    codes = list(dict.fromkeys(row.get("code", "") for row in rows))
    if len(codes) > 1:
        parts = {code: [row for row in rows if row.get("code", "") == code] for code in codes}
        lines = [f"- {code or 'without a label'}: {verdict(own, with_busy)}" for code, own in parts.items()]
        return "\n".join(lines)
    used, timed = counted(rows, with_busy), [row for row in rows if "measured_speedup" in row]
    kept, busy = sum(map(is_kept, used)), sum(map(is_busy, timed))
    refused = len({key_of(row) for row in rows if "refused" in row})
    errors = [abs(entry) for entry in {key_of(r): r["table_error"] for r in rows if "table_error" in r}.values()]
    words = [f"Kept: {kept} of {len(used)} repetitions within {LEAST:g} to {MOST:.2f} of what was asked."]
    if busy:
        plans = sum(bool(row.get("plan_busy")) for row in timed)
        planned = f" ({plans} of them of plans that the command called uncertain each time)" if plans else ""
        words.append(f"{busy} on a busy machine {'are counted too' if with_busy else 'are left out'}{planned}.")
    made = {key_of(row): row["tries"] for row in rows if row.get("tries")}
    if again := sum(len(tries) - 1 for tries in made.values()):
        one = "1 plan was" if again == 1 else f"{again} plans were"
        words.append(f"{one} made again, as the command called the one before uncertain.")
    if refused:
        words.append(f"Refused: {refused}.")
    if errors:
        words.append(
            "The table of times, before whole networks correct it, is off by "
            f"{100 * statistics.median(errors):.0f} % in the median and {100 * max(errors):.0f} % at most."
        )
    return " ".join(words)


def notes(rows):
    """What was refused, could only be met coarsely, broke its promise or did not count, a line each."""
    lines = []
    for row in rows:
        code = f", {row['code']}" if row.get("code") else ""
        what = f"{row['network']} in {row['runtime']} at {row['asked']}x{code}"
        if "refused" in row:
            lines.append(f"- {what}: refused. {row['refused']}")
            continue
        if "slower" in row:
            lines.append(f"- {what}: the closest sizes measured {row['slower']:.2f}x and {row['faster']:.2f}x.")
        if reason := failure(row):
            lines.append(f"- {what}: measured {row['measured_speedup']:.2f}x, planned {row['planned']:.2f}x; {reason}.")
    return list(dict.fromkeys(lines))


def failure(row):
    """Why a repetition does not count, or what is known of one that broke its promise; nothing where it kept it."""
    if row.get("plan_busy"):
        signs = f": {'; '.join(row['plan_signs'])}" if row.get("plan_signs") else ""
        return f"not counted, as the command called its plan uncertain{signs}"
    if row.get("busy"):
        return f"not counted, busy: {'; '.join(row.get('signs') or ['the signs were not kept'])}"
    if is_kept(row):
        return ""
    reason = "promise broken, on a machine without a sign of being busy"
    if row.get("plan_original_ms") and "original_ms" in row:
        reason += f"; the original took {row['plan_original_ms']:.3g} ms in the plan, {row['original_ms']:.3g} ms here"
    return reason


def versions():
    """The installed runtimes."""
    found = []
    for name in ("torch", "onnxruntime", "openvino"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def page(rows, threads, with_busy, docstring, planning=()):
    """The page as Markdown; `planning` are rows of :mod:`benchmarks.clock_planning`."""
    protocol = docstring.split("Protocol: ")[1].strip()
    where = f"{machine()}; {threads} threads, batch of 1, contiguous; {versions()}"
    fields = FIELDS if any(row.get("code") for row in rows) else FIELDS[1:]
    parts = ["# Asked and measured speed-up", verdict(rows, with_busy), markdown(fields, summary(rows, with_busy))]
    parts += ["\n".join(notes(rows))] if notes(rows) else []
    explained = (
        "plans: made until the command called one certain. planned: measured when the last one was made. measured, "
        "low, high: median, least and most of the repetitions. table error: the first proposal's expected speed-up "
        "over its measured one. seconds: of the command that made the plan."
        + (" code: the state of the code that planned." if fields is FIELDS else "")
    )
    parts += [explained, f"Written by `python -m benchmarks.clock`. {protocol[0].upper()}{protocol[1:]}", where]
    if planning:
        parts += ["## Time of planning", clock_planning.table(planning), PLANNING]
    return "\n\n".join(parts) + "\n"


def draw(path, rows, with_busy):
    """Measured over asked speed-up of every plan, with the band in which a promise is kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [entry for entry in summary(rows, with_busy) if "measured" in entry]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.32 * len(entries)))
    axes.axvspan(LEAST, MOST, color="0.9", label="kept")
    axes.axvline(1, color="0.6", linewidth=1)
    for name in dict.fromkeys(entry["runtime"] for entry in entries):
        own = [(place, e) for place, e in enumerate(entries) if e["runtime"] == name]
        middle = [e["measured"] / e["asked"] for _, e in own]
        spread = [
            [m - e["low"] / e["asked"] for m, (_, e) in zip(middle, own)],
            [e["high"] / e["asked"] - m for m, (_, e) in zip(middle, own)],
        ]
        axes.errorbar(middle, [place for place, _ in own], xerr=spread, fmt="o", markersize=4, capsize=2, label=name)
    names = [
        f"{e['network'].removeprefix('zoo:')}, {e['asked']}x" + (f", {e['code']}" if e["code"] else "") for e in entries
    ]
    axes.set_yticks(range(len(entries)), names)
    axes.invert_yaxis()
    axes.set_xlabel("measured over asked speed-up, in fresh processes")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def write(path, text, rows, with_busy):
    """Write the page, and the picture beside it where something was measured."""
    if any("measured" in entry for entry in summary(rows, with_busy)):
        picture = path.with_suffix(".png")
        draw(picture, rows, with_busy)
        text += f"\n![Measured over asked speed-up of every plan]({picture.name})\n"
    path.write_text(text)
