"""Throughput of fine-tuning beside a plain PyTorch loop."""

import time

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.settings import entry
from decomp.data.models import load_model
from decomp.data.splits import MemorySplit
from decomp.data.transforms import Augmentation, Normalisation
from decomp.pipelines.measure.devices import autocast
from decomp.pipelines.stages.train import classification_loss
from decomp.pipelines.training.loop import fit
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.training_record import LABEL_SMOOTHING

#: Images in memory; an epoch goes through them several times.
KEPT = 512
RATE = 0.001
RECIPE = {"learning_rate": RATE, "warmup_epochs": 0, "schedule": "constant"}


def tuning(setting, out):
    """Images per second of our loop, of a plain one on the same batches, and of one without preparation of images."""
    del out
    loaded = load_model(setting.tuned, weights="random", input_size=(3, setting.side, setting.side), n_classes=10)
    module, device = loaded.module, torch.device(setting.device)
    split = images_of(min(KEPT, setting.batch * setting.steps), loaded.input_shape)
    best = {}
    for name, loop in (
        ("plain", plain), ("ours", ours), ("resident", resident), ("ours", ours), ("plain", plain)
    ):  # fmt: skip
        rate = loop(module, split, setting, device)
        best[name] = max(rate, best.get(name, 0.0))
    yield entry("decomp's loop", best["ours"], "images/s")
    yield entry("plain loop on the same batches", best["plain"], "images/s")
    yield entry("plain loop on one batch that stays on the device", best["resident"], "images/s")
    yield entry("decomp's of the plain loop's", best["ours"] / best["plain"], "times", least=0.95)
    yield entry("decomp's of that without preparation of images", best["ours"] / best["resident"], "times")


def images_of(count, shape):
    """Labelled noise in memory, augmented as CIFAR's images are."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (count, *shape), np.uint8))
    labels = torch.from_numpy(random.integers(0, 10, count))
    channels = shape[0]
    normalisation = Normalisation(255.0, (0.5,) * channels, (0.25,) * channels)
    return MemorySplit(pixels, labels, shape, normalisation, Augmentation(pad=4, flip=True))


def ours(module, split, setting, device):
    """Images per second of :func:`decomp.pipelines.training.loop.fit` in its second epoch."""
    count = setting.batch * setting.steps
    history = fit(
        module, Recipe(epochs=2, batch_size=setting.batch, **RECIPE), stage="benchmark", n_images=count,
        batches=lambda order, size, seed: split.batches(order % len(split), size, augment_seed=seed),
        loss=classification_loss, device=device,
    ).history  # fmt: skip
    return count / history[-1]["seconds"]


def plain(module, split, setting, device):
    """The same of a loop as people write it: the batches of the same images, bfloat16, channels last, SGD."""
    module.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    count = setting.batch * setting.steps
    for epoch in range(2):
        start = time.perf_counter()
        losses = []
        order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch)) % len(split)
        for images, labels in split.batches(order, setting.batch, augment_seed=epoch):
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            losses.append(_step(module, optimizer, images, labels.to(device, non_blocking=True)))
        torch.stack(losses).cpu()
        seconds = time.perf_counter() - start
    return count / seconds


def resident(module, split, setting, device):
    """The same on one batch that stays on the device."""
    module.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, labels = next(iter(split.batches(torch.arange(setting.batch) % len(split), setting.batch)))
    images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
    for _ in range(2):
        start = time.perf_counter()
        torch.stack([_step(module, optimizer, images, labels) for _ in range(setting.steps)]).cpu()
        seconds = time.perf_counter() - start
    return setting.batch * setting.steps / seconds


def _step(module, optimizer, images, labels):
    optimizer.zero_grad(set_to_none=True)
    with autocast(images.device):
        scores = module(images).float()
        loss = nn.functional.cross_entropy(scores, labels, label_smoothing=LABEL_SMOOTHING)
    loss.backward()
    optimizer.step()
    return loss.detach()
