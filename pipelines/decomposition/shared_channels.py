"""Whole channel spaces before the layers: how many channels stay in each, which ones, and where the choice is kept."""

from decomp.allocation.sizes import fitting_multiple
from decomp.errors import FileError, TargetError
from decomp.graph.shared_spaces import members_of, readers_of, whole_spaces
from decomp.solvers.joint import grouped, select_jointly

from ...data.formats.digests import digest_json
from ...data.formats.json_files import read_json, write_json
from .gather import ProblemGatherer
from .survey import output_metrics

KIND = "decomp spaces"
# Bytes that the moments and inverses of one space's readers may take at once.
BUDGET = 6 << 30


def counts_for(view, share, rules):
    """Channels that stay in every space that can be narrowed as a whole, at one share.

    Parameters
    ----------
    view : decomp.graph.network_graph.NetworkGraph
    share : float
        In (0, 1].
    rules : decomp.allocation.allocator.Rules
        Its multiple is kept to, rounding down, and spaces that a skipped layer writes or reads are left whole.

    Returns
    -------
    dict of str to int
        Only the spaces that lose channels.

    Raises
    ------
    TargetError
        There is no such space.
    """
    able, reasons = whole_spaces(view)
    free = {name: space for name, space in able.items() if rules.skip.isdisjoint(_touching(space))}
    if not free:
        reasons.update({name: "belongs to a layer that keeps its shape" for name in able})
        why = "; ".join(f"{name} {reason}" for name, reason in list(reasons.items())[:2]) or "none that is shared"
        raise TargetError(
            "--coupled", "no channel space of this network can be narrowed as a whole", got=why,
            fix="leave it out",
        )  # fmt: skip
    counts = {}
    for name, space in free.items():
        multiple = fitting_multiple(space.width, rules.multiple)
        count = max(multiple, int(space.width * share / multiple + 1e-9) * multiple)
        if count < space.width:
            counts[name] = count
    return counts


def _touching(space):
    return {*space.producers, *space.carriers, *space.consumers}


def check(counts, view, name):
    """Check the spaces of a plan against the network.

    Raises
    ------
    TargetError
        Naming space, rule and what was given.
    """
    able, reasons = whole_spaces(view)
    for space, count in counts.items():
        if space not in able:
            why = reasons.get(space, "it is frozen, one layer's own, or no space of this network")
            fix = f"take it out of spaces in {name}; inspect lists them"
            raise TargetError(space, "the space cannot be narrowed as a whole", got=why, fix=fix)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= able[space].width:
            rule = f"channels that stay in the space must be in 1..{able[space].width}"
            raise TargetError(space, rule, got=repr(count), fix=f"change it in {name}")


def choose(run, counts, frozen, view, *, device, space, reporter):
    """Which channels stay, chosen on the original network for all readers of a space together.

    Parameters
    ----------
    run : decomp.pipelines.run.directory.RunDirectory
        ``layers/spaces.json`` keeps the choice, so that a resumed run makes the same.
    counts : dict of str to int
        Space to the number of channels that stay; checked.
    frozen : decomp.data.formats.frozen_file.FrozenFile
    view : decomp.graph.network_graph.NetworkGraph
        Of the original network on ``device``.
    device : torch.device
    space : decomp.pipelines.decomposition.memory.StageMemory
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    dict of str to list of int
    """
    parent = digest_json({"spaces": counts, "frozen": frozen.content})
    path = run.layers_dir / "spaces.json"
    keep = _read(path, parent)
    if keep is None:
        options, keep = {"device": device, "memory": space}, {}
        metrics = output_metrics(frozen, view, reporter=reporter, device=device, space=space)
        with reporter.progress(len(counts), "shared channels", "spaces") as progress:
            for name, count in counts.items():
                problems = ProblemGatherer(frozen, view, metrics=metrics, **options)
                keep[name] = _chosen(view, view.spaces[name], count, problems)
                space.clear()
                progress.update(1)
        write_json(path, {"parent": parent, "keep": keep}, kind=KIND)
    for name, places in keep.items():
        reporter.step(
            f"{name}: {len(places)} of {view.spaces[name].width} channels stay in all that write or read them"
        )
    return keep


def _read(path, parent):
    """An earlier choice for the same numbers; None where there is none, or one for others."""
    if not path.is_file():
        return None
    found = read_json(path, kind=KIND, fix="run decompose again with --redo")
    if not isinstance(found.get("keep"), dict):
        raise FileError(path, "must hold which channels stay", fix="run decompose again with --redo")
    return found["keep"] if found.get("parent") == parent else None


def _chosen(view, space, count, problems):
    readers = [view.layer(name) for name in readers_of(view, space)]
    needed = sum(3 * 8 * (layer.in_channels * layer.kernel[0] * layer.kernel[1]) ** 2 for layer in readers)
    if needed > BUDGET:
        raise TargetError(
            space.name, f"choosing its channels would take about {needed / 2**30:.0f} GiB, more than {BUDGET >> 30}",
            fix="take this space out of plan.json, or leave out --coupled",
        )  # fmt: skip
    tasks, members = [], []
    for layer in readers:
        problem, _ = problems.problem(layer)
        columns = members_of(view, space, layer.name)
        if columns.shape[1] > 1:
            problem, own = grouped(problem, columns), columns.new_tensor(range(space.width))
        else:
            own = columns.flatten()
        tasks.append(problem)
        members.append(own)
    return select_jointly(tasks, members, count).channels.tolist()
