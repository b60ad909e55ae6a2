"""Rows of this package's methods, and the table of all rows."""

import argparse
import time
from pathlib import Path

from benchmarks.common import numbers
from benchmarks.continual import rows
from benchmarks.continual.in_turn import in_turn
from benchmarks.continual.settings import SETTINGS, write_tasks
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.continual.matrix import read as read_matrix
from decomp.pipelines.continual.store import TaskStore
from decomp.pipelines.stages import tasks

METHODS = ("cpg", "packnet", "in turn")


def learned(run, names, setting, seed, goals, **options):
    """A run that learned all tasks, and the seconds that it took."""
    started = time.monotonic()
    for number, (name, goal) in enumerate(zip(names, goals)):
        strict = isinstance(goal, tuple)
        tasks.add(
            run, name=f"task{number}", data=name, goal=goal[0] if strict else goal, strict=strict,
            model=setting.model, seed=seed, device="cpu", planned=len(names), reporter=Reporter(), **setting.options(),
            **options,
        )  # fmt: skip
    assert tasks.verify(run).good
    return TaskStore.open(run), round(time.monotonic() - started, 1)


def row_of(store, seconds):
    """Numbers of a run of tasks."""
    listed = tasks.listed(store.run)
    names = store.names()
    matrix = [[row[name] for name in names[: count + 1]] for count, row in enumerate(read_matrix(store))]
    return {
        "matrix": matrix, "size": listed.totals["expansion"], "seconds": seconds,
        "shared": [task["shared_ratio"] for task in listed.tasks], "bytes": listed.totals["bytes"],
        "widths": [task["width"] for task in listed.tasks], "status": [task["status"] for task in listed.tasks],
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.continual", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    out = Path("runs/continual-benchmark")
    parser.add_argument("--out", type=Path, default=out, help="folder for results; finished rows are kept")
    parser.add_argument("--data", choices=SETTINGS, default="digits", help="five tasks of two classes of it")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="with commas between, such as 0,1,2")
    parser.add_argument("--force-growth", type=int, default=0, help="number of a task, from 1, that must grow; 0: none")
    asked = parser.parse_args()
    setting, kept = SETTINGS[asked.data], asked.out / "rows.jsonl"
    names = write_tasks(asked.data, asked.out / asked.data)
    for seed in asked.seeds:
        done = {method for data, method, one in rows.read(kept) if data == asked.data and one == seed}
        folder = asked.out / f"{asked.data}-{seed}"
        goals = ["independent"] * len(names)
        if asked.force_growth:
            goals[asked.force_growth - 1] = (1.0,)
        store, seconds = learned(folder / "cpg", names, setting, seed, goals)
        alone = [task["independent"] for task in tasks.listed(store.run).tasks]
        if asked.force_growth:
            # The task with a goal of its own has no independent network yet.
            place = asked.force_growth - 1
            single, _ = learned(folder / "alone", names[place : place + 1], setting, seed, ["independent"])
            alone[place] = tasks.listed(single.run).tasks[0]["independent"]
        if "cpg" not in done:
            rows.append(kept, {"data": asked.data, "seed": seed, "method": "cpg", **row_of(store, seconds)})
        if "independent" not in done:
            final = [record["test"] for record in alone]
            matrix = [final[: count + 1] for count in range(len(final))]
            row = {"matrix": matrix, "size": float(len(names)), "seconds": 0.0}
            rows.append(kept, {"data": asked.data, "seed": seed, "method": "independent", **row})
        if "packnet" not in done:
            goals = [record["validation"] for record in alone]
            packed, seconds = learned(folder / "packnet", names, setting, seed, goals, picking=False, max_width=1)
            rows.append(kept, {"data": asked.data, "seed": seed, "method": "packnet", **row_of(packed, seconds)})
        if "in turn" not in done:
            started = time.monotonic()
            matrix = in_turn(store, names, setting)
            row = {"matrix": matrix, "size": 1.0, "seconds": round(time.monotonic() - started, 1)}
            rows.append(kept, {"data": asked.data, "seed": seed, "method": "in turn", **row})
    print(rows.page(list(rows.read(kept).values()), asked.data))


if __name__ == "__main__":
    main()
