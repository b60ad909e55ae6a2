"""Search for what no curve of a layer tells: the share of channels that residual streams keep, and the blocks that go.

Few candidates are tried. Each gets the sizes of all layers for the asked speed-up, and its layers are fitted
(:mod:`decomp.pipelines.decomposition.trial`); the one with the least change of the outputs is taken. As the held-out
images are few, a candidate has to be better than the simpler one by more than twice the standard error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from decomp.allocation.choices import LayerPlans, number
from decomp.allocation.interfaces import CostModel
from decomp.allocation.plan import Plan
from decomp.cost.models import counted_model
from decomp.errors import TargetError
from decomp.graph.branches import Branch
from decomp.graph.network_graph import NetworkGraph

from ..console.options import DecomposeOptions
from ..console.parse import AUTO
from ..console.reporter import Reporter
from ..console.words import counted
from ..distributed.process_group import from_first
from ..run.directory import RunDirectory
from .best_of_trials import BestOfTrials
from .latency_plan import candidate_for_latency, latency_model
from .left_out import blocks_of, named_blocks, without_blocks
from .make_plan import allocate_counted, latency_problem, plan_curves, read_plan
from .memory import StageMemory
from .rules import plan_rules
from .session import SPACES, OpenedRun, SurveyedRun, narrow, survey
from .target_search import MOST

#: Trials of blocks to leave out, at most; and those in a row that may bring nothing, until the search ends.
MOST_SETS, PATIENCE = 12, 3


def surveyed_run(
    opened: OpenedRun, candidates: Mapping[float, Mapping[str, int]], options: DecomposeOptions, reporter: Reporter
) -> SurveyedRun:
    """The network with its channel spaces narrowed, surveyed; of several candidates the best one at the target.

    Parameters
    ----------
    opened : OpenedRun
    candidates : mapping of float to mapping of str to int
        By the share of the channels that stay: channel spaces with their numbers of remaining channels. One alone is
        taken without a trial.
    options : DecomposeOptions
    reporter : Reporter
    """
    if len(candidates) == 1:
        (widths,) = candidates.values()
        narrowed = narrow(opened, widths, reporter=reporter)
        return survey(opened, narrowed, sampler=options.sampler, reporter=reporter)
    trials = BestOfTrials[tuple[float, SurveyedRun]](opened, options, reporter)
    work = Work(opened.memory)
    first: tuple[float, SurveyedRun] | None = None
    for share, widths in candidates.items():
        folder = opened.run.layers_dir / f"share-{share:g}"
        own = _copy(opened, f"share-{share:g}")
        narrowed = narrow(own, widths, folder=folder, reporter=reporter)
        path = folder / opened.run.curves.name if widths else None
        surveyed = survey(own, narrowed, sampler=options.sampler, path=path, reporter=reporter)
        first = first or (share, surveyed)
        words = f"{100 * share:g} % of the channels of whole spaces"
        plans = from_first(partial(_proposed, surveyed, options, reporter))
        if plans is None:
            reporter.step(f"{words}: {options.speedup:g}x is out of reach, or passed already")
        else:
            trials.take((share, surveyed), words, surveyed, plans)
        work.add(own.memory)
    assert first is not None
    chosen, best = trials.best or first
    why = "" if trials.best is not None else ", as no share reaches the target"
    reporter.step(f"coupled: {100 * chosen:g} % of the channels stay{why}")
    work.pass_on(best.opened.memory)
    _keep_files(opened.run, chosen, candidates)
    return replace(best, opened=replace(best.opened, graph=opened.graph))


class Work:
    """Forward work of candidates, each of which begins with the count of a common memory.

    Parameters
    ----------
    common : StageMemory
    """

    def __init__(self, common: StageMemory) -> None:
        self.common, self._begun, self._spent = common, common.forward_images, 0.0

    def add(self, memory: StageMemory) -> None:
        """The work of one candidate is done; the next one begins with the present count."""
        if memory is not self.common:
            self._spent += memory.forward_images - self._begun
        self._begun = self.common.forward_images

    def pass_on(self, memory: StageMemory) -> None:
        """Bring the count of the chosen candidate to all work that was done."""
        memory.count_passes(self.common.forward_images + self._spent - memory.forward_images)


def _copy(opened: OpenedRun, name: str) -> OpenedRun:
    """The same with a copy of its network, which can be narrowed."""
    graph, memory = opened.graph.copied(), opened.memory
    own = StageMemory(graph.module, memory.foot, memory.limits, memory.folder / name)
    own.count_passes(memory.forward_images)
    return replace(opened, graph=graph, memory=own)


def _keep_files(run: RunDirectory, chosen: float, candidates: Mapping[float, Mapping[str, int]]) -> None:
    """Put the files of the chosen share in their places, and remove those of the others."""
    for share in candidates:
        folder = run.layers_dir / f"share-{share:g}"
        if share == chosen and folder.is_dir():
            for path in (run.layers_dir / SPACES, run.curves):
                os.replace(folder / path.name, path)
        shutil.rmtree(folder, ignore_errors=True)


def with_blocks_left_out(
    run: RunDirectory, options: DecomposeOptions, given: Plan | None, surveyed: SurveyedRun, reporter: Reporter
) -> SurveyedRun:
    """The network without the blocks that its plan or the options leave out, or without those that a search finds.

    Parameters
    ----------
    run : RunDirectory
        Its plan.json decides, if there is one.
    options : DecomposeOptions
    given : decomp.allocation.plan.Plan or None
        From a file that the caller has given; decides where there is no plan.json.
    surveyed : SurveyedRun
        With all blocks.
    reporter : Reporter

    Raises
    ------
    UsageError
        A name of the option means no block that can be left out.
    TargetError
        The same of a plan, or the target is out of reach whatever goes.
    """
    names, blocks = blocks_to_leave_out(run, options, given, surveyed.graph)
    if blocks:
        trials = BestOfTrials[SurveyedRun](surveyed.opened, options, reporter)
        return _Search(options, surveyed, blocks, trials, reporter).run()
    return without_blocks(surveyed, names) if names else surveyed


def blocks_to_leave_out(
    run: RunDirectory, options: DecomposeOptions, given: Plan | None, graph: NetworkGraph
) -> tuple[list[str], list[Branch]]:
    """Names of the residual blocks that go, or the blocks of which some may go where the option is 'auto'.

    Parameters and errors as for :func:`with_blocks_left_out`.
    """
    names, what = list(options.leave_out), "--leave-out"
    plan = read_plan(run.plan_json, of_run=True) if run.plan_json.is_file() else given
    if plan is not None:
        names, what = plan.left_out, str(run.plan_json) if plan is not given else "the plan"
    elif names and options.max_layer_speedup is not None:
        rule = "takes layers away, which no largest speed-up of a layer allows"
        raise TargetError(what, rule, got="--max-layer-speedup", fix="leave one out")
    if not names:
        return [], []
    skip = plan_rules(options, graph).rules.skip
    if names != [AUTO] or plan is not None:
        return named_blocks(graph, names, what, skip), []
    blocks = blocks_of(graph, skip)
    if not blocks:
        rule = "this network has no residual block that can be left out"
        raise TargetError(what, rule, got=AUTO, fix="leave the option out")
    return [], blocks


@dataclass(eq=False)
class _Search:
    """One block after the other, the one first that loses the least for what it saves, goes where the outputs gain.

    Of networks with many blocks several neighbours in this order are tried at a time.
    """

    options: DecomposeOptions
    surveyed: SurveyedRun
    blocks: Sequence[Branch]
    trials: BestOfTrials[SurveyedRun]
    reporter: Reporter

    def run(self) -> SurveyedRun:
        order = self._order()
        together = -(-len(order) // MOST_SETS)
        steps = [[], *(order[at : at + together] for at in range(0, len(order), together))]
        gone, worse, before = list[str](), 0, None
        work = Work(self.surveyed.opened.memory)
        with self.reporter.progress(len(steps), "blocks to leave out", "trials") as progress:
            for names in steps:
                part = without_blocks(self.surveyed, [*gone, *names])
                plans = from_first(partial(_proposed, part, self.options, self.reporter))
                words = self._words(part.narrowed.left_out)
                taken = plans is not None and self.trials.take(part, words, part, plans)
                work.add(part.opened.memory)
                progress.update(1)
                if not names:
                    before = self.trials.changes
                # Where the target is out of reach so far, blocks go until it is not.
                if taken or self.trials.changes is None:
                    gone, worse = [*gone, *names], 0
                else:
                    worse += 1
                if worse == PATIENCE:
                    break
        best = self.trials.best or self.surveyed
        work.pass_on(best.opened.memory)
        self._say(best, self.trials.changes, before)
        return best

    def _order(self) -> list[str]:
        """Names of the blocks, the one first whose branch changes the outputs the least for the cost it saves."""
        shares = from_first(self._shares)
        whole, loss = self.trials.judge.changes_of_first(self.surveyed.graph.module), dict[str, float]()
        for block in self.blocks:
            part = without_blocks(self.surveyed, [block.name])
            change = float((self.trials.judge.changes_of_first(part.graph.module) - whole).mean())
            loss[block.name] = max(change, 0.0) / max(shares[block.name], 1e-12)
            words = f"change of the outputs {change:.3g}, {100 * shares[block.name]:.1f} % of the cost"
            self.reporter.detail(f"without {block.name}: {words}")
        return sorted(loss, key=lambda name: loss[name])

    def _shares(self) -> dict[str, float]:
        """Share of the cost in the layers of each block."""
        cost = _cost_model(self.surveyed, self.options, self.reporter)
        own = {
            layer.name: number(cost.layer(layer, layer.in_channels, layer.out_channels))
            for layer in self.surveyed.graph.layers
        }
        return {block.name: sum(own.get(path, 0.0) for path in block.layers) / cost.total for block in self.blocks}

    def _words(self, names: Sequence[str]) -> str:
        return f"without {counted(len(names), 'block')} ({', '.join(names)})" if names else "with all blocks"

    def _say(self, best: SurveyedRun, least: Tensor | None, before: Tensor | None) -> None:
        gone = best.narrowed.left_out
        if least is None:
            self.reporter.step("no block is left out: without them the speed-up is out of reach, too")
            return
        if not gone:
            self.reporter.step("no block is left out: none lowers the change of the outputs at this speed-up")
            return
        instead = f" instead of {float(before.mean()):.3g}" if before is not None else ", out of reach with all blocks"
        words = f"left out: {', '.join(gone)}; change of the outputs {float(least.mean()):.3g}{instead}"
        self.reporter.step(f"{words}, at the same speed-up")


def _proposed(surveyed: SurveyedRun, options: DecomposeOptions, reporter: Reporter) -> LayerPlans | None:
    """Sizes for the target, for one of latency by measurements of whole networks; None where there are none."""
    try:
        if options.cost == "latency":
            return candidate_for_latency(latency_problem(options, surveyed, reporter))
        cost = _cost_model(surveyed, options, reporter)
        unsplit = (number(cost.layer(la, la.in_channels, la.out_channels)) for la in surveyed.graph.layers)
        if (cost.rest + sum(unsplit)) * MOST * options.speedup < cost.total:
            return None
        rules, curves = plan_rules(options, surveyed.graph), plan_curves(options, surveyed)
        return allocate_counted(options, surveyed, curves, rules).plans
    except TargetError:
        return None


def _cost_model(surveyed: SurveyedRun, options: DecomposeOptions, reporter: Reporter) -> CostModel:
    """The cost that the plan reduces; for a latency by its table of times."""
    if options.cost == "latency":
        return latency_model(latency_problem(options, surveyed, reporter))
    return counted_model(options.cost, surveyed.graph, surveyed.narrowed.macs_by_layer, surveyed.opened.cost)
