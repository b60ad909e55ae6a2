"""Rows of avalanche-lib's strategies on the same tasks; for an environment of its own (see requirements.txt)."""

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import numbers
from benchmarks.continual import rows
from benchmarks.continual.settings import SETTINGS, write_tasks
from decomp.data import zoo
from decomp.data.sources import open_source
from decomp.pipelines.continual.images import task_images
from decomp.pipelines.continual.phases import milestones

METHODS = ("naive", "ewc", "lwf", "replay")
#: Strength of each method as its authors' code for split tasks has it, and the images that are kept.
EWC_LAMBDA, LWF_ALPHA, LWF_TEMPERATURE, KEPT_IMAGES = 0.4, 1.0, 2.0, 200


class Network(nn.Module):
    """A network of the zoo with its last layer apart, where the library puts a head for each task."""

    def __init__(self, network):
        super().__init__()
        *features, self.classifier = network.children()
        self.features = nn.Sequential(*features)

    def forward(self, x):
        return self.classifier(self.features(x))


def strategy_of(method, network, setting):
    """A strategy of the library with the training of all methods."""
    from avalanche.models import as_multitask
    from avalanche.training.plugins import LRSchedulerPlugin
    from avalanche.training.supervised import EWC, LwF, Naive, Replay

    model = as_multitask(Network(network), "classifier")
    optimizer = torch.optim.SGD(model.parameters(), setting.learning_rate, 0.9, weight_decay=4e-5, nesterov=True)
    at = list(milestones(setting.epochs, 0.5, 0.8))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, at, 0.1)
    own = {
        "naive": (Naive, {}), "ewc": (EWC, {"ewc_lambda": EWC_LAMBDA}), "replay": (Replay, {"mem_size": KEPT_IMAGES}),
        "lwf": (LwF, {"alpha": LWF_ALPHA, "temperature": LWF_TEMPERATURE}),
    }  # fmt: skip
    kind, options = own[method]
    return kind(
        model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), train_mb_size=setting.batch_size,
        train_epochs=setting.epochs, eval_mb_size=500, device="cpu", plugins=[LRSchedulerPlugin(schedule)],
        evaluator=None, **options,
    )  # fmt: skip


@torch.no_grad()
def accuracy(model, images, labels, task):
    """Share of right classes with the head of a task."""
    model.eval()
    right = 0
    for part, wanted in zip(images.split(500), labels.split(500)):
        tasks = torch.full((len(part),), task)
        right += int((model(part, tasks)[:, :2].argmax(1) == wanted).sum())
    return right / len(labels)


def matrix_of(method, names, setting, seed):
    """Accuracy of every task after each task."""
    from avalanche.benchmarks import tensors_benchmark

    torch.manual_seed(seed)
    opened = [task_images(open_source(name), seed) for name in names]
    train, test = [], []
    for images in opened:
        split, other = images.source.train, images.source.test
        train.append((split.images(images.train), split.labels(images.train)))
        everything = torch.arange(len(other))
        test.append((other.images(everything), other.labels(everything)))
    benchmark = tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=list(range(len(names))))
    shape = opened[0].source.input_shape
    strategy = strategy_of(method, zoo.build(setting.model.removeprefix("zoo:"), 2, shape), setting)
    matrix = []
    for number, experience in enumerate(benchmark.train_stream):
        # Kept images come in batches of their own size, and a last one of a single image has no variance.
        strategy.train(experience, drop_last=True)
        matrix.append([accuracy(strategy.model, *test[task], task) for task in range(number + 1)])
    return matrix


def main():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.continual.avalanche", description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    out = Path("runs/continual-benchmark")
    parser.add_argument("--out", type=Path, default=out, help="folder of benchmarks.continual; rows are added there")
    parser.add_argument("--data", choices=SETTINGS, default="digits", help="five tasks of two classes of it")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="with commas between, such as 0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas between")
    asked = parser.parse_args()
    kept = asked.out / "rows.jsonl"
    names = write_tasks(asked.data, asked.out / asked.data)
    for seed in asked.seeds:
        for method in asked.methods.split(","):
            if (asked.data, method, seed) in rows.read(kept):
                continue
            started = time.monotonic()
            matrix = matrix_of(method, names, SETTINGS[asked.data], seed)
            seconds = round(time.monotonic() - started, 1)
            row = {"data": asked.data, "seed": seed, "method": method, "matrix": matrix, "size": 1.0}
            rows.append(kept, {**row, "seconds": seconds})
    print(rows.page(list(rows.read(kept).values()), asked.data))


if __name__ == "__main__":
    main()
