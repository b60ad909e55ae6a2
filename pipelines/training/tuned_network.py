"""Network of a run as a fine-tuning trains it, with batch normalisations where the task uses them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ...data.formats.network_file import WITH_BATCHNORM, read_structure
from ..console.reporter import Reporter
from ..console.words import counted
from ..run.directory import RunDirectory
from ..run.loading import load_network
from ..run.networks import RunNetwork
from .batchnorm import MIN_BATCH_SIZE, insert_batchnorm
from .memory import images_within
from .recipe import Recipe
from .tasks import TrainingTask


def trained_network(
    run: RunDirectory,
    source: RunNetwork,
    task: TrainingTask,
    recipe: Recipe,
    device: torch.device,
    memory: int | None,
    reporter: Reporter,
) -> tuple[fx.GraphModule, list[str], dict[str, str]]:
    """The network as it is trained: with the batch normalisations that it came with, or with new ones.

    Parameters
    ----------
    run : RunDirectory
    source : RunNetwork
    task : decomp.pipelines.training.tasks.TrainingTask
    recipe : Recipe
    device : torch.device
    memory : int or None
        Limit in bytes for the pass that measures statistics, see :mod:`decomp.pipelines.training.memory`.
    reporter : Reporter

    Returns
    -------
    network : torch.fx.GraphModule
    inserted : list of str
        Paths for :func:`decomp.surgery.batchnorm.fold_inserted`.
    own : dict of str to str
        Paths of the layers and of the normalisations that it came with.
    """
    folder = source.path(run)
    unfolded, size = folder / WITH_BATCHNORM, min(recipe.batch_size, len(task.train))
    if task.uses_batchnorm and size >= MIN_BATCH_SIZE and (unfolded / "structure.json").is_file():
        network = load_network(run, unfolded)
        own = {layer: place for layer, place in read_structure(unfolded)["meta"]["normalised"]}
        reporter.step(f"trained with the original's {len(own)} batch normalisations, folded in the files")
        return network, [], own
    network = load_network(run, folder)
    return network, _insert_batchnorm(run, network, task, recipe, device, memory, reporter), {}


def _insert_batchnorm(
    run: RunDirectory,
    network: nn.Module,
    task: TrainingTask,
    recipe: Recipe,
    device: torch.device,
    memory: int | None,
    reporter: Reporter,
) -> list[str]:
    """Put batch normalisations behind the layers that had them in the original, if the task uses them."""
    if not task.uses_batchnorm:
        return []
    structure = read_structure(run.original_dir)
    pairs = structure["meta"].get("normalised")  # there are other edits too: modules exchanged for plain ones
    layers = [edit["module"] for edit in structure["edits"]] if pairs is None else [layer for layer, _ in pairs]
    there = dict(network.named_modules(remove_duplicate=False))
    layers = [layer for layer in layers if layer in there]  # not those of blocks that were left out
    at_a_time = images_within(network.to(device), first_image(task), memory, device)
    paths = insert_batchnorm(network, layers, recipe, len(task.train), task.batches, device, at_a_time)
    if paths:
        reporter.step(
            f"batch normalisation inserted behind {counted(len(paths), 'layer')} for training, folded in the files"
        )
    return paths


def first_image(task: TrainingTask) -> Tensor:
    """The first training image, (1, C, H, W), on the CPU."""
    images, _ = next(iter(task.batches(torch.zeros(1, dtype=torch.int64), 1, 0)))
    return images
