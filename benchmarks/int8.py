"""Networks in 8 bits: does a decomposed network lose as little by them as the original?

    python -m benchmarks.int8 --out runs/int8 --into docs/aim-at-latency.md

Protocol: a shipped network is frozen on some of its training images and decomposed to a counted speed-up; nothing is
trained. `decomp export --format onnx,onnx-int8` writes the original and the decomposed network, calibrated on these
images. Both files run in ONNX Runtime on all test images. *Lost by 8 bits* is float less 8 bits, in points, ± one
standard error over the test images; *times as fast* is the original's time in float32 over that of the file, at a
batch of one image, all files of a network in turn. The times are measured apart (`--times`), with nothing else running.
Rows are kept in rows.jsonl: an interrupted benchmark goes on.
"""

import argparse
import json
import statistics
from importlib import metadata
from pathlib import Path

import torch

import decomp
from benchmarks.common import machine, markdown, numbers, put_section
from decomp.data import models
from decomp.data.formats import quantised
from decomp.data.sources import open_source
from decomp.pipelines.measure.contention import MOST_WAITED, Contention
from decomp.runtimes.timing import latencies

NETWORKS = "zoo:vgg-fashion,zoo:resnet20-fashion,zoo:mobilenet-fashion"
THREADS, ROUNDS, SECONDS, AT_A_TIME = 2, 200, 12.0, 250
FORMATS = {"float": ".onnx", "int8": ".int8.onnx"}
COLUMNS = (
    "network", "counted", "top-1, float32", "top-1, 8 bits", "lost by 8 bits", "times as fast, float32",
    "times as fast, 8 bits",
)  # fmt: skip
SECTION = "In 8 bits"


class Benchmark:
    """The benchmark in one folder.

    Parameters
    ----------
    options : argparse.Namespace
    """

    def __init__(self, options):
        self.options, self.out = options, options.out
        self.rows, self.times = self.out / "rows.jsonl", self.out / "times.json"

    def files(self, network, speedup):
        """The written file of each format; speed-up 1 is the original."""
        name = "original" if speedup == 1 else "decomposed"
        folder = self.run(network, speedup) / "export"
        return {kind: folder / f"{name}{suffix}" for kind, suffix in FORMATS.items()}

    def run(self, network, speedup):
        """Run directory of a network; the original's is that of the frozen points."""
        label = network.replace(":", "-")
        return self.out / (f"{label}-frozen" if speedup == 1 else f"{label}-{speedup:g}x")

    def asked(self):
        """Networks with their speed-ups, the original first."""
        return [(n, s) for n in self.options.networks.split(",") for s in (1, *numbers(self.options.speedups))]

    def make(self):
        """Make, write and evaluate what is missing."""
        self.out.mkdir(parents=True, exist_ok=True)
        done = {(row["network"], row["speedup"]) for row in read_rows(self.rows)}
        for network, speedup in self.asked():
            if (network, speedup) in done:
                continue
            run, base = self.run(network, speedup), self.run(network, 1)
            decomp.freeze(base, model=network, data=self.options.data, n_images=self.options.images)
            if speedup != 1:
                decomp.decompose(run, source_run=base, speedup=speedup)
            files = self.files(network, speedup)
            if not all(path.exists() for path in files.values()):
                which = "original" if speedup == 1 else "decomposed"
                decomp.export(run, formats=["onnx", "onnx-int8"], which=which)
            row = {"network": network, "speedup": speedup, **judged(files, network, self.options.data)}
            macs = json.loads((run / "run.json").read_text())["stages"].get("decompose", {})
            row["counted"] = macs["macs_before"] / macs["macs_after"] if speedup != 1 else 1.0
            with self.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({name: value for name, value in row.items() if name != "wrong"}, flush=True)

    def time(self):
        """Time all files of each network in turn."""
        torch.set_num_threads(THREADS)
        found = json.loads(self.times.read_text()) if self.times.exists() else {}
        for network in self.options.networks.split(","):
            files = {
                f"{speedup:g} {kind}": path
                for name, speedup in self.asked() if name == network
                for kind, path in self.files(network, speedup).items()
            }  # fmt: skip
            sessions = {name: quantised.load(str(path), THREADS)[0] for name, path in files.items()}
            shape, contention = (1, *models.load_model(network).input_shape), Contention()
            times = latencies(sessions, shape, torch.device("cpu"), ROUNDS, max_seconds=SECONDS)
            first = times["1 float"]
            found[network] = {
                "waited": contention.share(),
                **{name: faster(first, values) for name, values in times.items()},
            }
            self.times.write_text(json.dumps(found, indent=1))
            print(network, found[network], flush=True)


def read_rows(path):
    """The rows of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def faster(first, values):
    """How many times faster than the first: ratio of medians, and the tenth and ninetieth percentile of the rounds."""
    ratios = sorted(a / b for a, b in zip(first, values))
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    return {"ms": statistics.median(values), "faster": statistics.median(first) / statistics.median(values),
            "low": low, "high": high}  # fmt: skip


def judged(files, network, data):
    """Top-1 of each file on all test images, and the standard error of their difference."""
    source = open_source(data, input_shape=models.load_model(network).input_shape)
    indices = torch.arange(len(source.test))
    labels = source.test.labels(indices)
    right = {}
    for kind, path in files.items():
        run = quantised.load(str(path), THREADS)[0]
        scores = torch.cat([run(source.test.images(part))[0] for part in indices.split(AT_A_TIME)])
        right[kind] = scores.argmax(1) == labels
    difference = right["float"].double() - right["int8"].double()
    return {
        **{kind: values.double().mean().item() for kind, values in right.items()},
        "error": (difference.std() / len(difference) ** 0.5).item(),
    }


def table(rows, times):
    """A row for each network and speed-up; the columns of times where some were measured."""
    lines = []
    for row in rows:
        own = times.get(row["network"], {})

        def timed(kind, own=own, row=row):
            one = own.get(f"{row['speedup']:g} {kind}")
            return None if one is None else f"{one['faster']:.2f}x ({one['low']:.2f}–{one['high']:.2f})"

        kept = row["network"] if row["speedup"] == 1 else f"{row['network']}, decomposed"
        lost = f"{100 * (row['float'] - row['int8']):+.2f} ± {100 * row['error']:.2f}"
        lines.append(dict(zip(COLUMNS, (
            kept, f"{row['counted']:.2f}x", f"{row['float']:.2%}", f"{row['int8']:.2%}", lost,
            timed("float"), timed("int8"),
        ), strict=True)))  # fmt: skip
    return markdown(COLUMNS if times else COLUMNS[:-2], lines)


def verdict(rows):
    """How much more the decomposed networks lose by 8 bits than their originals, in a sentence."""
    lost = {(row["network"], row["speedup"]): 100 * (row["float"] - row["int8"]) for row in rows}
    more = {key: value - lost[key[0], 1] for key, value in lost.items() if key[1] != 1 and (key[0], 1) in lost}
    if not more:
        return ""
    (network, speedup), most = max(more.items(), key=lambda item: item[1])
    middle = statistics.median(more.values())
    return (
        f"Beyond what the originals lose by 8 bits, the decomposed networks lose {middle:+.2f} points in the median "
        f"and {most:+.2f} at most ({network} at {speedup:g}x)."
    )


def page(rows, times, images):
    """The whole page."""
    words = __doc__.split("Protocol: ")[1].strip()
    busy = [network for network, own in times.items() if own["waited"] > MOST_WAITED]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "onnxruntime"))
    parts = [
        "# Decomposed networks in 8 bits", verdict(rows), table(rows, times),
        "In brackets: from the tenth to the ninetieth percentile of the ratios of single rounds."
        + (f" The machine was busy while these were timed: {', '.join(busy)}." if busy else ""),
        f"{words[0].upper()}{words[1:]} Calibrated on {images:,} images, of which `export` takes 256 for the ranges.",
        "Written by `python -m benchmarks.int8`.", f"{machine()}, {THREADS} threads; {versions}",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def section(rows, times, images):
    """The text under the heading of a guide."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "onnxruntime"))
    return "\n\n".join((
        f"`decomp export --format onnx-int8` goes on top of a decomposition. {verdict(rows)}",
        table(rows, times),
        "*Lost by 8 bits*: float less 8 bits, in points on all test images, ± one standard error. Nothing is trained; "
        f"calibrated on {images:,} images, of which `export` takes 256 for the ranges. Written by `python -m "
        "benchmarks.int8`, which measures the times too (`--times`).",
        f"{machine()}; {versions}",
    ))  # fmt: skip


def main():
    """Make or time what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/int8", type=Path)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--speedups", default="2,4")
    parser.add_argument("--images", default=1000, type=int, help="calibration images")
    parser.add_argument("--times", action="store_true", help="measure the times of the files that are there, alone")
    parser.add_argument("--report", type=Path, help="write this Markdown page too")
    parser.add_argument("--into", type=Path, help=f"write the table under the heading {SECTION!r} of this page")
    options = parser.parse_args()
    benchmark = Benchmark(options)
    benchmark.time() if options.times else benchmark.make()
    times = json.loads(benchmark.times.read_text()) if benchmark.times.exists() else {}
    text = page(read_rows(benchmark.rows), times, options.images)
    for path in filter(None, (options.out / "int8.md", options.report)):
        path.write_text(text)
    if options.into:
        put_section(options.into, SECTION, section(read_rows(benchmark.rows), times, options.images))
    print(text)


if __name__ == "__main__":
    main()
