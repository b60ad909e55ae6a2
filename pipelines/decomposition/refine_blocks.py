"""Block refinement behind the layer loop: a few layers at a time towards the original's maps, then all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from decomp import seeds
from decomp.cost.count import cost
from decomp.execution.block_refinement import BlockOf, Pairs, refine_block
from decomp.graph.blocks import Block, find_blocks, joined
from decomp.graph.tracing import trace
from decomp.time_spent import part

from ...data.formats.block_file import read_block, write_block
from ...data.formats.digests import digest_file
from ..console.reporter import Reporter
from ..console.words import counted
from ..distributed.process_group import from_first
from ..distributed.trained_module import take_from_first
from ..run.calibration import any_mixtures, fitted_images, mixtures_for_training
from ..run.conditions import freeze_options
from ..run.held_out import HeldOut, judged_words
from .judge import Judge
from .layer_loop import SolvedLayers
from .session import OpenedRun, SurveyedRun

#: A block has so many layers or more.
LEAST_LAYERS = 2
#: Adam steps of each block, none for no refinement, and images of each step.
STEPS, BATCH = 300, 32
#: Fewer steps where all blocks together would take more multiply-accumulates than both so many passes over the
#: calibration images, about what the rest of the stage takes, and so many in all: a minute or less of one core.
PASSES, LEAST_WORK = 4, 10**12
#: Step of a weight at the first of the steps of all blocks together, relative to the root mean square of its tensor.
RATE_TOGETHER = 0.002
#: Calibration images, without mixtures, from which on all blocks are trained together: measured with 5,000.
LEAST_TOGETHER = 1_000
#: A step takes so many times the work of a forward pass.
STEP_WORK = 3
#: Held-out images on which errors are measured, at most (of few images there are mixtures beside them); and at most one
#: of so many images that fit into memory.
MOST_UNSEEN, UNSEEN_SHARE = 500, 5
#: Fewer images than this for lack of memory: the block is left as it is.
LEAST_IMAGES = 64
LABEL = "refinement of the blocks"
#: Expected share of the stage, beside the other steps that take time.
WORK = 0.5


def refine_blocks(surveyed: SurveyedRun, solved: SolvedLayers, *, reporter: Reporter) -> dict[str, Any]:
    """Refine the blocks of a compressed network in order; each is committed. All stay if the whole network gains.

    A block is trained on what the refined blocks in front of it give, so the network is judged when all are done:
    behind the first of them the others still expect its old values. Then all are trained together towards the
    original's class scores, where these are the only output and there are `LEAST_TOGETHER` images or more.

    Parameters
    ----------
    surveyed : SurveyedRun
        Its graph is of the network, all of whose layers are solved; the weights are changed.
    solved : SolvedLayers
    reporter : Reporter

    Returns
    -------
    dict
        ``blocks``: for each its ``layers``, and ``error_before`` and ``error_after`` of its own output on held-out
        images; ``divergence_before`` and ``divergence_after``, the change of the network's outputs on these ``images``
        and ``mixtures`` of them; ``kept``: whether that is smaller, otherwise all weights are as they were; ``passes``:
        the work of the steps in passes of the original over the calibration images; and ``words``, a line about it.
        Where all blocks are trained together behind that, ``together`` reports on it as on a block. Without blocks
        there are no images and no changes; without steps to take it is empty.

    Raises
    ------
    FileError
        A committed block is damaged or made from something else.
    """
    blocks = find_blocks(surveyed.graph, LEAST_LAYERS) if STEPS else []
    if not blocks:
        none: dict[str, Any] = {"blocks": [], "kept": False}
        return none | {"words": summary(none)} if STEPS else {}
    surveyed.opened.memory.clear()  # of what the layers were fitted to
    # By one process, while the others wait.
    found = from_first(lambda: _refined(surveyed, solved, blocks, reporter))
    take_from_first(surveyed.graph.module)
    return found


def _refined(
    surveyed: SurveyedRun, solved: SolvedLayers, blocks: list[Block], reporter: Reporter
) -> dict[str, Any]:  # fmt: skip
    """The same in one process."""
    opened, ours, parent = surveyed.opened, surveyed.graph.module, solved.digest
    reports, weights_before = list[dict[str, Any]](), list[tuple[BlockOf, dict[str, Tensor]]]()
    trainer = _Trainer(surveyed, solved, blocks)
    divergence = trainer.divergence()
    reporter.step(trainer.work_words())
    unit = "block" if len(trainer.parts) == 1 else "blocks"
    with reporter.progress(len(trainer.parts), LABEL, unit) as progress, part(LABEL):
        for place, block in enumerate(trainer.parts):
            path, own = opened.run.block_file(place), BlockOf(ours, block, opened.memory.limits.batch_size)
            weights_before.append((own, own.weights()))
            if not path.is_file():
                report = trainer.train(own, block)
                write_block(path, block.target, own.weights() if report.get("step") else {}, report, parent)
                own.put(weights_before[-1][1])
            # Put in as read, like in a resumed run: the bytes of both are the same.
            weights, report = read_block(path, block.target, parent)
            own.put(weights)
            parent = digest_file(path)
            reports.append(report)
            reporter.detail(block_words(report, together=block is trainer.together))
            trainer.advance(own, block)
            progress.update(1)
    after = trainer.divergence()
    if not after < divergence:
        for own, weights in reversed(weights_before):
            own.put(weights)
    found: dict[str, Any] = {"divergence_before": divergence, "divergence_after": after}
    found |= {"images": trainer.judge.held_out.n_images, "mixtures": trainer.judge.held_out.n_mixtures}
    found |= {"kept": after < divergence, "blocks": reports[: len(blocks)]}
    if trainer.together is not None:
        found["together"] = reports[-1]
    if any("error_before" in report for report in reports):
        found["passes"] = round(trainer.passes, 2)
    found["words"] = summary(found)
    reporter.detail(found["words"])  # the result of the stage says it
    return found


def _columns(surveyed: SurveyedRun, solved: SolvedLayers) -> dict[str, Tensor]:
    """For each node whose value has fewer channels than in the original: those that stayed, by the name of the node."""
    whole, columns = surveyed.opened.graph.spaces, dict[str, Tensor]()
    if surveyed.narrowed.channels:
        stay = whole.kept_columns(whole.alive(surveyed.narrowed.channels))
        columns = {node.name: places for node, places in stay.items()}
    for name, places in solved.columns.items():
        columns[name] = columns[name][places] if name in columns else places
    return columns


def summary(found: Mapping[str, Any]) -> str:
    """One line: how many blocks were refined and how the change of the outputs changed, or why nothing was kept."""
    reports = found["blocks"]
    if not reports:
        return f"{LABEL}: none, as no value between two layers is the only one that is needed behind it"
    if not any("error_before" in report for report in reports):
        return f"{LABEL}: left out, as fewer than {LEAST_IMAGES} images are at hand or fit into memory"
    blocks, stay = counted(len(reports), "block"), "all weights stay as they were fitted"
    unseen = judged_words(found["images"], found.get("mixtures", 0))
    refined = sum(bool(report.get("step")) for report in reports)
    together = ", then all together" if found.get("together", {}).get("step") else ""
    if not (refined or together):
        return f"{LABEL}: it brought {blocks} no closer to the original on {unseen}; {stay}"
    before, after = (f"{found[name]:.3g}" for name in ("divergence_before", "divergence_after"))
    change = f"change of the outputs on {unseen}: {before} before,"
    if found["kept"]:
        return f"{refined} of {blocks} refined{together}; {change} {after} after"
    return f"{LABEL}: given up, as it brought the whole network no closer ({change} {after} with it); {stay}"


def block_words(report: Mapping[str, Any], together: bool = False) -> str:
    """One line about a block, or about all of them together: its layers, and its error before and after."""
    words = "all blocks together" if together else f"block of {', '.join(report['layers'])}"
    if "error_before" not in report:
        return f"{words}: left as it is"
    errors = f"error of {'their' if together else 'its'} output on held-out images {100 * report['error_before']:.2f} %"
    return f"{words}: {errors} before, {100 * report['error_after']:.2f} % after"


def _in_original(block: Block, original: fx.GraphModule) -> Block:
    """The block with all calls of the original between the same two values, also those that were left out."""
    names = [node.name for node in original.graph.nodes]
    between = names[names.index(block.source) + 1 : names.index(block.target) + 1]
    return replace(block, nodes=tuple(between))


def steps_within(before: int, after: int, n_images: int, batch_size: int) -> tuple[int, int, float]:
    """Steps of each block, those of all blocks together behind them, and the work of one of either in passes.

    A step of each block is as much work as one of all together. A pass is one of the original over the calibration
    images.

    It depends on no time that was measured, so that the result is the same on every machine.

    Parameters
    ----------
    before, after : int
        Multiply-accumulates of the original and of the compressed network for one image.
    n_images : int
        Calibration images, with mixtures.
    batch_size : int
    """
    step = STEP_WORK * batch_size * after
    most = int(max(PASSES * n_images * before, LEAST_WORK) // max(step, 1))
    steps = max(1, min(STEPS, most))
    return steps, max(0, min(STEPS, most - steps)), step / max(n_images * before, 1)


class _Trainer:
    """What the blocks are trained on and judged by, with the values that cross from one block to the next.

    Parameters
    ----------
    surveyed : SurveyedRun
    solved : SolvedLayers
    blocks : list of Block
    """

    def __init__(self, surveyed: SurveyedRun, solved: SolvedLayers, blocks: list[Block]) -> None:
        self.opened, self.network, self.blocks = surveyed.opened, surveyed.graph.module, blocks
        meta = self.opened.frozen.meta
        self.original = trace(self.opened.original, meta["model"], meta.get("leaves") or ()).to(self.opened.device)
        self.columns, self.judge = _columns(surveyed, solved), Judge(self.opened, MOST_UNSEEN)
        self.originals = [_in_original(b, self.original) for b in blocks] if surveyed.narrowed.left_out else blocks
        fitted, unseen = _images(self.opened, self.judge.held_out, self.originals, self.original)
        #: Of the fitted and of the unseen images: values of the compressed network, and of the original.
        self.ours, self.theirs = [fitted, unseen], [fitted, unseen]
        self.behind: str = ""  # node that the values of the original belong to
        self.batch_size = min(BATCH, self.opened.memory.limits.backward_batch)
        before, after = self.opened.cost.macs, cost(self.network, self.opened.frozen.input_shape).macs
        self.n_steps, n_together, passes_of_step = steps_within(
            before, after, self.opened.frozen.n_recorded, self.batch_size
        )
        #: All blocks as one, which is trained behind them towards the outputs; None where that is not done.
        self.together: Block | None = None
        enough = self.opened.frozen.n_images >= LEAST_TOGETHER and len(fitted) >= LEAST_IMAGES
        if enough and n_together and self._ends_in_scores(blocks[-1]):
            self.together, self.images = reduce(joined, blocks), [fitted, unseen]
        self.n_together = n_together if self.together is not None else 0
        self.parts = blocks if self.together is None else [*blocks, self.together]
        self.passes = (self.n_steps + self.n_together) * passes_of_step

    def _ends_in_scores(self, block: Block) -> bool:
        """Whether a block writes class scores that are the only output of the network."""
        if self.judge.outputs.scores is None or block.target in self.columns:
            return False
        (output,) = (node.args[0] for node in self.network.graph.nodes if node.op == "output")
        return isinstance(output, fx.Node) and output.name == block.target

    def work_words(self) -> str:
        """One line: the steps of each block and of all together, and their work."""
        words = f"{counted(self.n_steps, 'step')} of {counted(self.batch_size, 'image')} for each block"
        together = f" and {self.n_together} for all together" if self.n_together else ""
        return f"{LABEL}: {words}{together}, the work of {self.passes:.1f} passes over the calibration images"

    def divergence(self) -> float:
        """Change of the outputs of the network as it is, on held-out images."""
        return float(self.judge.changes(self.network).mean())

    def train(self, own: BlockOf, block: Block) -> dict[str, Any]:
        """Train a block, and report on it."""
        report: dict[str, Any] = {"layers": list(block.layers)}
        if len(self.ours[0]) < LEAST_IMAGES:
            return report
        if block is self.together:
            return report | self._train_together(own)
        self._advance_original(block)
        stay = self.columns.get(block.target)
        stay = None if stay is None else torch.as_tensor(stay, device=self.opened.device)
        fitted, unseen = (Pairs(x, y, stay) for x, y in zip(self.ours, self.theirs))
        return report | refine_block(
            own, fitted, unseen, steps=self.n_steps, batch_size=self.batch_size,
            generator=seeds.generator(self.opened.frozen.meta["seed"], "decompose", "block", block.target),
            judge=self.divergence if block is self.blocks[-1] else None,
        )  # fmt: skip

    def _train_together(self, own: BlockOf) -> dict[str, Any]:
        """Train all blocks as one: their errors add up, and the outputs tell which of them count."""
        outputs = self.judge.outputs
        name, seed = outputs.each[0].name, self.opened.frozen.meta["seed"]
        fitted, unseen = (Pairs(x, y) for x, y in zip(self.images, self.theirs))
        return refine_block(
            own, fitted, unseen, steps=self.n_together, batch_size=self.batch_size, rate=RATE_TOGETHER,
            generator=seeds.generator(seed, "decompose", "blocks together"), judge=self.divergence,
            loss=lambda wanted, got: outputs.loss({name: wanted}, {name: got}),
        )  # fmt: skip

    def advance(self, own: BlockOf, block: Block) -> None:
        """Go on to what a finished block gives; behind all blocks together nothing follows."""
        if block is self.together:
            return
        self._advance_original(block)
        self.ours = [own.of_all(values) for values in self.ours]

    def _advance_original(self, block: Block) -> None:
        if self.behind != block.target:
            stretch = self.originals[self.blocks.index(block)]
            original = BlockOf(self.original, stretch, self.opened.memory.limits.batch_size)
            self.theirs, self.behind = [original.of_all(values) for values in self.theirs], block.target


def _images(
    opened: OpenedRun, held_out: HeldOut, blocks: list[Block], original: fx.GraphModule
) -> tuple[Tensor, Tensor]:
    """The images that all blocks are fitted to, with mixtures of them, and held-out ones; as many as memory allows.

    The mixtures are those that freeze has recorded and, of few images, others.
    """
    frozen, n_fit = opened.frozen, fitted_images(opened.frozen.n_images)
    place = _bytes_of_values(blocks, original, frozen.images(0, 1).to(opened.device))
    most = opened.memory.limits.store_in_memory // max(place, 1)
    unseen = held_out.images(0, most // UNSEEN_SHARE).to(opened.device)
    most -= len(unseen)
    images = frozen.images(0, min(n_fit, most))
    parts = [images, frozen.images(frozen.n_images, frozen.n_recorded)[: most - len(images)]]
    n_more = min(
        most - len(images) - len(parts[1]),
        mixtures_for_training(frozen.n_images, frozen.n_recorded, opened.cost.macs),
    )
    if n_more > 0 and len(images) > 1 and freeze_options(opened.run).mix:
        generator = seeds.generator(frozen.meta["seed"], "decompose", "mixtures")
        parts.append(any_mixtures(images, n_more, generator))
    return torch.cat(parts).to(opened.device), unseen


def _bytes_of_values(blocks: list[Block], original: fx.GraphModule, image: Tensor) -> int:
    """Most bytes an image of all that is held at a time: the values in front of a block and behind it, of both."""
    sizes, value = [image.nbytes], image
    for block in blocks:
        value = BlockOf(original, block).of_all(value)
        sizes.append(value.nbytes)
    # The images themselves stay, for the steps of all blocks together.
    return image.nbytes + 2 * max(a + b for a, b in zip(sizes, sizes[1:])) if blocks else 0
