"""Choice of the channels that stay: which channel spaces may lose some, by which criterion, and how many go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, fx

from decomp.cost.count import Cost
from decomp.criteria.candidates import candidates, united_by_addition
from decomp.criteria.choose import Choice, by_layer, by_rank, for_speedup, greedily
from decomp.criteria.gradients import Loss
from decomp.criteria.names import FILTER_CRITERIA, NEEDS
from decomp.criteria.ranking import Limits
from decomp.criteria.scale_factors import rankable_spaces
from decomp.criteria.scores import Evidence, gather, scorable, score
from decomp.errors import TargetError, UsageError, near_miss
from decomp.execution.output_change import Outputs
from decomp.graph.branches import Branch, without_branches
from decomp.graph.channel_spaces import ChannelSpace
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.selections import NORM, SELECT
from decomp.modules.select import Select
from decomp.surgery.narrow_network import shrunk_macs, shrunk_params

from ..console.prune_options import PruneOptions
from ..console.python_words import said_for_options
from ..console.words import listed
from .unfolded import Unfolded

#: The cost of a network whose spaces keep these channels.
CostOf = Callable[[Mapping[str, list[int]]], float]


@dataclass(frozen=True, eq=False)
class Images:
    """Unlabelled images.

    Attributes
    ----------
    batches : callable
        Gives the batches anew at each call, on the network's device.
    held_out : callable
        The same for other images, which judge.
    outputs : decomp.execution.output_change.Outputs
        Of the network.
    loss : callable
        For the criterion 'taylor'.
    """

    batches: Callable[[], Iterable[Tensor]]
    held_out: Callable[[], Iterable[Tensor]]
    outputs: Outputs
    loss: Loss


@dataclass(frozen=True, eq=False)
class Chosen:
    """The channels that stay, and why others do.

    Attributes
    ----------
    keep : dict of str to list of int
        Ascending, for every space that may lose channels.
    limited : tuple of str
        Spaces that would have lost more without floor and cap.
    left_alone : dict of str to str
        The other spaces, and why they keep all.
    """

    keep: Mapping[str, list[int]]
    limited: tuple[str, ...]
    left_alone: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Scored:
    """Channel spaces that may lose channels, with their scores.

    Attributes
    ----------
    scores : dict of str to torch.Tensor
        In execution order.
    evidence : decomp.criteria.scores.Evidence
    left_alone : dict of str to str
    """

    scores: Mapping[str, Tensor]
    evidence: Evidence
    left_alone: Mapping[str, str]


@said_for_options("criterion")
def score_spaces(source: Unfolded, options: PruneOptions, images: Images | None) -> Scored:
    """Scores of all channels that may go.

    Parameters
    ----------
    source : Unfolded
    options : PruneOptions
    images : Images or None

    Raises
    ------
    UsageError
        For a name in ``skip`` that no layer has, a criterion that needs batch normalisations where there are none, and
        one that needs images where none are given.
    """
    spaces, criterion = source.graph.spaces, options.criterion
    skipped = matching(source.graph, options.skip)
    names = candidates(spaces, coupled=options.coupled, skip=skipped)
    able = scorable(source.network, spaces, names, criterion)
    reasons: Mapping[str, str] = {}
    if criterion == "bn-scale":
        ranked, reasons = rankable_spaces(source.graph, coupled=options.coupled)
        able = [name for name in able if name in ranked]
    left_alone = {
        space.name: _reason(space, skipped, space.name in names, reasons)
        for space in spaces.all
        if space.producers and space.name not in able
    }
    needs_loss = NEEDS[criterion] == "loss"
    evidence = gather(
        source.network, spaces, able, criterion, None if images is None else images.batches(),
        images.loss if images is not None and needs_loss else None,
    )  # fmt: skip
    found = score(source.network, spaces, able, criterion, evidence=evidence, seed=options.seed)
    return Scored(found, evidence, left_alone)


@said_for_options("criterion", "speedup", "ratio")
def choose(
    source: Unfolded, options: PruneOptions, images: Images | None, cost_of: CostOf, original: float,
    branches: Sequence[Branch] = (),
) -> Chosen:  # fmt: skip
    """Channels that stay in each space, by the options.

    Parameters
    ----------
    source : Unfolded
    options : PruneOptions
        With a ratio or a speed-up.
    images : Images or None
    cost_of : callable
        Cost of a choice, for a speed-up.
    original : float
        Cost of the original in its unit.
    branches : sequence of decomp.graph.branches.Branch
        That can go; the choice is empty for a channel space of each that goes, where the options let them.

    Raises
    ------
    UsageError
        As for :func:`score_spaces`.
    TargetError
        The speed-up is out of reach.
    """
    scored = score_spaces(source, options, images)
    if not scored.scores:
        return Chosen({}, (), scored.left_alone)
    try:
        choice = _by_target(scored.scores, options, cost_of, original, branches)
    except TargetError as error:
        if _reached_without(scored.scores, options, cost_of, original, branches):
            fix = f"{error.fix}, or give --remove-branches"
            raise TargetError(error.thing, error.rule, error.got, fix) from error
        if not any("--coupled" in reason for reason in scored.left_alone.values()):
            raise
        # Channels that sums join are not among those that the limit was found with.
        raise TargetError(error.thing, error.rule, error.got, f"{error.fix}, or give --coupled") from error
    if options.scoring == "greedy" and options.criterion in FILTER_CRITERIA:

        def score_of(name: str, removed: Mapping[str, list[int]]) -> Tensor:
            spaces, (left, _) = source.graph.spaces, without_branches(removed, branches, source.graph)
            return score(source.network, spaces, [name], options.criterion, removed=left, seed=options.seed)[name]

        choice = greedily(choice, score_of)
    return Chosen(choice.keep, choice.limited, scored.left_alone)


def _reached_without(
    scores: Mapping[str, Tensor], options: PruneOptions, cost_of: CostOf, original: float, branches: Sequence[Branch]
) -> bool:
    """Whether a target that is out of reach can be met when branches go; not tried where each try is a measurement."""
    if options.remove_branches or not branches or options.latency_batch is not None:
        return False
    try:
        _by_target(scores, replace(options, remove_branches=True), cost_of, original, branches)
    except TargetError:
        return False
    return True


def _by_target(
    scores: Mapping[str, Tensor], options: PruneOptions, cost_of: CostOf, original: float, branches: Sequence[Branch]
) -> Choice:
    emptied = frozenset(name for branch in branches for name in branch.inner if options.remove_branches)
    limits = Limits(options.floor, options.cap, options.multiple, emptied)
    normalisation, ranking = options.normalise, options.ranking
    assert normalisation is not None and ranking is not None  # chosen where a plan does not decide
    if options.speedup is not None:
        return for_speedup(
            scores, options.speedup, cost_of, original=original, ranking=ranking, normalisation=normalisation,
            limits=limits,
        )  # fmt: skip
    assert options.ratio is not None
    if ranking == "global":
        return by_rank(scores, options.ratio, limits, normalisation)
    return by_layer(scores, options.ratio, limits)


def counted_cost(
    graph: NetworkGraph, folded: fx.GraphModule, keep: Mapping[str, list[int]], before: Cost,
    branches: Sequence[Branch] = (),
) -> Cost:  # fmt: skip
    """Cost of a network whose spaces keep only some channels, by formula.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    folded : torch.fx.GraphModule
        With all channels.
    keep : mapping of str to list of int
    before : decomp.cost.count.Cost
        Of `folded`.
    branches : sequence of decomp.graph.branches.Branch
        That go where `keep` is empty for one of their channel spaces.
    """
    left, gone = without_branches(keep, branches, graph)
    layers = {path for branch in gone for path in branch.layers}
    macs = shrunk_macs(graph.spaces, left, {path: n for path, n in before.per_layer.items() if path not in layers})
    return Cost(macs, shrunk_params(folded, graph.spaces, left, without=layers), {})


def _reason(space: ChannelSpace, skipped: set[str], candidate: bool, reasons: Mapping[str, str]) -> str:
    """Why a space keeps all its channels."""
    left = next((name for name in (*space.producers, *space.carriers) if name in skipped), None)
    if space.frozen is not None:
        return f"it {space.frozen}"
    if left is not None:
        return f"{left} is skipped"
    if space.width < 2:
        return "it has one channel that can be kept or dropped"
    if not candidate and united_by_addition(space):
        return f"a sum joins {len(space.producers)} layers; --coupled prunes them together"
    if path := next((path for path in space.carriers if path in reasons), None):
        return f"its normalisation {path} {reasons[path]}"
    return "it has no batch normalisation with scale factors"


def matching(graph: NetworkGraph, patterns: Sequence[str]) -> set[str]:
    """Layers that write or carry channels, by name or by a pattern with * and ?.

    Raises
    ------
    UsageError
        For a pattern that matches none; with the nearest name.
    """
    named: dict[str, set[str]] = {}
    for use in graph.spaces.uses:
        path, _, part = use.path.rpartition(".")
        # A normalisation behind a selection of its own goes by the name that the network has for both.
        both = part in (SELECT, NORM) and isinstance(dict(graph.module.named_modules()).get(f"{path}.{SELECT}"), Select)
        for name in (use.path, path) if both else (use.path,):
            named.setdefault(name, set()).add(use.path)
    layers = {layer.name for layer in graph.layers}
    found, names = set[str](), list(named)
    for pattern in patterns:
        matches = {path for name in names if fnmatchcase(name, pattern) for path in named[name]}
        if not matches:
            there = [name for name in names if name in layers]
            raise UsageError(
                "--skip", "must be a layer's name or match some with * and ?", got=repr(pattern),
                fix=near_miss(pattern, names) or f"there are {listed(there, 12)}",
            )  # fmt: skip
        found |= matches
    return found
