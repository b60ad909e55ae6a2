"""Latency measurement: networks timed in turn on the same images."""

import copy
import time

import numpy as np
import torch

from decomp import seeds

WARM_UP = 3


#: Slow networks are timed in fewer rounds: no new one starts after this long, though never fewer than five.
MAX_SECONDS, MIN_ROUNDS = 120.0, 5


#: How the numbers of an image and of a kernel lie in memory. Factors are small: what it takes to bring them into the
#: order in which a processor convolves weighs more in them, and most of that is saved with the channels last.
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def laid_out(network, layout):
    """A copy of a network with its weights in one of :data:`LAYOUTS`."""
    return copy.deepcopy(network).to(memory_format=LAYOUTS[layout])


def latencies(networks, shape, device, rounds, *, layout="contiguous", max_seconds=None, min_rounds=None):
    """Time networks in turn (A B C A B C ...) on the same random images.

    Parameters
    ----------
    networks : dict of name to torch.nn.Module
        On `device`, in eval mode.
    shape : tuple of int
        ``(batch_size, C, H, W)``.
    device : torch.device
    rounds : int
        Fewer are made of slow networks: none starts after `max_seconds` once there are `min_rounds`.
    layout : str
        That of the images, of :data:`LAYOUTS`; the networks are taken as they are, see :func:`laid_out`.
    max_seconds, min_rounds : float and int, optional
        :data:`MAX_SECONDS` and :data:`MIN_ROUNDS` where not given.

    Returns
    -------
    dict of name to list of float
        Milliseconds of each round; equally many for every network. Warm-up runs are not among them.
    """
    max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
    min_rounds = MIN_ROUNDS if min_rounds is None else min_rounds
    images = torch.randn(*shape, generator=seeds.generator(0, "evaluate", "latency")).to(device)
    if images.dim() == 4:
        images = images.contiguous(memory_format=LAYOUTS[layout])
    times = {name: [] for name in networks}
    with torch.inference_mode():
        for network in networks.values():
            for _ in range(WARM_UP):
                network(images)
        start = time.monotonic()
        while len(times[next(iter(times))]) < rounds:
            for name, network in networks.items():
                times[name].append(_milliseconds(network, images, device))
            if time.monotonic() - start > max_seconds and len(times[name]) >= min_rounds:
                break
    return times


def _milliseconds(network, images, device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    network(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def times_within(network, names, shape, device, rounds, *, layout="contiguous", max_seconds=None):
    """Median milliseconds of some of a network's modules while it runs, and of the rest.

    A layer in its network finds other things in the caches than a layer that is timed by itself.

    Parameters
    ----------
    network : torch.nn.Module
    names : list of str
        Paths of modules that are called once.
    shape, device, rounds, layout, max_seconds
        As for :func:`latencies`.

    Returns
    -------
    parts : dict of str to float
    rest : float
    """
    started, parts = {}, {name: [] for name in names}

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() * 1e3

    def start(name):
        return lambda *_: started.update({name: now()})

    def stop(name):
        return lambda *_: parts[name].append(now() - started[name])

    modules = {name: network.get_submodule(name) for name in names}
    hooks = [module.register_forward_pre_hook(start(name)) for name, module in modules.items()]
    hooks += [module.register_forward_hook(stop(name)) for name, module in modules.items()]
    try:
        times = latencies({"": network}, shape, device, rounds, layout=layout, max_seconds=max_seconds)
    finally:
        for hook in hooks:
            hook.remove()
    whole = np.array(times[""])
    within = {name: np.array(values[WARM_UP:]) for name, values in parts.items()}
    rest = np.median(whole - sum(within.values()))
    return {name: float(np.median(values)) for name, values in within.items()}, max(0.0, float(rest))
