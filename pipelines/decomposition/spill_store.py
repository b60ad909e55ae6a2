"""Values of a network kept between layers: in memory while they fit, beyond that in files of a scratch folder."""

from dataclasses import dataclass

import torch

from decomp.errors import FileError

from ...data.formats.atomic import require_space

# A point is not kept where running up to it again from the last kept one is a smaller share of a pass than this:
# reading the largest maps from a disk then takes longer than computing them anew.
LEAST_WORK = 0.01


class KeptValues:
    """A store for :class:`decomp.execution.replay.Replay`, batch by batch.

    Whether values are kept depends on `limit` alone; whether in memory or in a file makes no difference to a bit of
    them. Files are read and written in plain calls, not mapped: mapped pages would count as this process's memory.

    Parameters
    ----------
    memory : int
        Bytes that may lie in memory.
    limit : int
        Bytes that may be kept at all, here and there.
    folder : Path
        Made when it is needed; whoever gives it removes it.
    least_work : float
        See :class:`decomp.execution.replay.Replay`.

    Attributes
    ----------
    most_in_memory, most_on_disk : int
        The most bytes that lay here and there at one time.
    """

    def __init__(self, memory, limit, folder, least_work=LEAST_WORK):
        self.memory, self.limit, self.folder, self.least_work = memory, limit, folder, least_work
        self.most_in_memory = self.most_on_disk = 0
        self._held, self._filed, self._used, self._on_disk = {}, {}, 0, 0

    def admits(self, n_bytes):
        """Whether values are kept that take so many bytes for all images.

        Raises
        ------
        FileError
            They are to be kept, and the disk has no room for what does not fit into memory.
        """
        if n_bytes > self.limit:
            return False
        more = n_bytes - self.memory - self._on_disk
        if more > 0:
            require_space(self.folder, more)
        return True

    def put(self, index, values):
        """Keep the values of a batch, in place of earlier ones."""
        self._used -= _size(self._held.pop(index, {}))
        values = {k: v.contiguous() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        if self._used + _size(values) <= self.memory:
            self._held[index] = values
            self._used += _size(values)
            self._forget_file(index)
        else:
            self._write(index, values)
        self.most_in_memory = max(self.most_in_memory, self._used)
        self.most_on_disk = max(self.most_on_disk, self._on_disk)

    def get(self, index, copy=True):
        """The values of a batch; with `copy` they may be changed in place, although they are needed again."""
        if index not in self._held:
            return self._read(index)
        if not copy:
            return self._held[index]
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in self._held[index].items()}

    def clear(self):
        """Forget everything."""
        for index in list(self._filed):
            self._forget_file(index)
        self._held, self._used = {}, 0

    def _path(self, index):
        return self.folder / f"{index:06d}"

    def _forget_file(self, index):
        _, size = self._filed.pop(index, (None, None))
        if size is not None:
            self._on_disk -= size
            self._path(index).unlink(missing_ok=True)

    def _write(self, index, values):
        self._forget_file(index)
        self.folder.mkdir(parents=True, exist_ok=True)
        described, size = {}, 0
        with open(self._path(index), "wb") as file:
            for key, value in values.items():
                if not isinstance(value, torch.Tensor):
                    described[key] = value
                    continue
                raw = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
                file.write(raw.data)
                described[key] = _Filed(size, value.dtype, value.shape, value.device)
                size += raw.nbytes
        self._filed[index] = described, size
        self._on_disk += size

    def _read(self, index):
        described, _ = self._filed[index]
        values = {}
        with open(self._path(index), "rb") as file:
            for key, value in described.items():
                if isinstance(value, _Filed):
                    flat = torch.empty(value.shape.numel(), dtype=value.dtype)
                    file.seek(value.start)
                    if file.readinto(flat.view(torch.uint8).numpy()) < flat.nbytes:
                        rule = "what was kept there for a moment is cut short"
                        raise FileError(self._path(index), rule, fix="run the same command again")
                    value = flat.reshape(value.shape).to(value.device)
                values[key] = value
        return values


@dataclass(frozen=True)
class _Filed:
    """Where a tensor lies in its file, and what it is."""

    start: int
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device


def _size(values):
    return sum(value.nbytes for value in values.values() if isinstance(value, torch.Tensor))
