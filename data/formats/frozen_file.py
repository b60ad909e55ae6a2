"""Frozen file (``frozen.h5``): calibration images, sampled positions, and the original network's responses there.

One HDF5 file. Everything in it is float32 or int32 except ``/meta``, and every dataset is chunked and carries
Fletcher-32 checksums, so that a flipped bit is an error and not another result.

==========================  ===================  =================================================================
``/`` attributes                                 ``format`` = ``decomp-frozen``, ``version`` = 3 (4 with mixtures)
``/meta``                   uint8 (b,)           JSON in UTF-8: ``meta``, ``grids``, ``layers``, ``content``, ``drawn``
``/images``                 float32 (M,C,H,W)    the images as the network takes them
``/positions/000`` ...      int32 (M,P,2)        per output grid: (row y, column x) of P positions on each image
``/responses/000`` ...      float32 (M,P,n)      per layer: the n channels of the response at its grid's positions
==========================  ===================  =================================================================

``grids`` and ``layers`` list names in order, each with its dataset (a layer's name may hold a slash). A layer whose
output is added to another value has a second entry ``NAME: shortcut``, that value at the same positions. A layer that
is called several times, or on several maps for each image, has an entry for each, ``NAME``, ``NAME: call 2``, ...

``meta`` is the caller's. The freeze stage writes:

=====================================  ========================================================================
``model``, ``weights``                 str: names of the network and of its weights, as given
``data``                               dict: :meth:`decomp.data.splits.ImageSource.describe`; its ``name`` as given
``input_size``, ``part``, ``leaves``   str or None, str or None, list of str: the other options that decide
``n_images``, ``n_points``, ``seed``   int: images M, positions P for each image and grid, random seed
``skip_bad``                           bool: unreadable image files were left out
``input_shape``, ``n_classes``         list (C, H, W), int or None
``weights_digest``, ``network``        SHA-256 (hex) of the weights; of ``original/structure.json``
``outputs``                            list: :meth:`decomp.execution.output_change.Outputs.to_json`
=====================================  ========================================================================

``drawn`` lists the indices of the images among the training images, in their order; files of before do not have it.
Where ``meta`` has ``n_mixtures``, so many of the M images, the last ones, are mixtures of two of the others.
``content`` is a SHA-256 over everything written, in the order of writing: the identity of the file's content, by which
an exchanged file is noticed. It is not computed again on reading: that would cost a pass over the whole file each time,
whereas the checksum of each chunk detects damage in the part that is read.

The file is written whole to ``NAME.part``, flushed to the disk and renamed: under its final name it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from decomp.errors import FileError, NumericalError

FORMAT = "decomp-frozen"
VERSION = 3
# Readers of before would take mixtures for images.
MIXTURES_VERSION = 4
_CHUNK_BYTES = 512 * 1024
# v110 is the oldest layout whose metadata (superblock, object headers, chunk indices) carries checksums too.
_LAYOUT = ("v110", "v110")
_FIX = "run freeze again"
_MOST_GROUPS = 8


class FrozenWriter:
    """Writer of a frozen file, a batch of images at a time, in bounded memory.

    A context manager: leaving the block commits the file, an exception inside removes the unfinished file.

    Parameters
    ----------
    path : path
        The final name; ``path + ".part"`` is used on the way.
    meta : dict
        Anything JSON can hold; comes back as :attr:`FrozenFile.meta`. More may be added to :attr:`meta` before the end.
    n_images : int
        M.
    input_shape : (C, H, W)

    Raises
    ------
    FileError
        The file cannot be written, or is committed before everything declared was written.
    NumericalError
        NaN or Inf among images or responses.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, meta: dict[str, Any], n_images: int, input_shape: Sequence[int]
    ):
        self._path = Path(path)
        self._part = self._path.with_name(self._path.name + ".part")
        self.meta, self._n_images = dict(meta), int(n_images)
        #: Indices of the images among the training images, which are no part of :attr:`content`.
        self.drawn: list[int] | None = None
        self._grids: dict[str, dict[str, Any]] = {}
        self._layers: dict[str, dict[str, Any]] = {}
        self._written: dict[str, np.ndarray] = {}
        self._sha = hashlib.sha256()
        with self._naming_the_file():
            self._file = h5py.File(self._part, "w", libver=_LAYOUT, locking=False)
        self._file.attrs["format"] = np.bytes_(FORMAT)
        self._file.attrs["version"] = MIXTURES_VERSION if meta.get("n_mixtures") else VERSION
        self._create("images", (self._n_images, *input_shape), np.float32)

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(
                self._path, "cannot be written", got=_reason(error), fix="make room or free the place"
            ) from error

    def _create(self, key: str, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        # Whole images to a chunk: a range of images is a run of chunks, read one after the other.
        image_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        chunk = (min(max(1, _CHUNK_BYTES // max(image_bytes, 1)), shape[0]), *shape[1:])
        self._file.create_dataset(key, shape, dtype=dtype, chunks=chunk, fletcher32=True)
        self._written[key] = np.zeros(shape[0], dtype=bool)

    def _write(self, key: str, start: int, block: Tensor, name: str) -> None:
        dataset = self._file[key]
        stop = start + len(block)
        if start < 0 or stop > self._n_images or tuple(block.shape[1:]) != dataset.shape[1:]:
            raise ValueError(f"{name}: {tuple(block.shape)} at image {start} does not fit into {dataset.shape}")
        with self._naming_the_file():
            # The handle is dropped on return, and the chunk cache with it: memory does not grow with the layers.
            dataset[start:stop] = block.numpy()
        self._sha.update(f"{key} {start} {tuple(block.shape)}".encode())
        self._sha.update(block.contiguous().numpy().data)
        self._written[key][start:stop] = True

    def write_images(self, start: int, images: Tensor) -> None:
        """Write images ``start ... start + m - 1``: shape (m, C, H, W)."""
        self._write("images", start, _finite(images, "calibration images", start), "images")

    def declare_grid(self, key: str, size: tuple[int, int], positions: Tensor) -> None:
        """Declare an output grid and its sampled positions.

        Parameters
        ----------
        key : str
        size : (H, W)
            The grid's height and width.
        positions : Tensor of int32, shape (M, P, 2)
            (row y, column x) with 0 <= y < H, 0 <= x < W.
        """
        positions = torch.as_tensor(positions).to(torch.int32).cpu()
        if key in self._grids:
            raise ValueError(f"grid {key} is declared already")
        if positions.ndim != 3 or positions.shape[0] != self._n_images or positions.shape[2] != 2:
            raise ValueError(f"grid {key}: positions must be ({self._n_images}, P, 2), got {tuple(positions.shape)}")
        if positions.numel() and bool(((positions < 0) | (positions >= torch.tensor(size))).any()):
            raise ValueError(f"grid {key}: a position lies outside the {size[0]}x{size[1]} grid")
        dataset = f"positions/{len(self._grids):03d}"
        self._create(dataset, tuple(positions.shape), np.int32)
        self._grids[key] = {"name": key, "size": [int(v) for v in size], "n_points": positions.shape[1], "key": dataset}
        self._write(dataset, 0, positions, f"grid {key}")

    def declare_layer(self, name: str, grid_key: str, n_channels: int) -> None:
        """Declare a layer of ``n_channels`` outputs, sampled on a declared grid. The order of calls is kept."""
        if name in self._layers:
            raise ValueError(f"layer {name} is declared already")
        dataset = f"responses/{len(self._layers):03d}"
        self._create(dataset, (self._n_images, self._grids[grid_key]["n_points"], int(n_channels)), np.float32)
        self._layers[name] = {"name": name, "grid": grid_key, "key": dataset}

    def write_responses(self, name: str, start: int, responses: Tensor) -> None:
        """Write a layer's responses for images from ``start`` on: shape (m, P, n)."""
        self._write(self._layers[name]["key"], start, _finite(responses, name, start), f"layer {name}")

    @property
    def content(self) -> str:
        """SHA-256 (hex) over everything written so far, and over ``meta``."""
        sha = self._sha.copy()
        sha.update(json.dumps(self.meta, sort_keys=True).encode())
        return sha.hexdigest()

    def close(self) -> None:
        """Commit: flush to the disk and rename to the final name. Does nothing when closed already."""
        if not self._file:
            return
        try:
            self._check_complete()
            lists = {"grids": list(self._grids.values()), "layers": list(self._layers.values())}
            drawn = {} if self.drawn is None else {"drawn": self.drawn}
            text = json.dumps({"meta": self.meta, **lists, "content": self.content, **drawn}).encode()
            with self._naming_the_file():
                self._file.create_dataset(
                    "meta", data=np.frombuffer(text, np.uint8), chunks=(min(len(text), _CHUNK_BYTES),), fletcher32=True
                )
                self._file.close()
                _sync(self._part)
                os.replace(self._part, self._path)
                _sync(self._path.parent)
        except BaseException:
            self.abort()
            raise

    def _check_complete(self) -> None:
        for entry in ({"name": "images", "key": "images"}, *self._layers.values()):
            n_missing = int((~self._written[entry["key"]]).sum())
            if n_missing:
                raise FileError(
                    self._path, f"{entry['name']}: {n_missing} of {self._n_images} images were never written"
                )

    def abort(self) -> None:
        """Close and remove the unfinished file. A file under the final name stays."""
        if self._file:
            self._file.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> FrozenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _finite(block: Tensor, name: str, start: int) -> Tensor:
    block = block.detach().to("cpu", torch.float32)
    bad = ~torch.isfinite(block).reshape(len(block), -1).all(1)
    if bool(bad.any()):
        image = start + int(bad.nonzero()[0])
        raise NumericalError(
            name,
            "the frozen values must be finite",
            got=f"{int((~torch.isfinite(block)).sum())} NaN or infinite ones, the first in image {image}",
            fix="check the model's weights and the images",
        )
    return block


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


class FrozenFile:
    """Reader of a frozen file; every range of images is read from the disk when it is needed.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    meta : dict
        As given to :class:`FrozenWriter`.
    content : str
        SHA-256 (hex) over everything that was written, see above.
    drawn : list of int or None
        Indices of the images among the training images; None in files of before.
    n_images, n_recorded : int
        M without mixtures, and M.
    input_shape : (C, H, W)
    layers : list of str
        In the order they were declared.

    Raises
    ------
    FileError
        The file is missing, foreign, of a newer format, cut short or damaged; also when a damaged part is read later.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        if not self._path.is_file():
            raise FileError(self._path, "no frozen file here", fix="run freeze first")
        with self._guard():
            # Renamed into place when complete and never written again: no lock is needed, and some file systems
            # have none.
            self._file = h5py.File(self._path, "r", locking=False)
        try:
            self._check_format()
            with self._guard():
                self._check_own_data()
                header = json.loads(self._file["meta"][()].tobytes())
                self.meta: dict[str, Any] = dict(header["meta"])
                self.content = str(header["content"])
                drawn = header.get("drawn")
                self.drawn: list[int] | None = None if drawn is None else [int(index) for index in drawn]
                self._grids = {grid["name"]: grid for grid in header["grids"]}
                self._layers = {layer["name"]: layer for layer in header["layers"]}
                self.n_recorded, *shape = self._file["images"].shape
                self.n_images = self.n_recorded - int(self.meta.get("n_mixtures", 0))
                self.input_shape = tuple(shape)
        except BaseException:
            self._file.close()
            raise
        self.layers: list[str] = list(self._layers)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        # What h5py and json raise on damaged bytes; a failed checksum is an OSError.
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise FileError(
                self._path, "the frozen file is damaged, cut short or not HDF5", got=_reason(error), fix=_FIX
            ) from error

    def _check_format(self) -> None:
        with self._guard():
            format_name, version = self._file.attrs.get("format"), int(self._file.attrs.get("version", 0))
        if not isinstance(format_name, bytes) or format_name != FORMAT.encode() or version < 1:
            raise FileError(self._path, "an HDF5 file, but not a frozen file of this program", fix=_FIX)
        if version not in (VERSION, MIXTURES_VERSION):
            rule = f"frozen files of version {VERSION} and {MIXTURES_VERSION} can be read"
            raise FileError(self._path, rule, got=f"version {version}", fix=_FIX)

    def _check_own_data(self) -> None:
        """Refuse datasets that lie in other files, or claim more than this file holds: HDF5 can do both."""
        pending = [self._file]
        while pending:
            group = pending.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{name} leads elsewhere")
                item = group[name]
                if isinstance(item, h5py.Group):
                    if item.id == self._file.id or len(pending) > _MOST_GROUPS:
                        raise ValueError("groups are nested")
                    pending.append(item)
                elif item.external or item.is_virtual:
                    raise ValueError(f"{name} has its data in another file")
                elif item.size and item.id.get_storage_size() < item.nbytes:
                    raise ValueError(f"{name} claims more data than there are")

    @property
    def model_name(self) -> str | None:
        """Name of the frozen network, as :func:`decomp.data.models.load_model` takes it."""
        return _text(self.meta.get("model"))

    @property
    def source_name(self) -> str | None:
        """Name of the source of the images, as :func:`decomp.data.sources.open_source` takes it."""
        source = self.meta.get("data")
        return _text(source.get("name") if isinstance(source, dict) else source)

    def _range(self, dataset: str, start: int, stop: int) -> Tensor:
        if not 0 <= start <= stop <= self.n_recorded:
            raise IndexError(f"images {start}:{stop} of {self.n_recorded}")
        with self._guard():
            return torch.from_numpy(self._file[dataset][start:stop])

    def images(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images ``start ... stop - 1``: float32, shape (stop - start, C, H, W)."""
        return self._range("images", start, self.n_images if stop is None else stop)

    def positions(self, grid_key: str) -> Tensor:
        """Sampled positions on a grid: int32, shape (M, P, 2), (row y, column x)."""
        return self._range(self._grids[grid_key]["key"], 0, self.n_recorded)

    def grid_size(self, grid_key: str) -> tuple[int, int]:
        """Height and width of a grid."""
        height, width = self._grids[grid_key]["size"]
        return height, width

    def grid_of(self, layer: str) -> str:
        """The key of the grid that a layer was sampled on."""
        return self._layers[layer]["grid"]

    def responses(self, layer: str, start: int = 0, stop: int | None = None) -> Tensor:
        """A layer's responses for images ``start ... stop - 1``: float32, shape (stop - start, P, n)."""
        return self._range(self._layers[layer]["key"], start, self.n_images if stop is None else stop)

    def close(self) -> None:
        """Close the file; ranges can no longer be read."""
        self._file.close()

    def __enter__(self) -> FrozenFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
