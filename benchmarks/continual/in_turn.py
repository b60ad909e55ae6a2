"""One network fine-tuned on one task after the other, with a head for each task: the baseline that forgets."""

from dataclasses import replace

import torch

from decomp.data.sources import open_source
from decomp.pipelines.continual.guard import Guard
from decomp.pipelines.continual.images import task_images, test_accuracy
from decomp.pipelines.continual.phases import classification_loss, stepped_recipe
from decomp.pipelines.continual.scheme import CpgScheme
from decomp.pipelines.continual.starts import start
from decomp.pipelines.continual.store import base_state
from decomp.pipelines.training.hooks import Hooks
from decomp.pipelines.training.loop import fit
from decomp.schemes.cpg_module import TaskModule

CPU = torch.device("cpu")


def in_turn(store, names, setting):
    """Accuracy of every task after each task.

    Parameters
    ----------
    store : decomp.pipelines.continual.store.TaskStore
        Gives the base network and the seed.
    names : list of str
        Sources of the tasks.
    setting : benchmarks.continual.settings.Setting
    """
    family, seed = store.family(False), store.options.seed
    state, heads, opened, matrix = base_state(store.base, family), [], [], []
    for number, name in enumerate(names, start=1):
        images = task_images(open_source(name), seed)
        opened.append(images)
        begin = start(family, state, 1, 1.0, images.n_classes, seed=seed + number)
        module = TaskModule(family.build(1.0, images.n_classes), begin, 1)
        scheme = CpgScheme(module, Guard(store, ()), 4e-5)
        recipe = stepped_recipe(setting.epochs, setting.learning_rate, setting.batch_size, seed)
        fit(
            module, recipe, stage=f"in turn/{number}", n_images=len(images.train), batches=images.batches,
            loss=classification_loss, keep_best=False, hooks=[Hooks.of(scheme, "decay")], device=CPU,
        )  # fmt: skip
        state = module.state()
        heads.append({key: value for key, value in state.private.items() if key.startswith(f"{family.head}.")})
        free = {layer: torch.zeros_like(owner) for layer, owner in state.owners.items()}
        matrix.append([_accuracy(family, state, head, one) for head, one in zip(heads, opened)])
        state = replace(state, owners=free)
    return matrix


def _accuracy(family, state, head, images):
    network = family.build(1.0, images.n_classes)
    network.load_state_dict({**state.effective(1), **head})
    return test_accuracy(images.source, network, CPU)
