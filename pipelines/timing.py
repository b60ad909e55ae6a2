"""Plans by measured time: the table of factors, what may not be used because it is slower, and the whole, measured."""

from statistics import median

import torch
from torch import nn

from decomp.alternatives import LayerCurves
from decomp.errors import FileError, TargetError
from decomp.latency import LatencyCost, chain_of, channel_grids, kinds_of, latencies
from decomp.mockup import mockup
from decomp.pipelines import devices, files, reach
from decomp.plan import columns, widths_written

KIND = "decomp latencies"
# Repetitions of one factor: at most so many, and no more than five once they took so many seconds.
REPEATS, SECONDS = 20, 0.05
ROUNDS, WHOLE_SECONDS = 30, 20.0
# The measured speed-up is accepted between the one asked for and so many times it; otherwise the target is corrected.
SURPLUS, CORRECTIONS = 1.05, 3
# Less than this share of the speed-up is told.
SHORT = 0.9


class Timings:
    """Milliseconds of factors on one device, kept in the run directory.

    Parameters
    ----------
    path : Path
    device : torch.device
    batch_size : int
    """

    def __init__(self, path, device, batch_size):
        self.path, self.device, self.batch_size = path, device, batch_size
        self.conditions = conditions(device, batch_size)
        self._key = "; ".join(f"{name} {value}" for name, value in self.conditions.items())
        try:
            self._entries = files.read_json(path, kind=KIND)["entries"]
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
            module = kind.build(n_in, n_out).to(self.device).eval()
            shape = kind.images(self.batch_size, n_in)
            times = latencies({"": module}, shape, self.device, REPEATS, max_seconds=SECONDS)
            self._own[words] = round(median(times[""]), 5)
        return self._own[words]

    def compare(self, networks, shape):
        """Median times of networks that are run in turn."""
        times = latencies(networks, shape, self.device, ROUNDS, max_seconds=WHOLE_SECONDS)
        return {name: median(values) for name, values in times.items()}

    def save(self):
        """Keep what was measured."""
        self._entries[self._key] = self._own
        files.write_json(self.path, {"entries": self._entries}, kind=KIND)


def conditions(device, batch_size):
    """What a time depends on beside the shapes."""
    return {
        "device": devices.full_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "batch_size": batch_size,
    }  # fmt: skip


def require_same_device(plan, device, name, reporter):
    """Refuse a plan by latency on another device than the one it was measured on.

    Raises
    ------
    TargetError
        Naming both.
    """
    here = conditions(device, plan.latency.get("batch_size"))
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
    subject : decomp.pipelines.subject.Subject
    usable : dict of str to LayerCurves
    rules : decomp.allocation.Rules
    device : torch.device
    reporter : decomp.pipelines.log.Reporter

    Returns
    -------
    decomp.pipelines.reach.Found
    """
    timings = Timings(run.latency_json, device, asked["latency_batch"])
    cost = _cost(timings, subject, reporter)
    speedup = asked["speedup"]
    for attempt in range(CORRECTIONS + 1):
        try:
            found, usable = _without_slow_chains(timings, subject, usable, cost, asked, rules, speedup, reporter)
        except TargetError as error:
            if attempt == 0:
                raise
            raise _out_of_reach(asked, measured, error) from error  # noqa: F821 (set by the attempt before)
        measured = _measure(timings, subject, found.items)
        reached = measured["original_ms"] / measured["measured_ms"]
        words = f"{measured['measured_ms']:.3g} ms against {measured['original_ms']:.3g} ms"
        reporter.step(f"a network of the planned sizes, timed: {reached:.2f}x ({words})")
        if asked["speedup"] <= reached <= SURPLUS * asked["speedup"] or attempt == CORRECTIONS:
            break
        # In the table's milliseconds the network took total / reached; it was planned to take cost(items).
        planned = cost.total / found.allocator.cost(found.items)
        speedup = max(1.0 + 1e-6, asked["speedup"] * planned / reached)
    found.latency = {**timings.conditions, **measured, "measured_speedup": round(reached, 3)}
    if reached < SHORT * asked["speedup"]:
        reporter.warn(f"measured {reached:.2f}x, less than the {asked['speedup']:g}x asked for; is the machine busy?")
    return found


def _out_of_reach(asked, measured, error):
    most = measured["original_ms"] / measured["measured_ms"]
    return TargetError(
        "--speedup", f"at most about {most:.2f}x was reached in measured time, batch of {asked['latency_batch']} "
        f"({error.rule})", got=f"{asked['speedup']:g}x", fix="ask for less",
    )  # fmt: skip


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
    shape = (timings.batch_size, *subject.input_shape)
    return LatencyCost(view, tables, timings.compare({"original": view.module}, shape)["original"])


def _without_slow_chains(timings, subject, usable, cost, asked, rules, speedup, reporter):
    """An allocation in which no layer is slower than the same layer in one piece; and the curves left for it."""
    view = subject.view
    while True:
        found = reach.allocate(view, usable, cost, asked, rules, speedup)
        slow = [layer for layer in view.layers if layer.fitted and _is_slow(timings, view, found.items, layer)]
        if not slow:
            return found, usable
        for layer in slow:
            reporter.step(f"{layer.name}: {found.items[layer.name].words()} is no faster than the layer in one piece")
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
    networks = {name: network.to(timings.device).eval() for name, network in networks.items()}
    times = timings.compare(networks, kinds["dense"].images(timings.batch_size, widths[0]))
    return times["chain"] >= times["dense"]


def _measure(timings, subject, items):
    networks = {"original": subject.view.module, "planned": mockup(subject.view, items)}
    times = timings.compare(networks, (timings.batch_size, *subject.input_shape))
    return {"original_ms": round(times["original"], 4), "measured_ms": round(times["planned"], 4)}
