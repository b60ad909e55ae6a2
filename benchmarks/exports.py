"""Export formats, torch.compile and int8 quantisation of a finished network: size, latency, agreement.

    python -m benchmarks.exports --run runs/vgg

First table: every export format of the run's best network: its size, the time to load it and the largest difference of
its outputs (relative to the largest output), in a process of its own in which this package cannot be imported.
Second table: the network as `decomp.load` returns it, through `torch.compile`, and with int8 weights and activations
(dynamic: linear layers alone; static: all, calibrated on the run's calibration images). Latencies are medians of rounds
in turn in one process; agreement is the share of test images with the same first class as the network in float32.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

import decomp
from benchmarks.common import machine, markdown
from decomp.data.formats.exported import FORMATS
from decomp.data.sources import open_source
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import open_frozen
from decomp.pipelines.stages.export import export
from decomp.runtimes.timing import latencies

#: What a person writes who has the file and not this package: imports, how it is loaded, and its outputs, if it runs.
READERS = {
    "pt2": ("", "torch.export.load(path).module()", "network(images)"),
    "torchscript": ("", "torch.jit.load(path)", "network(images)"),
    "onnx": (
        "import onnxruntime",
        "onnxruntime.InferenceSession(path)",
        "torch.from_numpy(network.run(None, {network.get_inputs()[0].name: images.numpy()})[0])",
    ),
    "state-dict": ("", "torch.load(path, weights_only=True)", "None"),
    "safetensors": ("from safetensors.torch import load_file", "load_file(path)", "None"),
}
PROGRAM = """
import json, sys, time, warnings
import torch
sys.modules["decomp"] = None  # any import of it fails
path, images = sys.argv[1], torch.load(sys.argv[2])
warnings.simplefilter("ignore")
{imports}
start = time.perf_counter()
network = {load}
print(json.dumps(time.perf_counter() - start))
with torch.no_grad():
    torch.save({outputs}, sys.argv[3])
"""
ROUNDS, CALIBRATION, BATCH = 30, 200, 64


def files(run):
    """Rows of the first table."""
    network, shape = decomp.load(run), open_frozen(RunDirectory.open(run))[0].input_shape
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        torch.save(torch.randn(8, *shape), folder / "images.pt")
        with torch.no_grad():
            wanted = network(torch.load(folder / "images.pt"))
        for item in export(run, formats=list(FORMATS), out=folder).exported:
            path = folder / Path(item.path).name
            imports, load, outputs = READERS[item.format]
            program = PROGRAM.format(imports=imports, load=load, outputs=outputs)
            done = subprocess.run(
                [sys.executable, "-I", "-c", program, path, folder / "images.pt", folder / "outputs.pt"],
                capture_output=True, text=True, check=True, cwd=folder,
            )  # fmt: skip
            got = torch.load(folder / "outputs.pt")
            difference = None if got is None else float((got - wanted).abs().max() / wanted.abs().max())
            seconds = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                {"format": item.format, "KiB": path.stat().st_size / 2**10, "load seconds": seconds,
                 "difference": difference, "what it holds": "weights alone" if got is None else "a network that runs"}
            )  # fmt: skip
    return rows


def variants(run):
    """``{name: network}``; what this build of PyTorch cannot do is told and left out."""
    frozen, _ = open_frozen(RunDirectory.open(run))
    with frozen:
        images = frozen.images(0, CALIBRATION)
    makers = {
        "as loaded": lambda: decomp.load(run),
        "torch.compile": lambda: torch.compile(decomp.load(run), dynamic=True),
        "int8, dynamic": lambda: _dynamic(decomp.load(run)),
        "int8, static": lambda: _static(decomp.load(run), images),
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
            with torch.no_grad():
                found[name](images[:2])
        except Exception as error:  # what is quoted here is the answer to whether it can be done
            found.pop(name, None)
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found


def _dynamic(network):
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(network, {torch.nn.Linear}, dtype=torch.qint8)


def _static(network, images):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(network, get_default_qconfig_mapping(torch.backends.quantized.engine), (images[:2],))
    with torch.no_grad():
        prepared(images)
    return convert_fx(prepared)


def uses(run):
    """Rows of the second table."""
    run = RunDirectory.open(run)
    networks, test = variants(run.path), open_source(run.config("freeze")["asked"]["data"]).test
    shape = tuple(open_frozen(run)[0].input_shape)
    times = {size: latencies(networks, (size, *shape), torch.device("cpu"), ROUNDS) for size in (1, BATCH)}
    with torch.no_grad():
        answers = {name: [] for name in networks}
        labels = []
        for images, targets in test.batches(torch.arange(len(test)), 500):
            labels.append(targets)
            for name, network in networks.items():
                answers[name].append(network(images).argmax(1))
    labels, answers = torch.cat(labels), {name: torch.cat(part) for name, part in answers.items()}
    for name, answer in answers.items():
        yield {
            "network": name, "top-1": float((answer == labels).double().mean()),
            "agreement": float((answer == answers["as loaded"]).double().mean()),
            **{f"ms, batch {size}": statistics.median(rounds[name]) for size, rounds in times.items()},
        }  # fmt: skip


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    print(f"{machine()}; PyTorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    for rows in (files(options.run), list(uses(options.run))):
        print(markdown(tuple(rows[0]), rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
