"""Networks by name.

=============================  ==================================================================================
``zoo:NAME``                   a network of :mod:`decomp.data.zoo`, with the weights shipped for it
``torchvision:NAME``           a classifier of torchvision
``timm:NAME``                  a model of timm, where that is installed
``path/to/file.py:factory``    what your function returns when called without arguments
``package.module:factory``     the same for an importable module (the current folder included)
=============================  ==================================================================================

Weights: a file (safetensors or a state dict), ``DEFAULT`` (the library's own), ``random`` (drawn from a seed).
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from decomp.errors import FileError, UsageError

from . import user_code
from . import weights as weight_files

KINDS = ("zoo", "torchvision", "timm")


@dataclass
class LoadedModel:
    """A network ready to be looked at.

    Attributes
    ----------
    module : nn.Module
        In evaluation mode, float32, on the CPU.
    name : str
        As given to :func:`load_model`.
    input_shape : (C, H, W) or None
        None where neither the name nor ``input_size`` tells it.
    weights_digest : str
        Sha256 over the state dict (:func:`decomp.data.weights.digest_state_dict`).
    weights_name : str
        Where the weights came from, in words.
    n_classes : int or None
        What the classifier was built with, where it was not with its own number.
    """

    module: nn.Module
    name: str
    input_shape: tuple[int, int, int] | None
    weights_digest: str
    weights_name: str
    n_classes: int | None = None


def load_model(name: str, *, weights=None, input_size=None, n_classes: int | None = None, seed: int = 0) -> LoadedModel:
    """Build a network by its name and give it its weights.

    Parameters
    ----------
    name : str
        See the module's table.
    weights : path or str, optional
        A file; ``DEFAULT`` or the name of one of the library's own sets (``IMAGENET1K_V2``); ``random``. Default: the
        shipped weights for ``zoo:``, what the factory returns for your own functions, an error otherwise.
    input_size : str or sequence of int, optional
        ``'224'``, ``'28x28'`` or ``'3x224x224'``; channels are read off the first convolution where they are not given.
        Weights of ``decomp train`` tell it themselves, as they do `n_classes`.
    n_classes : int, optional
        Outputs of the classifier, for ``zoo:``, ``torchvision:`` and ``timm:``; default: the network's own.
        Your own factory decides for itself.
    seed : int
        Of the random weights, and of whatever a factory draws from torch's generator.

    Returns
    -------
    LoadedModel

    Raises
    ------
    UsageError
        An unknown name, weights that are not given, an input size that cannot be meant.
    FileError, WeightsError, NumericalError
        Weights that cannot be read, do not fit, or hold NaN or Inf.
    DecompError
        Your factory raised an error; its file and line are named.
    """
    kind, _, rest = name.partition(":")
    size = None if input_size is None else parse_input_size(input_size)
    if weights is not None:
        recorded, classes = weight_files.read_shape(Path(weights).expanduser())
        size, n_classes = size or recorded, n_classes or classes
    # Weights that are drawn must be the same at every call, and torch's own generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind in KINDS and rest:
            opener = {"zoo": _open_zoo, "torchvision": _open_torchvision, "timm": _open_timm}[kind]
            module, shape, weights_name = opener(name, rest, weights, size, n_classes)
        elif user_code.names_user_code(name):
            module, shape, weights_name = _open_factory(name, weights)
        else:
            raise _unknown(name)
    module = module.cpu().float().eval()
    if size is not None:
        shape = _full_shape(name, size, module)
    state = module.state_dict()
    weight_files.check_finite(state, name)
    return LoadedModel(module, name, shape, weight_files.digest_state_dict(state), weights_name, n_classes)


def parse_input_size(size) -> tuple[int | None, int, int]:
    """``'224'``, ``'28x28'``, ``'3x224x224'`` or as many whole numbers, as (C or None, H, W)."""
    try:
        if isinstance(size, int):
            values = [size]
        else:
            parts = size.lower().replace("×", "x").split("x") if isinstance(size, str) else size
            values = [int(part) for part in parts]
    except (TypeError, ValueError):
        values = []
    if not 1 <= len(values) <= 3 or min(values) < 1:
        fix = "write 224, 28x28 (height x width) or 3x224x224 (channels first)"
        raise UsageError("--input-size", "an input size is one to three positive whole numbers", got=size, fix=fix)
    if len(values) == 3:
        return tuple(values)
    return (None, values[0], values[-1])


def _full_shape(name: str, size, module: nn.Module) -> tuple[int, int, int]:
    """``size`` with its channels, which must be those of the network's first convolution."""
    convs = (m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd))
    n_channels = next((conv.in_channels for conv in convs), None)
    if size[0] is None:
        if n_channels is None:
            fix = f"write --input-size Cx{size[1]}x{size[2]}"
            raise UsageError(name, "has no convolution to read the number of channels off", fix=fix)
        return (n_channels, *size[1:])
    if n_channels is not None and size[0] != n_channels:
        got = f"--input-size {'x'.join(map(str, size))}"
        raise UsageError(name, f"the first convolution takes {n_channels} channels", got=got)
    return size


def _is_word(weights, word: str) -> bool:
    return isinstance(weights, str) and weights.lower() == word


def _load_file(module: nn.Module, weights) -> str:
    """Load a file of weights; returns their name."""
    path = Path(weights).expanduser()
    weight_files.load_into(module, weight_files.read_state_dict(path), path)
    return str(weights)


def _no_weights(name: str, own: str) -> UsageError:
    fix = f"give --weights FILE, {own}or --weights random for untrained ones"
    return UsageError(name, "comes without trained weights here", fix=fix)


def _close(word: str, **known) -> str:
    """A hint for a name that is not known: the closest of each kind's names, or nothing."""
    close = [
        f"{kind}:{n}" for kind, names in known.items() for n in difflib.get_close_matches(word, list(names), cutoff=0.5)
    ]
    return f"did you mean {' or '.join(close)}" if close else ""


def _unknown(name: str) -> UsageError:
    from torchvision import models

    from .zoo import NETWORKS

    word = name.rpartition(":")[2] or name
    hint = _close(word, zoo=NETWORKS, torchvision=models.list_models(module=models))
    forms = "write zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:factory or package.module:factory"
    return UsageError(f"--model {name}", "not the name of a network", fix=hint or forms)


def _open_zoo(name, network, weights, size, n_classes):
    from .zoo import NETWORKS

    if network not in NETWORKS:
        fix = _close(network, zoo=NETWORKS) or f"known: {', '.join(NETWORKS)}"
        raise UsageError(f"--model {name}", "not a network of the zoo", fix=fix)
    entry = NETWORKS[network]
    shape = entry.input_shape
    if size is not None:
        shape = (size[0] or shape[0], *size[1:])
    module = entry.build(n_classes or entry.n_classes, shape)
    if _is_word(weights, "random"):
        return module, shape, "random"
    if weights is None or _is_word(weights, "default"):
        if entry.weights is None:
            hint = f"(decomp train --model {name} --data {entry.dataset} makes them) "
            raise _no_weights(name, hint)
        _load_file(module, entry.weights)
        return module, shape, f"shipped with {name}"
    return module, shape, _load_file(module, weights)


def _open_torchvision(name, network, weights, size, n_classes):
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
        return module, shape, _load_file(module, weights)
    n_own = len(own.meta["categories"])
    if n_classes not in (None, n_own):
        raise UsageError(name, f"torchvision's own weights are for {n_own} classes", got=n_classes, fix="give a file")
    module = _downloaded(name, lambda: models.get_model(network, weights=own))
    return module, shape, f"torchvision {own.name}"


def _crop_size(weights) -> tuple[int, int]:
    """Height and width that a set of torchvision's weights was evaluated at."""
    crop = getattr(weights.transforms(), "crop_size", None) if weights is not None else None
    crop = [crop] if isinstance(crop, int) else (crop or [224])
    return crop[0], crop[-1]


def _open_timm(name, network, weights, size, n_classes):
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
    options = {} if n_classes is None else {"num_classes": n_classes}
    if _is_word(weights, "default"):
        module = _downloaded(name, lambda: timm.create_model(network, pretrained=True, **options))
        weights_name = "timm's own"
    else:
        module = _quietly(lambda: timm.create_model(network, pretrained=False, **options))
        weights_name = "random" if _is_word(weights, "random") else _load_file(module, weights)
    config = getattr(module, "pretrained_cfg", None) or {}
    return module, tuple(config.get("input_size") or (3, 224, 224)), weights_name


def _quietly(build: Callable[[], nn.Module]) -> nn.Module:
    """Build without the warnings about slow initialisation: the weights are replaced, or random ones were asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


def _downloaded(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return _quietly(build)
    except (OSError, RuntimeError, ValueError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        fix = "check the network, or give --weights FILE"
        raise FileError(name, "its own weights cannot be downloaded", got=reason, fix=fix) from error


def _open_factory(name, weights):
    if _is_word(weights, "default"):
        raise UsageError(name, "your own factory has no DEFAULT weights", fix="load them there or give --weights FILE")
    module = user_code.call(name)
    if not isinstance(module, nn.Module):
        raise UsageError(name, "the factory must return a torch.nn.Module", got=f"a {type(module).__name__}")
    if weights is None or _is_word(weights, "random"):
        return module, None, "as the factory returned them"
    return module, None, _load_file(module, weights)
