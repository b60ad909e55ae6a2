"""Own copies of a run directory: every process but the first works in one, so that only the first writes to the run.

A folder of one machine suffices: files that a process cannot see travel to it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from .process_group import count, from_first, gathered, number

#: Files that no stage reads to compute something, or that only their owner may have.
LEFT_OUT = ("log.jsonl", ".lock", ".owner.json", "report.html", "export")
#: Files of at least this size are linked where they are visible: those of a run are never changed in place.
LINKED = 64 * 2**20
#: Bytes that travel at a time.
PIECE = 16 * 2**20

_originals: dict[str, str] = {}


def copied_folder(folder: Path) -> Path:
    """A folder for this process: the folder itself in the first one, a copy of its files in the others."""
    if count() == 1:
        return folder
    names = from_first(lambda: _names(folder))
    own = folder if number() == 0 else _fresh(folder)
    for name in names or []:
        _copy(folder / name, own / name)
    if names is not None and number() > 0:
        own.mkdir(parents=True, exist_ok=True)
    return own


def copied_files(files: Iterable[Path]) -> list[Path]:
    """The same for files of one folder that may exist; the folder of a copy has no other files."""
    files = list(files)
    if count() == 1:
        return files
    own = files[0].parent if number() == 0 else _fresh(files[0].parent)
    for file in files:
        if from_first(file.is_file):
            _copy(file, own / file.name)
    return [own / file.name for file in files]


def take_folder(folder: Path) -> None:
    """Bring the files of a folder of the first process to the others, which have the folder at a place of their own."""
    if count() > 1:
        names = from_first(lambda: _names(folder))
        for name in names or []:
            _copy(folder / name, folder / name)


def take_file(file: Path) -> None:
    """Replace a file of the copy that this process works in by that of the first one."""
    if count() > 1:
        _copy(file, file)


def as_given(text: str) -> str:
    """A message with the folders that the user named in place of copies."""
    for own, original in _originals.items():
        text = text.replace(own, original)
    return text


def remove_copies() -> None:
    """Remove the copies that this process works in: for an end without the functions of atexit."""
    for own in _originals:
        shutil.rmtree(Path(own).parent, ignore_errors=True)


def _fresh(folder: Path) -> Path:
    own = Path(tempfile.mkdtemp(prefix="decomp-process-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    _originals[str(own / "run")] = str(folder)
    return own / "run"


def _names(folder: Path) -> list[str] | None:
    if not folder.is_dir():
        return None
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = (path.relative_to(folder) for path in paths)
    return [str(name) for name in names if name.parts[0] not in LEFT_OUT and not name.name.startswith("events.")]


def _copy(file: Path, own: Path) -> None:
    """Bring one file of the first process to the others: from the disk where they see the same one."""
    facts = from_first(lambda: (os.fspath(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns))
    path, size = Path(facts[0]), facts[1]
    visible = path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) == facts[1:]
    if number() > 0:
        own.parent.mkdir(parents=True, exist_ok=True)
        if visible and size >= LINKED:
            own.symlink_to(path)
        elif visible:
            shutil.copyfile(path, own)
    if not all(gathered(visible)):
        _send(path, size, None if visible else own)


def _send(path: Path, size: int, own: Path | None) -> None:
    """Send a file piece by piece; `own` is None in processes that do not need it."""
    with open(path if number() == 0 else own or os.devnull, "rb" if number() == 0 else "wb") as file:
        for start in range(0, size, PIECE):
            n = min(PIECE, size - start)
            piece = torch.empty(n, dtype=torch.uint8)
            if number() == 0:
                piece = torch.frombuffer(bytearray(file.read(n)), dtype=torch.uint8)
            dist.broadcast(piece, src=0)
            if number() > 0:
                file.write(piece.numpy().tobytes())
