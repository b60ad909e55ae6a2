"""Asked and measured speed-up of plans by measured time, each network timed again in fresh processes.

    python -m benchmarks.clock --out runs/clock
    python -m benchmarks.clock --quick --out runs/clock-quick
    python -m benchmarks.clock --runtimes compile --asked 2,1.5 --out runs/clock
    python -m benchmarks.clock --networks vgg16,resnet18,resnet50,mobilenet_v2 --out runs/clock-large
    python -m benchmarks.clock --networks "" --out runs/clock --also runs/clock-large --report docs/clock.md

Protocol: a network of the zoo is frozen once; for each runtime and speed-up one network is planned by measured time and
emitted. It is then timed against the original in interleaved rounds, in a new process for each repetition, until the
median of the ratios is known to about one percent. A repetition keeps the promise where the ratio of medians is between
0.97 and 1.10 of what was asked. It is marked as busy, and not counted unless --busy is given, where the threads waited
for processors, or the original, which runs twice in each round, differs from itself or takes longer than in other
repetitions or when the plan was made (neighbours on the hardware of a virtual machine slow networks by different
shares). A plan, or a refusal, of which the command says that the machine was busy and the measured speed-up not certain
is made again, as the command advises, at most twice; repetitions of a plan that stays uncertain are not counted.
Networks of torchvision have random weights and 224 pixels; their plans come from the same search with losses by
formula. Rows are appended to rows.jsonl: an interrupted benchmark goes on. Rows of several states of the code carry a
label (--label), and are shown beside each other. Time of planning: see benchmarks.clock_planning.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import clock_page, clock_planning, clock_shapes
from benchmarks.common import CLI, numbers

#: Of --quick: within these minutes no new step begins.
QUICK = {"asked": "2,1.5", "images": 200, "repetitions": 2, "minutes": 3.3}
#: Plans for one network, runtime and speed-up at most, the last of which counts.
PLANS = 3
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
RANDOM_IMAGES = Path(__file__).with_name("clock_images.py")


class OutOfTime(Exception):
    """The minutes of the benchmark are over."""


def read_rows(path):
    """The rows of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def time_once(networks, shape, runtime_name, threads, fastest=None):
    """The measured ratio of ``original`` and ``planned`` in one runtime, as plain data; called in a fresh process.

    `fastest` is the original's shortest time so far, in milliseconds.
    """
    import torch

    from decomp.pipelines.decomposition.speed_ratio import RoundsRule, measure_ratio
    from decomp.pipelines.decomposition.timings import block_of_rounds
    from decomp.runtimes.choice import runtime
    from decomp.runtimes.timing import random_images

    torch.set_num_threads(threads)
    device, made = torch.device("cpu"), runtime(runtime_name, "contiguous")
    example = random_images(shape, device)
    prepared = {name: made.prepare(network.eval(), example) for name, network in networks.items()}
    prepared["again"] = prepared["original"]
    return measure_ratio(
        block_of_rounds(prepared, shape, device, "contiguous"),
        RoundsRule(fewest_blocks=3, fastest=fastest),
    ).to_json()


def of_run(base, run):
    """The frozen and the emitted network of two runs, and the shape of one image's batch."""
    import decomp

    shape = (1, *json.loads((Path(base) / "original" / "structure.json").read_text())["input_shape"])
    return {"original": decomp.load(f"{base}/original"), "planned": decomp.load(f"{run}/model")}, shape


class Clock:
    """The benchmark in one folder.

    Parameters
    ----------
    options : argparse.Namespace
    """

    def __init__(self, options):
        self.options, self.out, self.start = options, options.out, time.monotonic()
        self.path = self.out / "rows.jsonl"

    def run(self):
        """Append the rows that are missing, until all are there or the minutes are over."""
        self.out.mkdir(parents=True, exist_ok=True)
        o = self.options
        label = {"code": o.label} if o.label else {}
        keys = [
            {"network": network, "runtime": name, "asked": asked, **label}
            for network in filter(None, o.networks.split(",")) for name in o.runtimes.split(",")
            for asked in numbers(o.asked)
        ]  # fmt: skip
        try:
            for key in keys:
                self.measure(key)
        except OutOfTime:
            print(f"{o.minutes:g} minutes are over; the same command goes on", flush=True)

    def measure(self, key):
        """Append the rows that are missing of one network, runtime and speed-up."""
        own = [row for row in read_rows(self.path) if is_of(row, key)]
        if own and not is_uncertain(own[-1]) and ("refused" in own[-1] or len(own) >= self.options.repetitions):
            return
        planned = self.planned(key)
        same = [row for row in own if row.get("planned") == planned.get("planned")]
        if "refused" in planned:
            if not same:
                self.append({**key, **planned})
            return
        for _ in range(len(same), self.options.repetitions):
            self.append({**key, **planned, **self.child("--time", json.dumps(key))})

    def append(self, row):
        """Write a row at once, and say it."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        said = row.get("refused") or f"{row['measured_speedup']:.2f}x" + (" (busy)" if row["busy"] else "")
        print(f"{row['network']} {row['runtime']} asked {row['asked']}x: {said}", flush=True)

    def label(self, key):
        """Name of the files of a plan."""
        code = f"-{key['code']}" if "code" in key else ""
        return f"{key['network'].replace(':', '-')}-{key['runtime']}-{key['asked']}x{code}"

    def base(self, key):
        """The frozen run of a network."""
        return self.out / key["network"].replace(":", "-")

    # -- plans --------------------------------------------------------------------------------------------

    def planned(self, key):
        """The last plan of one network, runtime and speed-up, and `tries`: all that were made until one was certain."""
        path = self.out / f"{self.label(key)}.tries.json"
        tries = json.loads(path.read_text()) if path.exists() else []
        make = self.plan_of_shape if key["network"] in clock_shapes.NAMES else self.plan_of_run
        while not tries or (tries[-1]["plan_busy"] and len(tries) < PLANS):
            tries.append(make(key, bool(tries)))
            path.write_text(json.dumps(tries))
        return {**tries[-1], "tries": tries}

    def plan_of_run(self, key, again):
        """The planned ratio and the error of the table, or the line with which it was refused."""
        o, base, run = self.options, self.base(key), self.out / self.label(key)
        shared = ["--threads", str(o.threads), "--device", "cpu", "--quiet"]
        if not (base / "frozen.h5").exists():
            images = ["--data", data_of(o.data), "--images", str(o.images)]
            failed = self.decomp("freeze", "--model", key["network"], *images, "--run", str(base), *shared)
            if failed:
                raise SystemExit(failed)
        if again or not (run / "model" / "structure.json").exists():
            asked = ["--speedup", f"{key['asked']}x", "--cost", "latency", "--runtime", key["runtime"]]
            start = time.monotonic()
            sources = ["--run", str(run)] if run.exists() else ["--run", str(run), "--from", str(base)]
            failed = self.decomp(
                "decompose", *sources, *asked, "--batch-size", "1", *shared, *["--redo"] * (again and run.exists())
            )
            if failed:
                return refusal(failed)
            (run / "clock.json").write_text(json.dumps({"seconds": round(time.monotonic() - start, 1)}))
        seconds = json.loads((run / "clock.json").read_text()) if (run / "clock.json").exists() else {}
        return {**of_plan(json.loads((run / "plan.json").read_text())), **seconds}

    def plan_of_shape(self, key, again):
        """The same for a network of torchvision, planned in a process of its own."""
        path = self.out / f"{self.label(key)}.json"
        if again or not path.exists():
            self.child("--plan", json.dumps(key))
        record = json.loads(path.read_text())
        seconds = {"seconds": record["seconds"]}
        return {**(refusal(record["refused"]) if "refused" in record else of_plan(record)), **seconds}

    # -- processes ----------------------------------------------------------------------------------------

    def child(self, *arguments):
        """The last line of this benchmark in a new process, as data."""
        self.require_time()
        shared = ["--out", str(self.out), "--threads", str(self.options.threads)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.clock", *arguments, *shared], capture_output=True, text=True,
            check=False, env=self.environment(),
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    def decomp(self, *arguments):
        """Run a command; the line with which it failed, or nothing."""
        self.require_time()
        done = subprocess.run(
            [sys.executable, str(CLI), *arguments], capture_output=True, text=True, check=False, env=self.environment()
        )
        with (self.out / "messages.txt").open("a") as file:
            file.write(f"$ decomp {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return lines[-1] if done.returncode else ""

    def environment(self):
        """Of processes: times that the commands know are those of this benchmark."""
        return {**os.environ, "DECOMP_KNOWN_TIMES": str(self.out.resolve() / "known_times.json")}

    def require_time(self):
        """End the benchmark where no step may begin any more."""
        if self.options.minutes and time.monotonic() - self.start > 60 * self.options.minutes:
            raise OutOfTime

    def in_child(self, key, plan):
        """What a new process does: plan a network of torchvision, or time one plan."""
        network, name, threads = key["network"], key["runtime"], self.options.threads
        path = self.out / f"{self.label(key)}.json"
        if plan:
            clock_shapes.plan_shape(network, name, key["asked"], path, threads)
            return {}
        if network in clock_shapes.NAMES:
            networks, shape = clock_shapes.networks_of(network, path), (1, 3, clock_shapes.SIDE, clock_shapes.SIDE)
        else:
            networks, shape = of_run(self.base(key), self.out / self.label(key))
        return time_once(networks, shape, name, threads, self.fastest(key))

    def fastest(self, key):
        """The shortest time of the original in this runtime, in all rows and plans; None where there is none."""
        same = {name: key[name] for name in ("network", "runtime")}
        rows = [row for row in read_rows(self.path) if same.items() <= row.items()]
        path = self.out / f"{self.label(key)}.tries.json"
        made = json.loads(path.read_text()) if path.exists() else []
        times = [row.get(name) for row in [*rows, *made] for name in ("original_ms", "plan_original_ms")]
        return min(filter(None, times), default=None)


def of_plan(record):
    """The figures of a plan."""
    latency = record["latency"]
    kept = {"planned": latency["measured_speedup"], "table_error": latency["table_error"]}
    kept |= {"plan_original_ms": latency["original_ms"]}
    kept["plan_busy"] = latency["busy"]  # the command has said so, and that the plan should be made again
    kept["plan_signs"] = latency.get("signs", [])
    return kept | {name: latency[name] for name in ("slower", "faster") if name in latency}


def is_of(row, key):
    """Whether a row is one of a network, runtime and speed-up, measured with the same code."""
    return key.items() <= row.items() and row.get("code") == key.get("code")


def rows_of(folder, label):
    """The rows of a folder; those without a label get this one, if there is one."""
    own = {"code": label} if label else {}
    return [{**own, **row} for row in read_rows(Path(folder) / "rows.jsonl")]


def folders_of(options):
    """The folders whose rows are shown, with the label of rows that have none: the benchmark's own, and --also."""
    also = [part.partition("=") for part in options.also.split(",") if part]
    return [(options.out, options.label), *((Path(name), label) for name, _, label in also)]


def refusal(line):
    """A refused plan; the line says whether the machine was busy."""
    return {"refused": line, "plan_busy": "the machine was busy" in line}


def is_uncertain(row):
    """Whether the plan of a row is to be made again."""
    return row.get("plan_busy", False) and len(row.get("tries", [])) < PLANS


def data_of(name):
    """The images of a source; random ones where it is 'auto' and Fashion-MNIST is not installed."""
    if name != "auto":
        return name
    return "fashion-mnist" if DEBIAN_FASHION.is_dir() else f"{RANDOM_IMAGES}:images"


def parsed(arguments=None):
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--time", help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="runs/clock", type=Path)
    parser.add_argument("--quick", action="store_true", help="few images, plans and repetitions; under four minutes")
    parser.add_argument("--networks", default="zoo:vgg-fashion,zoo:resnet20-fashion")
    parser.add_argument("--data", default="auto", help="images of the networks of the zoo")
    parser.add_argument("--runtimes", default="eager,onnxruntime")
    parser.add_argument("--asked", default="1.5,2,3")
    parser.add_argument("--images", default=1000, type=int)
    parser.add_argument("--repetitions", default=5, type=int, help="of each plan, each in a new process")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--minutes", default=0.0, type=float, help="after which no new step begins")
    parser.add_argument("--busy", action="store_true", help="count repetitions on a busy machine too")
    parser.add_argument("--label", default="", help="of the code, in the table; each label has rows of its own")
    parser.add_argument(
        "--also", default="",
        help="folders of other calls, with commas between: their rows are shown too; FOLDER=LABEL labels those without",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, help="page to write, such as docs/clock.md, its picture beside it")
    if "--quick" in (sys.argv[1:] if arguments is None else arguments):
        parser.set_defaults(**QUICK)
    return parser.parse_args(arguments)


def main():
    """Measure what is missing, print the tables and write them to clock.md, or to the page of --report."""
    options = parsed()
    clock = Clock(options)
    if options.time or options.plan:
        print(json.dumps(clock.in_child(json.loads(options.time or options.plan), bool(options.plan))))
        return
    clock.run()
    folders = folders_of(options)
    rows = [row for folder, label in folders for row in rows_of(folder, label)]
    planning = [row for folder, _ in folders for row in clock_planning.read(folder)]
    text = clock_page.page(rows, options.threads, options.busy, __doc__, planning)
    path = options.report or options.out / "clock.md"
    clock_page.write(path, text, rows, options.busy)
    print(text)


if __name__ == "__main__":
    main()
