"""Block refinement behind the layer loop: the weights of a few layers at a time, towards the original's maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from decomp import seeds
from decomp.execution.block_refinement import BlockOf, Pairs, blends, refine_block, targets_of
from decomp.execution.output_change import Outputs
from decomp.graph.blocks import Block, find_blocks
from decomp.graph.tracing import trace
from decomp.time_spent import part

from ...data.formats.block_file import read_block, write_block
from ...data.formats.digests import digest_file
from ...data.formats.frozen_file import FrozenFile
from ..console.reporter import Reporter
from ..console.words import counted
from ..distributed.process_group import from_first
from ..distributed.trained_module import take_from_first
from ..run.calibration import fitted_images
from ..run.conditions import freeze_options
from ..run.outputs import frozen_outputs
from .layer_loop import SolvedLayers
from .session import OpenedRun, SurveyedRun

#: A block has so many layers or more.
LEAST_LAYERS = 2
#: Blends of two images for each fitted image, beside the images themselves.
BLENDS = 4
#: Adam steps of each block, and images of each step.
STEPS, BATCH = 300, 32
#: Held-out images on which errors are measured, at most.
MOST_UNSEEN = 500
#: Fewer images than this for lack of memory: the block is left as it is.
LEAST_IMAGES = 64
LABEL = "refinement of the blocks"


@dataclass
class _Values:
    """What crosses from one block to the next: of the compressed network and of the original, for the same images."""

    ours: Tensor
    theirs: Tensor

    def pairs(self, behind: Tensor, columns: Tensor | None) -> Pairs:
        return Pairs(self.ours, targets_of(behind, columns))


def refine_blocks(surveyed: SurveyedRun, solved: SolvedLayers, *, reporter: Reporter) -> dict[str, Any]:
    """Refine the blocks of a compressed network in order; each is committed. All stay if the whole network gains.

    A block is trained on what the refined blocks in front of it give, so the network is judged when all are done:
    behind the first of them the others still expect its old values.

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
        images; ``divergence_before`` and ``divergence_after``, the change of the network's outputs on these ``images``;
        and ``kept``: whether that is smaller, otherwise all weights are as they were.

    Raises
    ------
    FileError
        A committed block is damaged or made from something else.
    """
    # By one process, while the others wait.
    found = from_first(lambda: _refined(surveyed, solved, reporter))
    take_from_first(surveyed.graph.module)
    return found


def _refined(surveyed: SurveyedRun, solved: SolvedLayers, reporter: Reporter) -> dict[str, Any]:
    """The same in one process."""
    opened, graph = surveyed.opened, surveyed.graph
    ours, run, parent = graph.module, opened.run, solved.digest
    columns = _columns(surveyed, solved)
    theirs = trace(opened.original, opened.frozen.meta["model"], opened.frozen.meta.get("leaves") or ())
    theirs.to(opened.device)
    blocks, reports = find_blocks(graph, LEAST_LAYERS), list[dict[str, Any]]()
    judge, weights_before = _Judge(opened, theirs), list[tuple[BlockOf, dict[str, Tensor]]]()
    divergence = judge.divergence(ours)
    originals = [_in_original(block, theirs) for block in blocks] if surveyed.narrowed.left_out else blocks
    fitted, unseen = _images(opened, originals, theirs)
    unit = "block" if len(blocks) == 1 else "blocks"
    with reporter.progress(len(blocks), LABEL, unit) as progress, part(LABEL):
        for number, block in enumerate(blocks):
            path, at_a_time = run.block_file(number), opened.memory.limits.batch_size
            own, original = BlockOf(ours, block, at_a_time), BlockOf(theirs, originals[number], at_a_time)
            behind = [original.of_all(values.theirs) for values in (fitted, unseen)]
            weights_before.append((own, own.weights()))
            if not path.is_file():
                report: dict[str, Any] = {"layers": list(block.layers)}
                if len(fitted.ours) >= LEAST_IMAGES:
                    stay = columns.get(block.target)
                    pairs = fitted.pairs(behind[0], stay), unseen.pairs(behind[1], stay)
                    generator = seeds.generator(opened.frozen.meta["seed"], "decompose", "block", block.target)
                    size = min(BATCH, opened.memory.limits.backward_batch)
                    report |= refine_block(
                        own, *pairs, steps=STEPS, batch_size=size, generator=generator,
                        judge=(lambda: judge.divergence(ours)) if block is blocks[-1] else None,
                    )  # fmt: skip
                    del pairs
                write_block(path, block.target, own.weights() if report.get("step") else {}, report, parent)
                own.put(weights_before[-1][1])
            # Put in as read, like in a resumed run: the bytes of both are the same.
            weights, report = read_block(path, block.target, parent)
            own.put(weights)
            parent = digest_file(path)
            reports.append(report)
            reporter.detail(block_words(report))
            fitted, unseen = (_Values(own.of_all(v.ours), out) for v, out in zip((fitted, unseen), behind))
            progress.update(1)
    after = judge.divergence(ours)
    if not after < divergence:
        for own, weights in weights_before:
            own.put(weights)
    found: dict[str, Any] = {"divergence_before": divergence, "divergence_after": after, "images": judge.n_images}
    found |= {"kept": after < divergence, "blocks": reports}
    reporter.step(summary(found))
    return found


def _in_original(block: Block, original: fx.GraphModule) -> Block:
    """The block with all calls of the original between the same two values, also those that were left out."""
    names = [node.name for node in original.graph.nodes]
    between = names[names.index(block.source) + 1 : names.index(block.target) + 1]
    return replace(block, nodes=tuple(between))


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
    """One line: how many blocks were refined, and how the change of the outputs changed."""
    refined = sum(bool(report.get("step")) for report in found["blocks"])
    words = f"{refined} of {counted(len(found['blocks']), 'block')} refined; change of the outputs on"
    words += f" {counted(found['images'], 'held-out image')}: {found['divergence_before']:.3g} before,"
    return f"{words} {found['divergence_after']:.3g} after" + ("" if found["kept"] else "; the network stays as it was")


def block_words(report: Mapping[str, Any]) -> str:
    """One line about a block: its layers, and its error before and after."""
    words = f"block of {', '.join(report['layers'])}"
    if "error_before" not in report:
        return f"{words}: left as it is"
    errors = f"error of its output on held-out images {100 * report['error_before']:.2f} %"
    return f"{words}: {errors} before, {100 * report['error_after']:.2f} % after"


class _Judge:
    """Change of the outputs of a network from those of the original, on held-out images."""

    def __init__(self, opened: OpenedRun, original: nn.Module) -> None:
        self.outputs: Outputs = frozen_outputs(opened.frozen)
        self.device, self.frozen = opened.device, opened.frozen
        self.places = _unseen(opened.frozen)
        self.batch_size = opened.memory.limits.batch_size
        self.n_images = len(self.places)
        self.wanted = [self._named(original, part) for part in self._parts()]

    @torch.no_grad()
    def divergence(self, network: nn.Module) -> float:
        pairs = zip(self.wanted, self._parts())
        total = sum(float(self.outputs.change(wanted, self._named(network, part)).sum()) for wanted, part in pairs)
        return total / self.n_images

    def _parts(self) -> list[range]:
        starts = range(self.places.start, self.places.stop, self.batch_size)
        return [range(start, min(start + self.batch_size, self.places.stop)) for start in starts]

    @torch.no_grad()
    def _named(self, network: nn.Module, part: range) -> dict[str, Tensor]:
        x = self.frozen.images(part.start, part.stop).to(self.device)
        return self.outputs.named(network(x), len(x))


def _unseen(frozen: FrozenFile) -> range:
    first = fitted_images(frozen.n_images)
    return range(first, min(frozen.n_images, first + MOST_UNSEEN))


def _images(opened: OpenedRun, blocks: list[Block], original: fx.GraphModule) -> tuple[_Values, _Values]:
    """The images that all blocks are fitted to, with blends of them, and held-out ones; as many as memory allows."""
    frozen, unseen = opened.frozen, _unseen(opened.frozen)
    n_fit = fitted_images(frozen.n_images)
    place = _bytes_of_values(blocks, original, frozen.images(0, 1).to(opened.device))
    most = max(0, opened.memory.limits.store_in_memory // max(place, 1) - len(unseen))
    images = frozen.images(0, min(n_fit, most))
    generator = seeds.generator(frozen.meta["seed"], "decompose", "mixtures")
    mixed = freeze_options(opened.run).mix and len(images) == n_fit
    rounds = [blends(images, generator) for _ in range(BLENDS if mixed else 0)]
    pool = torch.cat([images, *rounds])[:most].to(opened.device)
    held_out = frozen.images(unseen.start, unseen.stop).to(opened.device)
    return _Values(pool, pool), _Values(held_out, held_out)


def _bytes_of_values(blocks: list[Block], original: fx.GraphModule, image: Tensor) -> int:
    """Most bytes an image of all that is held at a time: the values in front of a block and behind it, of both."""
    sizes, value = [image.nbytes], image
    for block in blocks:
        value = BlockOf(original, block).of_all(value)
        sizes.append(value.nbytes)
    return 2 * max(a + b for a, b in zip(sizes, sizes[1:])) if blocks else 0
