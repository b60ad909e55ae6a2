"""8-bit ONNX files: calibrated on some images, compared with the network on others, timed beside the float file."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from decomp import seeds
from decomp.errors import DecompError
from decomp.execution.output_change import Outputs
from decomp.execution.outputs import named_tensors
from decomp.runtimes.timing import latencies

from ...data.formats import quantised
from ...data.formats.exported import FORMATS
from ...data.formats.frozen_file import FrozenFile
from ...data.plain_network import dtype_of
from ..run.calibration import fitted_images
from ..run.outputs import frozen_outputs
from .closeness import Closeness, closeness_words, percent

NAME, SUFFIX = "onnx-int8", ".int8.onnx"
#: Images that give the ranges of the activations, how many at a time, and rounds of the comparison of times.
CALIBRATED, AT_A_TIME, ROUNDS = 256, 32, 30
#: Squared difference over the variance of the outputs above which a file is warned of.
FAR = 0.1


@dataclass(frozen=True)
class Int8File:
    """Facts about a written file.

    Attributes
    ----------
    relative : float
        Squared difference to the network's outputs on held-out images over their variance.
    words : str
        Closeness and time in lines for people.
    load_seconds : float
    """

    relative: float
    words: str
    load_seconds: float


def write(network: nn.Module, path: Path, text: str, frozen: FrozenFile) -> Int8File:
    """Write an 8-bit file of a network.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode on the CPU, in float32.
    path : Path
    text : str
        JSON text about it.
    frozen : decomp.data.formats.frozen_file.FrozenFile
        Has the images: some of those that were fitted calibrate, the held-out ones are compared.

    Raises
    ------
    DecompError
        The network is not in float32, or the file loses its metadata.
    """
    if dtype_of(network) != torch.float32:
        fix = "export onnx instead"
        raise DecompError(NAME, "is made from a network in float32", got=str(dtype_of(network)), fix=fix)
    outputs, n_fitted = frozen_outputs(frozen), fitted_images(frozen.n_images)
    shape, threads = tuple(frozen.images(0, 1).shape[1:]), torch.get_num_threads()
    example = torch.randn(3, *shape, generator=seeds.generator(0, "export", "traced"))
    with tempfile.TemporaryDirectory(prefix="decomp-") as folder:
        whole = str(Path(folder) / "float32.onnx")
        FORMATS["onnx"].write(network, example, whole, text, ())
        quantised.quantise(whole, str(path), _images(frozen, 0, min(n_fitted, CALIBRATED)), text)
        start = time.perf_counter()
        run, kept = quantised.load(str(path), threads)
        seconds = time.perf_counter() - start
        if json.loads(kept) != json.loads(text):
            raise DecompError(path, f"{NAME} does not keep the metadata of the network")
        found = _closeness(network, run, frozen, n_fitted, outputs)
        networks = {"float32": quantised.load(whole, threads)[0], "int8": run}
        times = latencies(networks, (1, *shape), torch.device("cpu"), ROUNDS)
    return Int8File(found["relative"], "\n".join([*_close_words(found), _time_words(times, threads)]), seconds)


def _images(frozen: FrozenFile, first: int, stop: int) -> Iterator[Tensor]:
    for start in range(first, stop, AT_A_TIME):
        yield frozen.images(start, min(start + AT_A_TIME, stop))


@torch.no_grad()
def _closeness(
    network: nn.Module, run: Callable[[Tensor], list[Tensor]], frozen: FrozenFile, first: int, outputs: Outputs
) -> dict[str, Any]:
    close = Closeness(outputs)
    for images in _images(frozen, first, frozen.n_images):
        wanted = named_tensors(network(images), len(images))
        got = dict(zip(wanted, run(images), strict=True))
        close.add(outputs.named(wanted, len(images)), outputs.named(got, len(images)))
    return close.result()


def _close_words(found: dict[str, Any]) -> list[str]:
    lines = closeness_words(found, "held-out calibration images, beside the network in float32").split("\n")
    if found["relative"] > FAR:
        lines.append(
            f"warning: with 8 bits the outputs differ by {percent(found['relative'])} of their variance; keep to onnx, "
            "or tune this network in 8 bits elsewhere"
        )
    return lines


def _time_words(times: dict[str, list[float]], threads: int) -> str:
    ratios = sorted(whole / small for whole, small in zip(times["float32"], times["int8"]))
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    milliseconds = {name: median(values) for name, values in times.items()}
    return (
        f"one image in ONNX Runtime, {threads} thread{'s' * (threads != 1)}: float32 {milliseconds['float32']:.3g} ms, "
        f"8 bits {milliseconds['int8']:.3g} ms, {median(ratios):.2f}x as fast ({low:.2f}–{high:.2f}, "
        f"{len(ratios)} rounds in turn)"
    )
