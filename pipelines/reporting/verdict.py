"""Verdict of a report: cost, time and accuracy of the last network against the original, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decomp.runtimes.names import RUNTIMES

from ..console.words import counted
from ..measure.intervals import paired_difference, share_words, wilson
from ..measure.latency import Measurement, comparable
from .collect import tested_on
from .summary import Summary
from .tables import Table

#: Ratio of counted to measured speed-up from which the two are said to differ.
APART = 1.4
#: Part of a promised speed-up above which a later measurement, perhaps in another state of the machine, keeps it.
KEPT = 0.9
#: The runtimes in a sentence.
RUNTIME_WORDS = {
    "eager": "eager PyTorch", "compile": "compiled PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO",
}  # fmt: skip
#: Begin of the note of an evaluation on a busy machine.
UNRELIABLE = "unreliable"
#: Largest deviation of a speed-up from 1 that is no change.
SAME = 0.05


def title(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """The network, the stages that it went through, and the quantities that were measured.

    Parameters
    ----------
    config : mapping
        Content of run.json.
    report : mapping or None
        Content of report.json; None where nothing was evaluated.
    """
    stages = config["stages"]
    model = (stages.get("freeze") or stages.get("train") or {}).get("asked", {}).get("model", "a network")
    if set(stages) == {"train"}:
        return f"{model}, trained ({stages['train'].get('asked', {}).get('scheme', 'standard')})"
    words = {"decompose": "decomposed", "prune": "pruned", "finetune": "fine-tuned"}
    done = [word for stage, word in words.items() if stage in stages]
    if "finetune" in stages and (stages["finetune"].get("facts") or {}).get("best_epoch") == 0:
        done.remove("fine-tuned")  # no epoch improved the network
    first = f"{model}, {' and '.join(done)}" if done else f"{model}, not decomposed yet"
    if report is None:
        return first if not done else f"{first}: cost counted, accuracy and time not measured"
    c = report["conditions"]
    quality = "accuracy" if report["rows"][-1]["top1"] is not None else "closeness to the original"
    tested = f"{quality} on {tested_on(report)}, " if c["n_images"] else ""
    return f"{first}: {tested}time of a batch of {c['batch_size']}"


def verdict(report: Mapping[str, Any] | None, summary: Summary | None) -> str | None:
    """The verdict; None where there is no network besides the original.

    Parameters
    ----------
    report : mapping or None
        Content of report.json.
    summary : Summary or None
        Of the decomposition.
    """
    rows = report["rows"] if report else []
    if len(rows) < 2:
        if summary is None:
            return None
        counted = fewer(summary.macs_before / max(summary.macs_after, 1))
        parts = [counted, _closeness(summary), "accuracy and time are not measured yet"]
        words = "; ".join(part for part in parts if part)
        return f"{words[:1].upper()}{words[1:]}."
    assert report is not None
    first, last, c = rows[0], rows[-1], report["conditions"]
    busy = any(note.startswith(UNRELIABLE) for note in report["notes"])
    times = _times(report, last)
    none = ("", "both ", "all ")[min(len(times), 3) - 1]
    doubt = f" ({none}not reliable, the machine was busy)" if busy else ""
    time = f"{' and '.join(times)}{doubt} at batch {c['batch_size']} on {_machine(c)}"
    quality = quality_words(report, first, last) or _closeness(summary)
    parts = [fewer(last["counted_speedup"]), time, quality]
    words = ", ".join(part for part in parts if part)
    promised = "" if _place_of_promise(report, last) else _promise_words(report)
    return f"{words[:1].upper()}{words[1:]}{promised}."


def _closeness(summary: Summary | None) -> str:
    """The closeness of the outputs in the words of decompose; of several outputs their mean."""
    return str(summary.fidelity["words"]).split("\n")[0] if summary and summary.fidelity else ""


def _times(report: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """The measured speed-ups of a network, each with its runtime; that of the table of networks first."""
    c = report["conditions"]
    where = c.get("runtime", "eager"), c["layout"]
    found = [(where, last["measured_speedup"]), *(item for item in _elsewhere(report, last) if item[0] != where)]
    promised = _place_of_promise(report, last)
    return [
        f"{faster(speedup)} in {_runtime_words(*place)}{_promise_words(report) if place == promised else ''}"
        for place, speedup in found
    ]


def _promise(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The time that was measured when the network was planned; empty where its sizes were not."""
    planned = report["conditions"].get("planned") or {}
    return planned if planned.get("speedup") else {}


def _place_of_promise(report: Mapping[str, Any], last: Mapping[str, Any]) -> tuple[str, str] | None:
    """Runtime and layout of the promise where the network was timed there, with its batch and threads."""
    c, promise = report["conditions"], _promise(report)
    if not promise or promise["batch_size"] != c["batch_size"] or promise["threads"] not in (None, c["threads"]):
        return None
    place = promise["runtime"], promise["layout"]
    measured = {(c.get("runtime", "eager"), c["layout"]), *(found for found, _ in _elsewhere(report, last))}
    return place if place in measured else None


def _keeps_promise(report: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    place = _place_of_promise(report, last)
    own = {(report["conditions"].get("runtime", "eager"), report["conditions"]["layout"]): last["measured_speedup"]}
    return place is not None and {**dict(_elsewhere(report, last)), **own}[place] > KEPT * _promise(report)["speedup"]


def _promise_words(report: Mapping[str, Any]) -> str:
    """The promise in brackets, with its conditions where it was not measured again; empty where none was made."""
    c, promise = report["conditions"], _promise(report)
    if not promise:
        return ""
    words = f"when it was planned: {promise['speedup']:.2f}x"
    if _place_of_promise(report, report["rows"][-1]):
        return f" ({words})"
    threads = "" if promise["threads"] in (None, c["threads"]) else f" with {counted(promise['threads'], 'thread')}"
    place = _runtime_words(promise["runtime"], promise["layout"])
    return f" ({words} in {place} at batch {promise['batch_size']}{threads}, not measured here)"


def _elsewhere(report: Mapping[str, Any], last: Mapping[str, Any]) -> list[tuple[tuple[str, str], float]]:
    """Runtime and layout, and the measured speed-up there, of all measurements on this machine with this batch."""
    return [
        ((one.conditions["runtime"], one.conditions["layout"]), time.speedup)
        for one in _measured_here(report)
        for time in one.times
        if time.network == last["network"] and time.speedup is not None
    ]


def _measured_here(report: Mapping[str, Any]) -> list[Measurement]:
    measured = [Measurement.of(entry) for entry in report.get("latencies") or []]
    return comparable(measured, measured[-1]) if measured else []


def _runtime_words(runtime: str, layout: str) -> str:
    return RUNTIME_WORDS[runtime] + (" with channels last" if layout == "channels-last" else "")


def _machine(conditions: Mapping[str, Any]) -> str:
    if conditions["device"] != "CPU":
        return str(conditions["device"])
    return f"this CPU with {counted(conditions['threads'], 'thread')}"


def fewer(speedup: float) -> str:
    """A counted speed-up in words."""
    return f"{speedup:.1f}x fewer multiply-accumulates" if speedup > 1 else "no fewer multiply-accumulates"


def faster(speedup: float) -> str:
    """A measured speed-up in words."""
    if abs(round(speedup, 2) - 1) <= SAME + 1e-9:
        return f"no faster ({speedup:.2f}x)"
    return f"{speedup:.1f}x as fast" if speedup > 1 else f"slower ({speedup:.2f}x as fast)"


def best_of(table: Table) -> str:
    """The most accurate and the fastest compressed network of several runs, in words; empty where there is none."""
    rows = [row for row in table.dicts() if row["network"] != "original"]
    key = next((name for name in ("top1", "agreement") if rows and rows[0][name] is not None), None)
    if key is None:
        return ""

    def words(row: Mapping[str, Any]) -> str:
        share = f"{'top-1' if key == 'top1' else 'same top class'} {share_words(row[key], row['n_images'])}"
        return f"{row['run']}, {row['network']}: {share}, {faster(row['measured_speedup'])}"

    best = max(rows, key=lambda row: (row[key], row["measured_speedup"]))
    fastest = max(rows, key=lambda row: row["measured_speedup"])
    if best is fastest:
        return f"Most accurate and fastest: {words(best)}."
    return f"Most accurate: {words(best)}; fastest: {words(fastest)}."


def quality_words(report: Mapping[str, Any], first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """The loss of accuracy with its 95 % interval; without labels, the closeness to the original."""
    n = report["conditions"]["n_images"]
    if last["top1"] is not None:
        before, after = first["top1"], last["top1"]
        changed = ((report.get("classes") or {}).get("changed") or {}).get(last["network"])
        if changed:  # the same images: far narrower than the intervals of two shares
            low, high = paired_difference(changed["lost"], changed["won"], n)
        else:
            (a, b), (x, y) = wilson(round(before * n), n), wilson(round(after * n), n)
            half = ((b - a) ** 2 + (y - x) ** 2) ** 0.5 / 2
            low, high = before - after - half, before - after + half
        points, half = 100 * (before - after), 50 * (high - low)
        lost = f"{abs(points):.1f} points {'lost' if points >= 0 else 'won'}"
        chance = ": within chance" if low <= 0 <= high else ""
        return f"{lost} ({100 * before:.1f} → {100 * after:.1f} %, ±{half:.1f}{chance})"
    if last["agreement"] is not None:
        return f"same top class as the original on {share_words(last['agreement'], n)} of {n:,} images"
    if last.get("lost") is not None:
        return f"outputs differ by {100 * last['lost']:.2g} % of their variance"
    return ""


def warnings(report: Mapping[str, Any] | None, run: str, program: str, command: str = "") -> list[str]:
    """Reasons for care with the verdict: unreliable latencies, and a counted speed-up that time does not follow.

    Parameters
    ----------
    report : mapping or None
    run, program : str
    command : str
        Begin of the command that makes another network from the same original.
    """
    if report is None or len(report["rows"]) < 2:
        return []
    command = command or f"{program} decompose --run NEW --from {run}"
    last = report["rows"][-1]
    lines = [note[:1].upper() + note[1:] + "." for note in report["notes"] if note.startswith(UNRELIABLE)]
    runtime, measured = _in_fastest(report, last)
    # A plan by time that keeps its promise was not made by the count.
    if last["counted_speedup"] > APART * measured and not _keeps_promise(report, last):
        lines.append(_apart(report, runtime, measured, run, program, command))
    return lines


def _in_fastest(report: Mapping[str, Any], last: Mapping[str, Any]) -> tuple[str, float]:
    """The runtime in which a network takes the shortest time of all measured here, and its speed-up there."""
    own = report["conditions"].get("runtime", "eager")
    times = [
        (time.latency_ms, one.conditions["runtime"] != own, one.conditions["runtime"], time.speedup)
        for one in _measured_here(report) for time in one.times
        if time.network == last["network"] and time.latency_ms is not None and time.speedup is not None
    ]  # fmt: skip
    return min(times)[2:] if times else (own, last["measured_speedup"])


def _apart(report: Mapping[str, Any], runtime: str, measured: float, run: str, program: str, command: str) -> str:
    """That time does not follow the count, and the commands to try: other layouts and runtimes, a plan by time."""
    c, counted = report["conditions"], report["rows"][-1]["counted_speedup"]
    own = c.get("runtime", "eager")
    known = {place for place, _ in _elsewhere(report, report["rows"][-1])} | {(own, c["layout"])}
    tries = []
    if not any(layout == "channels-last" for _, layout in known):
        able = "" if "channels-last" in RUNTIMES[own].layouts else " --runtime eager"
        tries.append(f"`{program} evaluate --run {run}{able} --layout channels-last --batch-size {c['batch_size']}`")
    # Also one that does not take the network, which would only be said again.
    if {name for name, _ in known} | {one.conditions["runtime"] for one in _measured_here(report)} == {own}:
        tries.append(f"`{program} evaluate --run {run} --runtime all --batch-size {c['batch_size']}`")
    plan = f"{command} --speedup {max(measured, 1.2) * 1.2:.1f}x --cost latency --batch-size {c['batch_size']}"
    tries.append(f"`{plan}{'' if runtime == 'eager' else f' --runtime {runtime}'}`")
    return (
        f"Counted and measured speed-up differ: {counted:.2f}x and {measured:.2f}x in {RUNTIME_WORDS[runtime]}. Many "
        "small convolutions use this machine less efficiently than a few large ones. Try "
        f"{', '.join(tries)}. See docs/aim-at-latency.md."
    )
