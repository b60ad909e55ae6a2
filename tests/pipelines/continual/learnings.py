"""What the phases of a third task share, for tests."""

import torch

from decomp.data.sources import open_source
from decomp.pipelines.console.options import TaskOptions
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.continual.guard import Guard
from decomp.pipelines.continual.images import task_images
from decomp.pipelines.continual.phases import Learning
from decomp.pipelines.continual.store import TaskStore
from tests.pipelines.task_runs import QUICK, halves


def learning(folder, run, **options):
    """A third task on noisy images in a run that may be written to."""
    store = TaskStore.open(run)
    data = halves(folder / "third.npz", 1, seed=9, noise=2.0)
    quick = {key: value for key, value in QUICK.items() if key != "device"}
    asked = TaskOptions(name="third", data=data, **{**quick, **options})
    images = task_images(open_source(data), 0)
    guard = Guard(store, store.tasks())
    return Learning(store, asked, images, 3, guard, "identity", torch.device("cpu"), Reporter(quiet=True))
