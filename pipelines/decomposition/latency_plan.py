"""Plans by measured time: the table of factors, what may not be used because it is slower, and the whole, measured."""

from statistics import median

import numpy as np
import torch
from torch import nn

from decomp.allocation import target as search
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import columns, widths_written
from decomp.cost.chain import chain_of
from decomp.cost.latency_model import LatencyCost, channel_grids, kinds_of
from decomp.errors import FileError, TargetError
from decomp.runtimes.timing import laid_out, latencies, times_within
from decomp.surgery.random_network import mockup

from ...data.formats.json_files import read_json, write_json
from ..measure import devices
from .target_errors import limiting_options

KIND = "decomp latencies"
# Repetitions of one factor: at most so many, and no more than five once they took so many seconds.
REPEATS, SECONDS = 20, 0.05
ROUNDS, WHOLE_SECONDS = 30, 20.0
# The target is corrected until the measured speed-up is between these shares of the one asked for, or so many times.
ENOUGH, SURPLUS, CORRECTIONS = 0.98, 1.06, 5
# Less than this share is told.
SHORT = 0.9


class Timings:
    """Milliseconds of factors on one device, kept in the run directory.

    Parameters
    ----------
    path : Path
    device : torch.device
    batch_size : int
    layout : str
        Of :data:`decomp.runtimes.timing.LAYOUTS`.
    """

    def __init__(self, path, device, batch_size, layout):
        self.path, self.device, self.batch_size, self.layout = path, device, batch_size, layout
        self.conditions = conditions(device, batch_size, layout)
        self._key = "; ".join(f"{name} {value}" for name, value in self.conditions.items())
        try:
            self._entries = read_json(path, kind=KIND)["entries"]
            self._own = dict(self._entries.get(self._key, {}))
        except (FileError, KeyError, TypeError, AttributeError, ValueError):
            self._entries, self._own = {}, {}  # none, or none that can be used: measured anew

    def table(self, kind, inputs, outputs):
        """Times of a kind of factor, (inputs, outputs) in milliseconds."""
        return [[self.factor(kind, n_in, n_out) for n_out in outputs] for n_in in inputs]

    def factor(self, kind, n_in, n_out):
        """Median time of one factor."""
        words = kind.words(n_in, n_out)
        if words not in self._own:
            module = self._ready(kind.build(n_in, n_out))
            shape = kind.images(self.batch_size, n_in)
            times = latencies({"": module}, shape, self.device, REPEATS, layout=self.layout, max_seconds=SECONDS)
            self._own[words] = round(median(times[""]), 5)
        return self._own[words]

    def compare(self, networks, shape):
        """Median times of networks that are run in turn."""
        networks = {name: self._ready(network) for name, network in networks.items()}
        times = latencies(networks, shape, self.device, ROUNDS, layout=self.layout, max_seconds=WHOLE_SECONDS)
        return {name: median(values) for name, values in times.items()}

    def within(self, network, names, shape):
        """Times of a network's modules while it runs, and of the rest.

        See :func:`decomp.runtimes.timing.times_within`.
        """
        limits = {"layout": self.layout, "max_seconds": WHOLE_SECONDS}
        return times_within(self._ready(network), names, shape, self.device, ROUNDS, **limits)

    def _ready(self, network):
        return laid_out(network, self.layout).to(self.device).eval()

    def save(self):
        """Keep what was measured."""
        self._entries[self._key] = self._own
        write_json(self.path, {"entries": self._entries}, kind=KIND)


def conditions(device, batch_size, layout):
    """What a time depends on beside the shapes."""
    return {
        "device": devices.full_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "batch_size": batch_size, "layout": layout,
    }  # fmt: skip


def require_same_device(plan, device, name, reporter):
    """Refuse a plan by latency on another device than the one it was measured on.

    Raises
    ------
    TargetError
        Naming both.
    """
    here = conditions(device, plan.latency.get("batch_size"), plan.latency.get("layout"))
    there = plan.latency.get("device")
    if there != here["device"]:
        raise TargetError(
            name, f"was made for its latency on {there}", got=here["device"],
            fix="use it there (see --device), or make one for this device with --cost latency --redo",
        )  # fmt: skip
    for key in ("threads", "torch"):
        if plan.latency.get(key) != here[key]:
            reporter.warn(f"{name}: latencies were measured with {key} {plan.latency.get(key)}, now {here[key]}")


def allocate(run, asked, subject, usable, rules, *, device, reporter):
    """Sizes for a speed-up in measured time.

    The allocation is made on a table of times of single factors. Chains that are measured to be slower than the
    layer in one piece are ruled out, and a network of the chosen sizes, with random weights, is timed against the
    original: by what that differs from the table, the target is corrected.

    Parameters
    ----------
    run : RunDirectory
    asked : dict
    subject : decomp.pipelines.decomposition.session.Subject
    usable : dict of str to LayerCurves
    rules : decomp.allocation.allocator.Rules
    device : torch.device
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    decomp.allocation.target.Allocation
    """
    timings = Timings(run.latency_json, device, asked["latency_batch"], asked["latency_layout"])
    cost = _cost(timings, subject, reporter)
    wanted, tried = asked["speedup"], []
    speedup = wanted
    for _ in range(CORRECTIONS + 1):
        most = search.most(subject.view, usable, cost, rules)
        speedup = min(speedup, most)
        found, usable = _without_slow_chains(timings, subject, usable, cost, asked, rules, speedup, reporter)
        found.latency = _measure(timings, subject, found.plans)
        tried.append(found)
        measured = found.latency["measured_speedup"]
        reporter.step(f"a network of the planned sizes was measured: {measured:.2f}x")
        if ENOUGH * wanted <= measured <= SURPLUS * wanted:
            break
        if measured < wanted and speedup == most:
            if measured < SHORT * wanted:
                factors = search.limiting_factors(subject.view, usable, cost, rules, asked["steps"])
                raise _out_of_reach(asked, measured, factors, rules)
            break
        speedup = _corrected(tried, wanted)
    return _choose(tried, wanted, reporter)


def _out_of_reach(asked, measured, factors, rules):
    options = {"skip": asked["skip"], "keep_first": asked["keep_first"], "steps": asked["steps"]}
    holding = limiting_options(factors, rules=rules, **options)
    held = f"batch of {asked['latency_batch']}, held by {'; '.join(holding)}"
    return TargetError(
        "--speedup", f"at most {measured:.2f}x was measured with the smallest sizes, {held}",
        got=f"{asked['speedup']:g}x", fix="ask for less or lift a limit",
    )  # fmt: skip


def _corrected(tried, wanted):
    """The speed-up by the table at which the measured one should be as wanted.

    Between two that were tried, where one was too slow and one too fast (both logarithmic); otherwise in proportion
    to the last.
    """
    points = sorted((found.latency["measured_speedup"], found.allocator.total / found.cost) for found in tried)
    below = [point for point in points if point[0] < wanted]
    above = [point for point in points if point[0] >= wanted]
    aim = wanted * (1 + SURPLUS) / 2
    if below and above and below[-1][1] < above[0][1]:
        share = np.log(aim / below[-1][0]) / np.log(above[0][0] / below[-1][0])
        return float(below[-1][1] * (above[0][1] / below[-1][1]) ** min(max(share, 0.1), 0.9))
    last = tried[-1]
    return max(1.0 + 1e-6, aim * last.allocator.total / last.cost / last.latency["measured_speedup"])


def _choose(tried, wanted, reporter):
    """Of the plans that were measured to be fast enough the one with the least error; if none is, the fastest."""
    enough = [found for found in tried if found.latency["measured_speedup"] >= ENOUGH * wanted]
    if enough:
        return min(enough, key=lambda found: found.latency["measured_speedup"])
    best = max(tried, key=lambda found: found.latency["measured_speedup"])
    measured = best.latency["measured_speedup"]
    if measured < SHORT * wanted:
        reporter.warn(
            f"at most {measured:.2f}x was measured, less than the {wanted:g}x asked for; is the machine busy?"
        )
    return best


def _cost(timings, subject, reporter):
    """The table of all factors that may come to be used, and the time of the whole."""
    view, tables = subject.view, {}
    fitted = [layer for layer in view.layers if layer.fitted]
    with reporter.progress(len(fitted), f"timing factors, batch of {timings.batch_size}", "layers") as progress:
        for layer in fitted:
            kinds = kinds_of(layer, view.module.get_submodule(layer.name))
            steps = {"spatial", "channel"} - set(layer.left_alone)
            for name, (inputs, outputs) in channel_grids(layer, steps).items():
                tables[layer.name, name] = inputs, outputs, timings.table(kinds[name], inputs, outputs)
            timings.save()
            progress.update(1)
    shape, names = (timings.batch_size, *subject.input_shape), [layer.name for layer in fitted]
    return LatencyCost(view, tables, *timings.within(view.module, names, shape))


def _without_slow_chains(timings, subject, usable, cost, asked, rules, speedup, reporter):
    """An allocation in which no layer is slower than the same layer in one piece; and the curves left for it."""
    view = subject.view
    while True:
        reachable = min(speedup, search.most(view, usable, cost, rules))
        options = {"allocation": asked["allocation"], "steps": asked["steps"]}
        found = search.allocate(view, usable, cost, rules, speedup=reachable, **options)
        slow = [layer for layer in view.layers if layer.fitted and _is_slow(timings, view, found.plans, layer)]
        if not slow:
            return found, usable
        for layer in slow:
            reporter.step(f"{layer.name}: {found.plans[layer.name].words()} is no faster than the layer in one piece")
            usable = {**usable, layer.name: LayerCurves(usable[layer.name].prune)}


def _is_slow(timings, view, items, layer):
    item = items[layer.name]
    if item.spatial_rank is None and item.channel_rank is None:
        return False
    kinds = kinds_of(layer, view.module.get_submodule(layer.name))
    widths = columns(layer, item.keep), widths_written(view, items)[layer.name]
    chain = chain_of(*widths, item.spatial_rank, item.channel_rank)
    pieces = nn.Sequential(*(kinds[name].build(n_in, n_out) for name, n_in, n_out in chain))
    networks = {"chain": pieces, "dense": kinds["dense"].build(*widths)}
    times = timings.compare(networks, kinds["dense"].images(timings.batch_size, widths[0]))
    return times["chain"] >= times["dense"]


def _measure(timings, subject, items):
    networks = {"original": subject.view.module, "planned": mockup(subject.view, items)}
    times = timings.compare(networks, (timings.batch_size, *subject.input_shape))
    ratio = times["original"] / times["planned"]
    names = {"original": "original_ms", "planned": "measured_ms"}
    found = {names[name]: round(value, 4) for name, value in times.items()}
    return {**timings.conditions, **found, "measured_speedup": round(ratio, 3)}
