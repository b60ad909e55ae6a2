"""What a stage may take of memory and disk, how it shares that out, and the forward work it has done with it."""

import ctypes
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from decomp.errors import UsageError
from decomp.execution import footprint
from decomp.execution import replay as capture
from decomp.problem.moments import TILE_ROWS

from .spill_store import KeptValues

MIB, GIB = 2**20, 2**30
# When no limit is given: this share of the machine's memory, this much where the system does not tell; a network
# that needs more at least gets that.
DEFAULT_SHARE, DEFAULT_MEMORY = 0.5, 4 * GIB
# Python with torch, scikit-learn and h5py loaded and used: measured at 825 MiB for a run on a network of no size.
LIBRARIES = 900 * MIB
# Copies of all weights: while layers are fitted, and while a network is written and read back to be verified.
COPIES_FITTING, COPIES_WRITING = 3, 6
# Float64 matrices of the size of a layer's K that are held at the peak of its fit, those of both its moments included:
# measured as 14.4 for all steps of a layer at p = 1728, and as 11.5 and 8.2 for its error curves at p = 1728 and 4608,
# small terms included.
SOLVER_MATRICES = 14
# A backward pass holds every value and its gradient, and what convolutions copy.
BACKWARD = 3
# glibc's name for the size from which memory is taken from the system piece by piece, and given back when it is freed.
M_MMAP_THRESHOLD, OWN_PIECE = -3, 256 * 2**10
# What is left beyond the least is shared out: to the batch on its way (or layers fitted meanwhile), to kept values,
# to the rows of a layer.
SHARES = {"batch": 0.4, "kept": 0.3, "rows": 0.3}


@dataclass(frozen=True)
class Limits:
    """How a stage works within its memory and disk.

    Attributes
    ----------
    batch_size, backward_batch : int
        Images at a time on a forward pass, and where gradients are needed.
    keep : int
        Bytes of values that are kept between layers, in memory and on the disk together.
    kept_memory, rows_memory : int
        Bytes of them, and of a layer's rows, that may lie in memory.
    solving : int
        Bytes for the fits of layers, several of them at a time where that is enough.
    """

    batch_size: int
    backward_batch: int
    keep: int
    kept_memory: int
    rows_memory: int
    solving: int

    def deciding(self):
        """The part that the result depends on, to the last bit: a stage that goes on must go on with it."""
        return {key: asdict(self)[key] for key in ("batch_size", "backward_batch", "keep")}


def problem_bytes(layer, n_images, n_points):
    """Bytes that the fit of a layer takes at its peak: matrices of its inputs, its rows on their way, its responses."""
    columns = layer.in_channels * layer.kernel[0] * layer.kernel[1]
    tiles = 4 * TILE_ROWS * (columns + layer.out_channels) * 4
    responses = 8 * n_images * _points(layer, n_points) * layer.out_channels
    return SOLVER_MATRICES * 8 * columns**2 + tiles + responses


def row_bytes(layer, n_points):
    """Bytes of the rows of one image, with the copies made on the way to them."""
    columns = layer.in_channels * layer.kernel[0] * layer.kernel[1]
    return 3 * 4 * _points(layer, n_points) * (columns + layer.out_channels)


def _points(layer, n_points):
    return min(n_points, layer.out_hw[0] * layer.out_hw[1])


def set_limits(module, foot, *, solver=0, rows=0, memory, batch_size, folder, before=None, command="decompose"):
    """Share out a stage's memory, or refuse an amount that is too little.

    Parameters
    ----------
    module : torch.nn.Module
    foot : decomp.execution.footprint.Footprint
    solver, rows : int
        Bytes that the largest layer problem takes, and the rows of one image; 0 where none is solved.
    memory : int or None
        Bytes; None is half of the machine's, or what is needed at least.
    batch_size : int
        Images at a time, at most.
    folder : path
        On the disk that values may be spilled to; half of what is free there is taken at most.
    before : dict, optional
        What `Limits.deciding` gave when the stage was begun.
    command : str
        For the error.

    Returns
    -------
    Limits

    Raises
    ------
    UsageError
        With the least that is needed.
    """
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    image, gradient = foot.live + 2 * foot.largest + rows, BACKWARD * foot.total if solver else 0
    fixed = LIBRARIES + max(COPIES_FITTING * weights + solver, COPIES_WRITING * weights)
    started = before or {}
    least = fixed + max(image * started.get("batch_size", 1), gradient * started.get("backward_batch", 1))
    if memory is not None and memory < least:
        raise UsageError(
            "--memory", f"{command} needs at least {_rounded_up(least)} for this network", got=f"{memory / GIB:.3g}GiB",
            fix=f"give --memory {_rounded_up(least)}",
        )  # fmt: skip
    if memory is not None:
        _give_back_what_is_freed()
    free = max(memory or int(DEFAULT_SHARE * machine_memory()), least) - fixed
    batch = SHARES["batch"] * free
    spill = shutil.disk_usage(_existing(folder)).free // 2
    return Limits(
        started.get("batch_size", max(1, min(batch_size, int(batch // image)))),
        started.get("backward_batch", max(1, min(batch_size, int(batch // gradient) if gradient else 1))),
        started.get("keep", int(max(spill, SHARES["kept"] * free))),
        int(SHARES["kept"] * free), int(SHARES["rows"] * free), int(solver + batch),
    )  # fmt: skip


def machine_memory():
    """Bytes of memory that this machine, or the container this runs in, has; a usual amount where none are told."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return int(DEFAULT_MEMORY / DEFAULT_SHARE)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(found)


def _give_back_what_is_freed():
    """Let the C library keep nothing of what was freed but small pieces, where it is one that keeps much (glibc).

    A stage that was to take 60 MiB had grown by 137 without it, 25 of them in use. It costs a little time.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OWN_PIECE)


class Workspace:
    """Makes the replays of a stage within its limits, and adds up what they do.

    Parameters
    ----------
    module : torch.fx.GraphModule
        The network as it comes.
    foot : decomp.execution.footprint.Footprint
    limits : Limits
    folder : Path
        For what does not fit into memory; removed by whoever gives it.
    """

    def __init__(self, module, foot, limits, folder):
        self.module, self.foot, self.limits, self.folder = module, foot, limits, Path(folder)
        self._replays, self._stores, self._more = [], [], 0.0

    def replay(self, module, images, n_images, device, share=1.0):
        """A :class:`decomp.execution.replay.Replay`; ``share`` of the room for kept values is its own."""
        replay = capture.Replay(
            module, images, n_images, batch_size=self.limits.batch_size, device=device,
            store=self._store(share * self.limits.kept_memory, share * self.limits.keep),
            work=self.foot.work if module is self.module else None,
        )  # fmt: skip
        self._replays.append(replay)
        return replay

    def rows(self):
        """A store for the rows of one layer at a time."""
        return self._store(self.limits.rows_memory, max(self.limits.keep, self.limits.rows_memory))

    def count(self, n_images):
        """Add whole passes of so many images that were made elsewhere."""
        self._more += n_images

    def clear(self):
        """Give back all memory and disk; replays made so far are of no use any more."""
        for store in self._stores:
            store.clear()
        self._more, self._replays = self.forward_images, []

    @property
    def forward_images(self):
        """Whole passes times images, all in all."""
        return self._more + sum(replay.forward_images for replay in self._replays)

    @property
    def most_on_disk(self):
        """The most bytes that lay on the disk at one time, taken over its stores apart."""
        return max((store.most_on_disk for store in self._stores), default=0)

    def _store(self, memory, limit):
        store = KeptValues(int(memory), int(limit), self.folder / f"{len(self._stores):02d}")
        self._stores.append(store)
        return store


def measure(module, image):
    """The footprint of a network that a stage is going to run; the image goes where its weights are."""
    parameter = next(module.parameters(), image)
    return footprint.measure(module, image.to(parameter.device))


def _rounded_up(n_bytes):
    return f"{-(-n_bytes // (GIB // 10)) / 10:g}GiB"


def _existing(folder):
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
