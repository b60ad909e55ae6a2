"""Functions that the tests run in every process of a job; their results are plain values."""

import copy
from pathlib import Path

import torch
from torch import nn

from decomp.pipelines.distributed import own_copy, process_group
from decomp.pipelines.distributed.trained_module import own_places, places_of, shared_training, take_from_first


def sums():
    rank = process_group.number()
    return {
        "count": process_group.count(),
        "total": process_group.total(rank + 0.1),
        "summed": process_group.summed(torch.tensor([1.0, rank])).tolist(),
        "gathered": process_group.gathered({"rank": rank}),
        "first": process_group.from_first(lambda: f"made by {rank}"),
        "range": list(process_group.own_range(5)),
        "said": process_group.first_to_say(),
    }


def copies():
    folder, rank = Path("original"), process_group.number()
    if rank == 0:
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        (folder / "deep" / "small.txt").write_text("small")
        (folder / "large.bin").write_bytes(bytes(range(256)) * 8)
        (folder / "log.jsonl").write_text("x")
        (folder / "alone.json").write_text("{}")
    own_copy.LINKED = 2048
    process_group.from_first(lambda: None)
    own = own_copy.copied_folder(folder)
    found = {str(path.relative_to(own)): path.is_symlink() for path in sorted(own.rglob("*")) if path.is_file()}
    (own / "deep" / "small.txt").write_text(f"written by {rank}")
    files = own_copy.copied_files([folder / "alone.json", folder / "missing.json"])
    return {
        "is it": own == folder, "found": found, "original": (folder / "deep" / "small.txt").read_text(),
        "files": [file.exists() for file in files], "named": own_copy.as_given(f"{own}: bad"),
    }  # fmt: skip


def sent():
    """A file that only the first process can see."""
    content, rank = bytes(range(251)) * 10, process_group.number()
    own_copy.PIECE = 1000
    Path("only.bin").write_bytes(content)
    own = Path(f"sent{rank}.bin")
    own_copy._send(Path("only.bin"), len(content), own if rank else None)
    return rank == 0 or own.read_bytes() == content


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def states():
    module, rank = network(), process_group.number()
    module[0].weight.data += rank
    module[1].running_mean += rank
    take_from_first(module)
    return [float(module[0].weight.sum()), float(module[1].running_mean.sum())]


def gradients():
    """One step with a batch of five images: gradients and statistics, together and in one process."""
    torch.manual_seed(1)
    images, targets = 3 + torch.randn(5, 2, 4, 4), torch.randn(5, 2)
    alone, shared = network().double(), network().double()
    images, targets = images.double(), targets.double()
    nn.functional.mse_loss(alone(images), targets).backward()
    places = own_places(5) if process_group.count() > 1 else slice(None)
    with shared_training(shared) as called:
        own = images[places]
        loss = nn.functional.mse_loss(called(own), targets[places]) * (len(own) * process_group.count() / 5)
        loss.backward()
    pairs = list(zip(alone.parameters(), shared.parameters()))
    order, size = places_of(torch.arange(10), 5, places)
    return {
        "gradients": max(float((one.grad - other.grad).abs().max()) for one, other in pairs),
        "statistics": [
            float((alone[1].running_mean - shared[1].running_mean).abs().max()),
            float((alone[1].running_var - shared[1].running_var).abs().max()),
            int(shared[1].num_batches_tracked),
        ],
        "as before": "forward" not in vars(shared[1]) and copy.deepcopy(shared) is not None,
        "places": [order.tolist(), size],
    }  # fmt: skip
