"""A machine whose times follow a formula, for tests of plans by measured time."""

from types import SimpleNamespace

import torch

from decomp.cost.count import cost
from decomp.pipelines.decomposition import speed_ratio, timings, whole_networks
from decomp.runtimes import timing


def clockwork(milliseconds):
    """`latencies` on a machine whose times follow a formula: of a module, its input's shape."""

    def fake(networks, shape, device, rounds, **options):
        times = {}
        for name, network in networks.items():
            hooked = [m for m in network.modules() if m._forward_hooks]
            with torch.no_grad():
                for _ in range(timing.WARM_UP + 2 if hooked else 0):
                    network(torch.zeros(shape))
            times[name] = [milliseconds(network, shape)] * 2
        return times

    return fake


def by_macs(network, shape):
    """Ten microseconds a call, and a nanosecond a multiply-accumulate; the rest is free."""
    calls = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    return 1e-2 * len(calls) + 1e-6 * cost(network, shape[1:]).macs * shape[0]


def install(monkeypatch, milliseconds=by_macs):
    """Times of networks and factors follow a formula, those of modules inside a running network `by_macs`."""
    monkeypatch.setattr(timings, "latencies", clockwork(milliseconds))
    monkeypatch.setattr(whole_networks, "in_new_processes", lambda device: False)
    monkeypatch.setattr(speed_ratio, "Contention", lambda: SimpleNamespace(share=lambda: 0.0))

    def within(network, names, shape, device, rounds, **options):
        whole = cost(network, shape[1:]).per_layer
        return {name: 1e-2 + 1e-6 * whole[name] * shape[0] for name in names}, 0.0

    monkeypatch.setattr(timings, "times_within", within)
