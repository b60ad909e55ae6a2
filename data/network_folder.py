"""Networks from the folders that stages and ``decomp.save`` write, such as ``runs/l1/pruned``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from decomp.errors import UsageError

from .formats import network_file
from .preprocessing import Preprocessing
from .transforms import Shape

#: Networks of a run by their folders, the most advanced first.
_IN_A_RUN = ("finetune/best", "pruned", "model", "original")


def preprocessing_of(name: str) -> Preprocessing | None:
    """Preprocessing of the images that a network in a folder was made with; None where it is not recorded.

    Raises
    ------
    FileError
        The record is broken.
    """
    record = network_file.read_structure(_with_batchnorm(name)).get("meta", {}).get("preprocessing")
    if not record:
        return None
    return Preprocessing.from_json({**record, "origin": "as recorded with the network"}, name)


def _with_batchnorm(name: str) -> Path:
    folder = Path(name).expanduser()
    unfolded = folder / network_file.WITH_BATCHNORM
    return unfolded if (unfolded / "structure.json").is_file() else folder


def content_of(name: str) -> str | None:
    """SHA-256 (hex) of the weights of a network in a folder, as recorded there; None for another kind of name."""
    folder = _with_batchnorm(name)
    if not (folder / "structure.json").is_file():
        return None
    content: str | None = network_file.read_structure(folder).get("weights_sha256")
    return content


def open_folder(name: str) -> tuple[nn.Module, Shape]:
    """A network that was written as data, with its batch normalisations where the folder has them.

    Parameters
    ----------
    name : str
        Path of the folder.

    Returns
    -------
    module : torch.nn.Module
        Traced; in the precision in which the network came.
    shape : tuple of int
        (C, H, W) of an image.

    Raises
    ------
    UsageError
        A run directory, or a network with modules that only its class can build.
    FileError
        No network, or a broken one.
    """
    folder = Path(name).expanduser()
    if (folder / "run.json").is_file():
        inside = next((part for part in _IN_A_RUN if (folder / part / "structure.json").is_file()), _IN_A_RUN[-1])
        fix = f"name one of its networks: --model {folder / inside}"
        raise UsageError(f"--model {name}", "is a run directory", fix=fix)
    folder = _with_batchnorm(name)
    structure = network_file.read_structure(folder)
    if leaves := network_file.leaves(structure):
        rule = f"has modules that are not written as data ({leaves[0]}), which only the original class builds"
        fix = "write a function that returns decomp.load(FOLDER, into=model), and give FILE.py:FUNCTION"
        raise UsageError(f"--model {name}", rule, fix=fix)
    if not structure.get("input_shape"):
        raise UsageError(f"--model {name}", "does not say the size of its images", fix="write it again with its run")
    module = network_file.load(folder)
    channels, height, width = structure["input_shape"]
    return module.to(getattr(torch, structure["meta"].get("dtype", "float32"))), (channels, height, width)
