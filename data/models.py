"""Loader of networks by name.

=============================  ==================================================================================
``zoo:NAME``                   a network of :mod:`decomp.data.zoo`, with the weights shipped for it
``torchvision:NAME``           a classifier of torchvision
``timm:NAME``                  a model of timm, where that is installed
``path/to/file.py:factory``    the return value of a user's function, called without arguments, or a network itself
``path/to/file.pt2``           a program of ``torch.export.save``, exported in evaluation mode
``package.module:factory``     the same from a module that can be imported, also from the current folder
``path/to/network``            a folder that a stage or ``decomp.save`` wrote (``runs/l1/pruned``)
=============================  ==================================================================================

Weights: a file (safetensors or a state dict), ``DEFAULT`` (the library's own), ``random`` (drawn from a seed).
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.export import ExportedProgram

from decomp.errors import FileError, UsageError, kind_of

from . import exported_program, user_code
from .network_folder import open_folder, preprocessing_of
from .own_preprocessing import of_weights
from .plain_network import dtype_of, plain_copy, unwrapped
from .preprocessing import NetworkInput, Preprocessing
from .transforms import Shape
from .weights import check_finite, digest_state_dict, load_weights, read_shape, split_key

KINDS = ("zoo", "torchvision", "timm")
#: End of the names of networks that were given in memory.
MEMORY = " in memory"


@dataclass
class LoadedModel:
    """A network with its weights.

    Attributes
    ----------
    module : nn.Module
        In evaluation mode, float32, on the CPU.
    name : str
        As given to :func:`load_model`.
    input_shape : (C, H, W) or None
        None where neither the name nor ``input_size`` determines it.
    weights_digest : str
        SHA-256 (hex) over the state dict (:func:`decomp.data.weights.digest_state_dict`).
    weights_name : str
        Description of the origin of the weights.
    n_classes : int or None
        Number of classes that the classifier was built for; None for the network's own number.
    preprocessing : Preprocessing or None
        Of the images that the weights were trained with, where they bring it.
    fixed_size : bool
        ``input_shape`` was given by a person, with the weights, or by the class; otherwise it is only the usual one.
    dtype : torch.dtype
        Floating-point type of the network before it was brought to float32, and of results that are given back.
    note : str
        Choice among several sets of weights in one file, in words; otherwise empty.
    """

    module: nn.Module
    name: str
    input_shape: Shape | None
    weights_digest: str
    weights_name: str
    n_classes: int | None = None
    preprocessing: Preprocessing | None = None
    fixed_size: bool = True
    dtype: torch.dtype = torch.float32
    note: str = ""

    def takes(self, part: nn.Module | None = None) -> NetworkInput:
        """The input that the network, or a part of it, takes, as far as it is known."""
        module = self.module if part is None else part

        def runs_on(shape: Shape) -> bool:
            try:
                with torch.no_grad():
                    module(torch.zeros(1, *shape))
            except Exception:  # anything, of another's code
                return False
            return True

        channels = None if (conv := _first_convolution(module)) is None else conv.in_channels
        return NetworkInput(self.input_shape, self.fixed_size, channels, self.preprocessing, runs_on)


#: Number of channels (None where not given), height, width.
Size = tuple[int | None, int, int]
#: A file, or the name of one of the library's own sets.
Weights = str | os.PathLike[str]


def load_model(
    name: str, *, weights: Weights | None = None, input_size: str | int | Sequence[int] | None = None,
    n_classes: int | None = None, seed: int = 0,
) -> LoadedModel:  # fmt: skip
    """Build a network by its name and give it its weights.

    Parameters
    ----------
    name : str
        See the module's table.
    weights : path or str, optional
        A file; ``DEFAULT`` or the name of one of the library's own sets (``IMAGENET1K_V2``); ``random``. Default: the
        shipped weights for ``zoo:``, the weights that a user's function returns, an error otherwise.
    input_size : str or sequence of int, optional
        ``'224'``, ``'28x28'`` or ``'3x224x224'``; where channels are not given, those of the first convolution.
        Default: the size recorded with the weights by ``decomp train``, or else the network's own.
    n_classes : int, optional
        Outputs of the classifier, for ``zoo:``, ``torchvision:`` and ``timm:``. Default: as for `input_size`.
        A user's function ignores it.
    seed : int
        Random seed of random weights, and of torch's generator while a user's function runs.

    Returns
    -------
    LoadedModel

    Raises
    ------
    UsageError
        An unknown name, missing weights, an impossible input size.
    FileError, WeightsError, NumericalError
        Weights that cannot be read, do not fit, or hold NaN or Inf.
    DecompError
        The user's function raised an error; its file and line are named.
    """
    if name.endswith(MEMORY):
        fix = "load results of its run with decomp.load(RUN, into=model), where model is such a network"
        raise UsageError(name, "was given as a module and cannot be built from its name", fix=fix)
    kind, _, rest = name.partition(":")
    size: Size | None = None if input_size is None else parse_input_size(input_size)
    file = None if weights is None else split_key(weights)[0]
    if file is not None:
        recorded, classes = read_shape(file)
        size, n_classes = size or recorded, n_classes or classes
    # Random weights must be the same at every call, and torch's own generator stays unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind in KINDS and rest:
            opener = {"zoo": _open_zoo, "torchvision": _open_torchvision, "timm": _open_timm}[kind]
            module, shape, weights_name = opener(name, rest, weights, size, n_classes)
        elif name.endswith(".pt2"):
            module, shape, weights_name = _open_program(name, weights)
        elif Path(name).expanduser().is_dir():
            module, shape, weights_name = _open_folder(name, weights)
        elif user_code.names_user_code(name):
            module, shape, weights_name = _open_factory(name, weights)
        else:
            raise _unknown(name)
    dtype, module, note = dtype_of(module), plain_copy(module, name), ""
    if weights_name == FROM_FILE and weights is not None:
        weights_name, note = str(weights), load_weights(module, weights)
    if size is not None:
        shape = full_shape(name, size, module, shape)
    state = module.state_dict()
    check_finite(state, name)
    if kind not in KINDS and Path(name).expanduser().is_dir() and file is None:
        own = preprocessing_of(name)
    else:
        own = of_weights(kind, rest, weights if file is None or not file.is_file() else file, module)
    fixed = size is not None or kind == "zoo" or weights_name not in ("random", str(weights))
    return LoadedModel(module, name, shape, digest_state_dict(state), weights_name, n_classes, own, fixed, dtype, note)


def _first_convolution(module: nn.Module) -> nn.modules.conv._ConvNd | None:
    return next((m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)


def parse_input_size(size: str | int | Sequence[int]) -> Size:
    """Parse ``'224'``, ``'28x28'``, ``'3x224x224'``, or one to three whole numbers, as (C or None, H, W)."""
    try:
        if isinstance(size, int):
            values = [size]
        else:
            parts: Iterable[str | int]
            parts = size.lower().replace("×", "x").split("x") if isinstance(size, str) else size
            values = [int(part) for part in parts]
    except (TypeError, ValueError):
        values = []
    if not 1 <= len(values) <= 3 or min(values) < 1:
        fix = "write 224, 28x28 (height x width) or 3x224x224 (channels first)"
        raise UsageError("--input-size", "an input size is one to three positive whole numbers", got=size, fix=fix)
    if len(values) == 3:
        return (values[0], values[1], values[2])
    return (None, values[0], values[-1])


def full_shape(name: str, size: Size, module: nn.Module, known: Shape | None = None) -> Shape:
    """Complete ``size`` with the channels of the first convolution, or check that they are equal.

    Those of a known shape are taken where there is no convolution.
    """
    n_channels = None if (conv := _first_convolution(module)) is None else conv.in_channels
    channels, height, width = size
    if channels is None:
        if n_channels is None and known is not None:
            n_channels = known[0]
        if n_channels is None:
            fix = f"write --input-size Cx{height}x{width}"
            raise UsageError(name, "has no convolution that determines the number of channels", fix=fix)
        return n_channels, height, width
    if n_channels is not None and channels != n_channels:
        got = f"--input-size {'x'.join(map(str, size))}"
        raise UsageError(name, f"the first convolution takes {n_channels} channels", got=got)
    return channels, height, width


def _is_word(weights: Weights | None, word: str) -> bool:
    return isinstance(weights, str) and weights.lower() == word


def _no_weights(name: str, own: str) -> UsageError:
    fix = f"give --weights FILE, {own}or --weights random for untrained ones"
    return UsageError(name, "comes without trained weights here", fix=fix)


def _close(word: str, **known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest names of each kind, or an empty text."""
    close = [
        f"{kind}:{n}" for kind, names in known.items() for n in difflib.get_close_matches(word, list(names), cutoff=0.5)
    ]
    return f"did you mean {' or '.join(close)}" if close else ""


def _unknown(name: str) -> UsageError:
    from torchvision import models

    from .zoo import NETWORKS

    if name.endswith(".py") and Path(name).expanduser().is_file():
        fix = user_code.named_functions(name)
        return UsageError(f"--model {name}", "names a file without a function in it", fix=fix)
    if Path(name).expanduser().is_file():
        fix = "weights go to --weights FILE beside the network that they are for; for a TorchScript file, name the "
        fix += "function that builds its module"
        return UsageError(f"--model {name}", "must name a network, got a file of another kind", fix=fix)
    word = name.rpartition(":")[2] or name
    hint = _close(word, zoo=NETWORKS, torchvision=models.list_models(module=models))
    forms = "write zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:factory, package.module:factory, FILE.pt2 "
    forms += "or the folder of a network"
    return UsageError(f"--model {name}", "not the name of a network", fix=hint or forms)


#: Description of the origin of weights that are still to be loaded from the given file.
FROM_FILE = "a file"
#: A network, its input shape where known, and the description of the origin of its weights.
Opened = tuple[nn.Module, Shape | None, str]


def _open_zoo(name: str, network: str, weights: Weights | None, size: Size | None, n_classes: int | None) -> Opened:
    from .zoo import NETWORKS, build

    if network not in NETWORKS:
        fix = _close(network, zoo=NETWORKS) or f"known: {', '.join(NETWORKS)}"
        raise UsageError(f"--model {name}", "not a network of the zoo", fix=fix)
    entry = NETWORKS[network]
    shape = entry.input_shape
    if size is not None:
        shape = (size[0] or shape[0], size[1], size[2])
    module = build(network, n_classes, shape)
    if _is_word(weights, "random"):
        return module, shape, "random"
    if weights is None or _is_word(weights, "default"):
        if entry.weights is None:
            hint = f"(decomp train --model {name} --data {entry.dataset} makes them) "
            raise _no_weights(name, hint)
        load_weights(module, entry.weights)
        return module, shape, f"shipped with {name}"
    return module, shape, FROM_FILE


def _open_torchvision(
    name: str, network: str, weights: Weights | None, size: Size | None, n_classes: int | None
) -> Opened:
    from torchvision import models

    known = models.list_models(module=models)
    if network not in known:
        fix = _close(network, torchvision=known) or "see torchvision's list of classification models"
        raise UsageError(f"--model {name}", "not a classifier of torchvision", fix=fix)
    if weights is None:
        raise _no_weights(name, "--weights DEFAULT for torchvision's own, ")
    sets = models.get_model_weights(network)
    own = {key.lower(): member for key, member in sets.__members__.items()}.get(str(weights).lower())
    shape = (3, *_crop_size(own or getattr(sets, "DEFAULT", None)))
    options = {} if n_classes is None else {"num_classes": n_classes}
    if own is None:
        module = _quietly(lambda: models.get_model(network, weights=None, **options))
        if _is_word(weights, "random"):
            return module, shape, "random"
        return module, shape, FROM_FILE
    n_own = len(own.meta["categories"])
    if n_classes not in (None, n_own):
        raise UsageError(name, f"torchvision's own weights are for {n_own} classes", got=n_classes, fix="give a file")
    module = _downloaded(name, lambda: models.get_model(network, weights=own))
    return module, shape, f"torchvision {own.name}"


def _crop_size(weights: Any) -> tuple[int, int]:
    """Height and width at which a set of torchvision's weights was evaluated."""
    crop = getattr(weights.transforms(), "crop_size", None) if weights is not None else None
    crop = [crop] if isinstance(crop, int) else (crop or [224])
    return crop[0], crop[-1]


def _open_timm(name: str, network: str, weights: Weights | None, size: Size | None, n_classes: int | None) -> Opened:
    try:
        import timm
    except ImportError as error:
        raise UsageError(name, "timm is not installed", fix="pip install 'decomp[timm]'") from error

    base = network.partition(".")[0]  # a tag after the dot names a set of weights
    if base not in timm.list_models():
        fix = _close(base, timm=timm.list_models()) or "see timm.list_models()"
        raise UsageError(f"--model {name}", "not a model of timm", fix=fix)
    if weights is None:
        raise _no_weights(name, "--weights DEFAULT for timm's own, ")
    options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
    if _is_word(weights, "default"):
        module = _downloaded(name, lambda: timm.create_model(network, pretrained=True, **options))
        weights_name = "timm's own"
    else:
        module = _quietly(lambda: timm.create_model(network, pretrained=False, **options))
        weights_name = "random" if _is_word(weights, "random") else FROM_FILE
    config = getattr(module, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    return module, (channels, height, width), weights_name


Built = TypeVar("Built")


def _quietly(build: Callable[[], Built]) -> Built:
    """Build without the warnings about slow initialisation: the weights are replaced, or random ones are requested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


def _downloaded(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network whose weights may have to be downloaded; errors of the download become a FileError."""
    try:
        return _quietly(build)
    except (OSError, RuntimeError, ValueError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        fix = "check the network, or give --weights FILE"
        raise FileError(name, "its own weights cannot be downloaded", got=reason, fix=fix) from error


def _open_program(name: str, weights: Weights | None) -> Opened:
    program = exported_program.read(name)
    module, shape = exported_program.as_network(program, name), exported_program.input_shape(program)
    given = weights is not None and not _is_word(weights, "random") and not _is_word(weights, "default")
    return module, shape, FROM_FILE if given else "as in the program"


def _open_folder(name: str, weights: Weights | None) -> Opened:
    module, shape = open_folder(name)
    given = weights is not None and not _is_word(weights, "random") and not _is_word(weights, "default")
    return module, shape, FROM_FILE if given else "as in the folder"


def _open_factory(name: str, weights: Weights | None) -> Opened:
    if _is_word(weights, "default"):
        raise UsageError(name, "your own factory has no DEFAULT weights", fix="load them there or give --weights FILE")
    module = user_code.call(name, (nn.Module, ExportedProgram))
    if isinstance(module, ExportedProgram):
        module = exported_program.as_network(module, name)
    if not isinstance(module, nn.Module):
        raise UsageError(name, "the factory must return a torch.nn.Module", got=kind_of(module))
    module = unwrapped(module)
    if weights is None or _is_word(weights, "random"):
        return module, None, "as the factory returned them"
    return module, None, FROM_FILE
