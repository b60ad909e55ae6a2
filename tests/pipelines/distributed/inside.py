"""Functions that the tests run in every process of a job; their results are plain values."""

import copy
import io
import tarfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from decomp.allocation.target import LimitingFactors, OutOfReach
from decomp.data.sources import open_source
from decomp.errors import DecompError, UsageError
from decomp.exact_sum import ExactSum
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.decomposition import row_tiles
from decomp.pipelines.distributed import own_copy, process_group, shared_moments
from decomp.pipelines.distributed.shared_moments import Processes, moments_of_all
from decomp.pipelines.distributed.trained_module import own_places, places_of, shared_training, take_from_first
from decomp.pipelines.training import unlabelled
from decomp.problem import moments
from decomp.problem.channel_moments import ChannelMomentSum
from decomp.problem.kept_rows import KeptRows
from decomp.problem.moments import MomentSum

FIELDS = ("K", "C", "S", "x_mean", "y_mean")


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
    moments.TILE_COLUMNS, shared_moments.EXCHANGED = 2, 17
    torch.manual_seed(0)
    X, Y, rank = torch.randn(50, 5) + 100, torch.randn(50, 2), process_group.number()
    X[:, 3] = 0.101  # (30 · 0.101 + 20 · 0.101) / 50 is another number in float64
    shares = (slice(0, 30), slice(30, 30), slice(30, 50))
    alone, own = MomentSum(5, 2), MomentSum(5, 2)
    for share in shares:
        alone.add(X[share], Y[share])
    own.add(X[shares[rank]], Y[shares[rank]])
    whole, before = alone.total(), process_group.exchanged_bytes()
    found = moments_of_all(own)
    exchanged = process_group.exchanged_bytes() - before
    of_owner = moments_of_all(own, owner=2)
    one, other = ExactSum((1, 2)), ExactSum(())
    for term in ((1e17, 1.0), (2.0,), (-1e17,))[rank]:
        one.add(torch.full((1, 2), term))
    other.add(torch.tensor(float(rank)))
    holders, before = Processes(), process_group.exchanged_bytes()
    sums = holders.summed(one, other)
    used = process_group.exchanged_bytes() - before
    (agreed,) = holders.agreed(torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T * (1 if rank == 0 else rank * 7))
    called = []
    results = holders.each([lambda task=task: called.append(task) or task**2 for task in range(4)])
    return {
        "each": [called, results, holders.each([])],
        "same bits": [torch.equal(getattr(whole, name), getattr(found, name)) for name in FIELDS],
        "rows": found.n_rows, "constant": [float(found.K[3].abs().max()), float(found.C[3].abs().max())],
        "exchanged": exchanged, "of the owner": None if of_owner is None else torch.equal(of_owner.K, whole.K),
        "summed": [value.tolist() for value in sums], "one exchange": used,
        "agreed": agreed.tolist(), "strides": list(agreed.stride()),
    }  # fmt: skip


def rows_together():
    """Moments of kept rows of which the second process has none."""
    torch.manual_seed(0)
    X, Y, rank = torch.randn(50, 300), torch.randn(50, 4), process_group.number()
    alone, own = KeptRows(300, 4), KeptRows(300, 4)
    alone.add(X, Y)
    for share in (slice(0, 30), slice(30, 30), slice(30, 50))[rank : rank + 1]:
        own.add(X[share], Y[share])
    whole, found, of_owner = alone.total(), moments_of_all(own), moments_of_all(own, owner=1)
    return {
        "same bits": [torch.equal(getattr(whole, name), getattr(found, name)) for name in (*FIELDS, "root")],
        "rows": found.n_rows, "of the owner": None if of_owner is None else torch.equal(of_owner.C, whole.C),
    }  # fmt: skip


def no_moments():
    """Moments of rows that no process has."""
    found = moments_of_all(MomentSum(3, 2))
    return {"rows": found.n_rows, "K": found.K.tolist()}


def channel_moments_together():
    """Moments of three channels, of rows of which the second process has none."""
    torch.manual_seed(0)
    X, Y, rank = torch.randn(50, 3, 4) + 100, torch.randn(50, 6), process_group.number()
    X[:, 1, 2] = 0.101
    alone, own = ChannelMomentSum(3, 4, 2), ChannelMomentSum(3, 4, 2)
    for share in (slice(0, 30), slice(30, 50)):
        alone.add(X[share], Y[share])
    if rank != 1:
        share = (slice(0, 30), None, slice(30, 50))[rank]
        own.add(X[share], Y[share])
    whole, found = alone.total(), moments_of_all(own)
    return {
        "distances": [float((getattr(whole, name) - getattr(found, name)).abs().max()) for name in FIELDS],
        "rows": found.n_rows, "constant": float(found.K[1, 2].abs().max()),
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
    own = ExactSum((4,))
    own.add(torch.tensor([1.0, 2.0, 3.0, rank]))
    total = process_group.exact_total_for(2, own)
    return {
        "handed": [
            None if got is None else got["made by"]
            for got in (process_group.handed(value, 2, 0), process_group.handed(value, 1, 1))
        ],
        "from": process_group.from_number(1, torch.tensor([rank])).tolist(),
        "to": None if total is None else total.tolist(),
        "joined": process_group.joined(torch.full((rank, 2), float(rank))).tolist(),
        "ranges": [list(process_group.range_of(other, 7)) for other in range(3)],
    }  # fmt: skip


def mistakes():
    """What the first process finds wrong, in each process."""

    def wrong():
        raise OutOfReach(LimitingFactors(4.0), "multiply-accumulates", 8.0)

    def misused():
        raise UsageError("plan", "must fit", got=Path("a"), fix="mend it")

    found = []
    for make in (wrong, misused):
        try:
            process_group.from_first(make)
        except DecompError as error:
            found.append([type(error).__name__, str(error)])
    return found


def files_read():
    """Files that each process opens of a folder and of shards: while the source is opened, and for its own images."""
    rank, opened, tars = process_group.number(), [], []
    process_group.from_first(write_pictures)
    open_image, open_tar = Image.open, tarfile.open
    Image.open = lambda file: opened.append(file) or open_image(file)
    tarfile.open = lambda file, *rest: tars.append(Path(file).name) or open_tar(file, *rest)
    found = {}
    for name in ("imagefolder:pictures", "webdataset:shards-{0..3}.tar"):
        opened.clear()
        source = open_source(name, skip_bad=True, input_shape=(3, 8, 8), spread=process_group.spread)
        tried = len(opened)
        images = source.train.images(torch.arange(len(source.train))[process_group.own_range(12)])
        found[name.partition(":")[0]] = {
            "listed": [source.train.title(index) for index in range(len(source.train))], "tried": tried,
            "read": len(opened) - tried, "mean": float(images.mean()), "skipped": source.skipped, "tars": list(tars),
        }  # fmt: skip
    return {"rank": rank, **found}


def write_pictures():
    """A folder of three classes with four pictures each and a broken file, and four shards of three pictures."""
    for number in range(12):
        Path(f"pictures/train/class{number // 4}").mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), (number * 20,) * 3).save(picture, "PNG")
        Path(f"pictures/train/class{number // 4}/{number:02d}.png").write_bytes(picture.getvalue())
        with tarfile.open(f"shards-{number // 3}.tar", "w" if number % 3 == 0 else "a") as tar:
            member = tarfile.TarInfo(f"{number:02d}.png")
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    Path("pictures/train/class2/99.png").write_bytes(b"broken")


def kept_answers():
    """Answers of an original for 23 images, five at a time, and the images that this process gave to it."""
    task, seen = object.__new__(unlabelled.UnlabelledTask), []

    def read(indices, batch_size, augment_seed):
        for part in indices.split(batch_size):
            seen.extend(part.tolist())
            yield part.float()[:, None, None, None]

    def original(images):
        return torch.cat([images, -images], 1).flatten(1)

    task.train, task.at_a_time = torch.arange(23).flip(0), 5
    task.pool, task.outputs = unlabelled.Pool(task.train, read, "numbers"), Outputs((Output("output", "values", (2,)),))
    module = nn.Module()
    module.forward = original
    task.keep_targets(module, torch.device("cpu"), Reporter(quiet=True))
    return {"answers": task.targets.tolist(), "seen": seen}
