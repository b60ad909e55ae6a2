"""Latency measurement: networks timed in turn on the same images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from decomp import seeds
from decomp.runtimes.eager import LAYOUTS
from decomp.runtimes.precision import as_set_outside

#: Runs of a network before it is timed.
WARM_UP = 3
#: Slow networks are timed in fewer rounds: no new one starts after this long, though never fewer than five.
MAX_SECONDS, MIN_ROUNDS = 120.0, 5
#: Milliseconds below which a whole network runs once more before each timed run, where networks run in turn. A compiled
#: ResNet-20 of 1.2 ms was 5 % faster behind itself than behind another network.
WARM_BELOW = 10.0


def random_images(shape: Sequence[int], device: torch.device, layout: str = "contiguous") -> Tensor:
    """The images of every measurement.

    Parameters
    ----------
    shape : sequence of int
        ``(batch_size, C, H, W)``, or ``(batch_size, C)`` for a linear layer.
    device : torch.device
    layout : str
        Of :data:`decomp.runtimes.eager.LAYOUTS`.
    """
    images = torch.randn(*shape, generator=seeds.generator(0, "evaluate", "latency")).to(device)
    return images.contiguous(memory_format=LAYOUTS[layout]) if images.dim() == 4 else images


def latencies(
    networks: Mapping[str, Callable[[Tensor], object]],
    shape: Sequence[int],
    device: torch.device,
    rounds: int,
    *,
    layout: str = "contiguous",
    max_seconds: float | None = None,
    min_rounds: int | None = None,
    warm_up: int = WARM_UP,
    warm_below: float = 0.0,
    warm_seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Time networks in turn (A B C A B C ...) on the same random images.

    Parameters
    ----------
    networks : dict of name to callable
        As :meth:`decomp.runtimes.runtime.Runtime.prepare` returns them for :func:`random_images` of this shape,
        device and layout.
    shape : sequence of int
        ``(batch_size, C, H, W)``.
    device : torch.device
    rounds : int
        Slow networks get fewer: none starts after `max_seconds` once there are `min_rounds`.
    layout : str
        Memory layout of the images, of :data:`decomp.runtimes.eager.LAYOUTS`.
    max_seconds, min_rounds : float and int, optional
        By default :data:`MAX_SECONDS` and :data:`MIN_ROUNDS`.
    warm_up : int
        Runs of each network before the rounds.
    warm_below : float
        Milliseconds. A network that took less in the round before runs once, untimed, before each timed run, so that it
        finds its own data in the caches as where it runs alone.
    warm_seconds : float
        A network whose runs before the rounds took so long has no further ones. One that has several names is warm
        after those of the first.

    Returns
    -------
    dict of name to list of float
        Milliseconds of each round; equally many for every network. Warm-up runs are not among them.
    """
    max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
    min_rounds = MIN_ROUNDS if min_rounds is None else min_rounds
    images = random_images(shape, device, layout)
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode(), as_set_outside():
        for network in {id(network): network for network in networks.values()}.values():
            begun = time.monotonic()
            for _ in range(warm_up):
                network(images)
                if time.monotonic() - begun >= warm_seconds:
                    break
        start = time.monotonic()
        while len(times[next(iter(times))]) < rounds:
            for name, network in networks.items():
                if times[name] and times[name][-1] < warm_below:
                    network(images)
                times[name].append(_milliseconds(network, images, device))
            if time.monotonic() - start > max_seconds and len(times[name]) >= min_rounds:
                break
    return times


def _milliseconds(network: Callable[[Tensor], object], images: Tensor, device: torch.device) -> float:
    start = _seconds(device)
    network(images)
    return (_seconds(device) - start) * 1e3


def _seconds(device: torch.device) -> float:
    """The clock, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def times_within(
    network: nn.Module,
    names: Sequence[str],
    shape: Sequence[int],
    device: torch.device,
    rounds: int,
    *,
    layout: str = "contiguous",
    max_seconds: float | None = None,
) -> tuple[dict[str, float], float]:
    """Median milliseconds of some of a network's modules while it runs, and of the rest.

    A layer in its network finds other data in the caches than a layer that is timed by itself.

    Parameters
    ----------
    network : torch.nn.Module
        Prepared as for :func:`latencies`.
    names : sequence of str
        Paths of modules; of one that is called several times, the time of all calls.
    shape, device, rounds, layout, max_seconds
        As for :func:`latencies`.

    Returns
    -------
    parts : dict of str to float
    rest : float
    """
    started: dict[str, float] = {}
    parts: dict[str, list[float]] = {name: [] for name in names}

    def start(name: str) -> Callable[..., None]:
        return lambda *_: started.update({name: _seconds(device)})

    def stop(name: str) -> Callable[..., None]:
        return lambda *_: parts[name].append((_seconds(device) - started[name]) * 1e3)

    modules = {name: network.get_submodule(name) for name in names}
    hooks = [module.register_forward_pre_hook(start(name)) for name, module in modules.items()]
    hooks += [module.register_forward_hook(stop(name)) for name, module in modules.items()]
    try:
        times = latencies({"": network}, shape, device, rounds, layout=layout, max_seconds=max_seconds)
    finally:
        for hook in hooks:
            hook.remove()
    whole = np.array(times[""])
    n_runs = WARM_UP + len(whole)
    within = {name: np.array(values).reshape(n_runs, -1).sum(1)[WARM_UP:] for name, values in parts.items()}
    rest = np.median(whole - sum(within.values()))
    return {name: float(np.median(values)) for name, values in within.items()}, max(0.0, float(rest))
