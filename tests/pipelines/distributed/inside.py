"""Functions that the tests run in every process of a job; their results are plain values."""

import copy
from pathlib import Path

import torch
from torch import nn

from decomp.pipelines.decomposition import row_tiles
from decomp.pipelines.distributed import own_copy, process_group, shared_moments
from decomp.pipelines.distributed.shared_moments import Processes, channel_moments_of_all, moments_of_all
from decomp.pipelines.distributed.trained_module import own_places, places_of, shared_training, take_from_first
from decomp.problem.channel_moments import ChannelMoments
from decomp.problem.moments import Moments


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


def moments_together():
    """Moments of rows of which the second process has none."""
    shared_moments.TILE_COLUMNS = 2
    torch.manual_seed(0)
    X, Y, rank = torch.randn(50, 5).double() + 100, torch.randn(50, 2).double(), process_group.number()
    X[:, 3] = 0.101  # (30 · 0.101 + 20 · 0.101) / 50 is another number in float64
    shares = (slice(0, 30), slice(30, 30), slice(30, 50))
    whole, before = Moments.of_rows(X, Y), process_group.exchanged_bytes()
    own = moments_of_all(Moments.of_rows(X[shares[rank]], Y[shares[rank]]))
    exchanged = process_group.exchanged_bytes() - before
    names = ("K", "C", "S", "x_mean", "y_mean")
    pairs = [(getattr(whole, name), getattr(own, name)) for name in names]
    of_owner = moments_of_all(Moments.of_rows(X[shares[rank]], Y[shares[rank]]), owner=2)
    holders, before = Processes(), process_group.exchanged_bytes()
    sums = holders.summed(torch.full((1, 2), float(rank)), torch.tensor(float(rank)))
    used = process_group.exchanged_bytes() - before
    (agreed,) = holders.agreed(torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T * (1 if rank == 0 else rank * 7))
    return {
        "distances": [float((one - other).abs().max() / one.abs().max()) for one, other in pairs],
        "rows": own.n_rows, "bits": hash(tuple(own.K.flatten().tolist() + own.C.flatten().tolist())),
        "symmetric": torch.equal(own.K, own.K.T) and torch.equal(own.S, own.S.T),
        "constant": [float(own.K[3].abs().max()), float(own.C[3].abs().max())], "exchanged": exchanged,
        "of the owner": None if of_owner is None else torch.equal(of_owner.K, of_owner.K.T) and of_owner.n_rows == 50,
        "summed": [value.tolist() for value in sums], "one exchange": used,
        "agreed": agreed.tolist(), "strides": list(agreed.stride()),
    }  # fmt: skip


def channel_moments_together():
    """Moments of three channels, of rows of which the second process has none."""
    torch.manual_seed(0)
    X, Y, rank = torch.randn(50, 3, 4).double() + 100, torch.randn(50, 6).double(), process_group.number()
    X[:, 1, 2] = 0.101
    whole, own = ChannelMoments.zeros(3, 4, 2), ChannelMoments.zeros(3, 4, 2)
    whole.update(X, Y)
    share = (slice(0, 30), slice(30, 30), slice(30, 50))[rank]
    if rank != 1:
        own.update(X[share], Y[share])
    own = channel_moments_of_all(own)
    pairs = [(getattr(whole, name), getattr(own, name)) for name in ("K", "C", "S", "x_mean", "y_mean")]
    return {
        "distances": [float((one - other).abs().max() / one.abs().max()) for one, other in pairs], "rows": own.n_rows,
        "constant": float(own.K[1, 2].abs().max()), "bits": hash(tuple(own.K.flatten().tolist())),
    }  # fmt: skip


def tiles_together():
    """Tiles of nine images of three rows in three processes, the last two images held out."""
    row_tiles.TILE_ROWS, row_tiles.BLOCK_ROWS = 4, 8
    X, Y = torch.arange(9 * 3 * 4.0).reshape(9, 3, 1, 2, 2), torch.arange(9 * 3 * 2.0).reshape(9, 3, 2)
    images, rank = [range(4), range(4, 5), range(5, 9)], process_group.number()

    def batches(own):
        for start in own:
            yield start, start + 1, (X[start : start + 1], Y[start : start + 1])

    found = list(row_tiles.tiles(batches(images[rank]), 7, images, 3))
    row_tiles.count, row_tiles.number = (lambda: 1), (lambda: 0)
    alone = list(row_tiles.tiles(batches(range(9)), 7, [range(9)], 3))
    return {
        "found": [[fitted, X.tolist(), Y.tolist()] for fitted, (X, Y) in found],
        "alone": [[fitted, X.tolist(), Y.tolist()] for fitted, (X, Y) in alone],
    }  # fmt: skip


def values_of_others():
    rank = process_group.number()
    value = {"made by": rank, "tensor": torch.tensor([rank])}
    total = process_group.summed(torch.tensor([1.0]), owner=2)
    return {
        "handed": [
            None if got is None else got["made by"]
            for got in (process_group.handed(value, 2, 0), process_group.handed(value, 1, 1))
        ],
        "from": process_group.from_number(1, torch.tensor([rank])).tolist(),
        "to": total.tolist() if rank == 2 else None,
        "ranges": [list(process_group.range_of(other, 7)) for other in range(3)],
    }  # fmt: skip
