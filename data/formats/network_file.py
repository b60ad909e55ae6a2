"""Network directory: ``structure.json`` and ``weights.safetensors``; loading one executes no code of its own.

The structure holds the whole graph as data, so that the network stands alone, and the list of edits (path of a module,
description of the new module), so that the same weights also fit into the original class.

======================  ===========================================================================================
``format``              ``decomp-model``
``format_version``      1
``input_shape``         [C, H, W] or null
``edits``               list of ``module`` (its path) and ``becomes`` (the module that replaces it, as
                        :func:`decomp.graph.serialise.describe_module` writes it)
``part``                path of the network in a bigger model, or null
``graph``               modules and nodes, as :func:`decomp.graph.serialise.describe_graph` writes them
``meta``                plain data of the caller: origin, plan, costs
``weights_sha256``      SHA-256 (hex) of ``weights.safetensors``
``content_sha256``      SHA-256 (hex) of all of the above, to notice edits
======================  ===========================================================================================
"""

from __future__ import annotations

import copy
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from decomp.errors import DecompError, FileError
from decomp.execution.outputs import difference
from decomp.graph import foreign_batchnorm
from decomp.graph.autocast import without_autocast
from decomp.graph.computed_weights import fix_computed_weights
from decomp.graph.forwards import FORWARD, build_forward
from decomp.graph.serialise import build_graph, describe_graph, describe_module, match_dtypes
from decomp.modules.copies import deep_copy
from decomp.modules.layout import lay_out_like
from decomp.modules.replace import set_module
from decomp.modules.sized_chain import SizedChain

from .atomic import commit_directory
from .digests import digest_file
from .json_files import read_json, write_json

FORMAT, VERSION = "decomp-model", 1
#: Type of an edit: a batch normalisation of a foreign class becomes torch's own and the submodules of that class; a
#: weight that a class computes becomes a parameter.
FOREIGN = "plain normalisation"
#: Type of an edit that no class takes: layers that are called as functions.
STANDS_ALONE = "functions"
#: Folder, in that of a network, with the same network before its batch normalisations were folded.
WITH_BATCHNORM = "with_batchnorm"
#: Largest difference between the outputs of a network alone and in its class, relative to the largest of them.
INTO_TOLERANCE = 1e-5


def save(
    module: fx.GraphModule, path: str | os.PathLike[str], *, edited: Iterable[str] = (),
    input_shape: tuple[int, int, int] | None = None, meta: Mapping[str, Any] | None = None, part: str | None = None,
    leaves: Iterable[str] = (), unfolded: fx.GraphModule | None = None,
) -> Path:  # fmt: skip
    """Write a traced network as a directory, verified by reading it back.

    Parameters
    ----------
    module : torch.fx.GraphModule
        In evaluation mode.
    path : path
        Directory to write; an older one is replaced only once the new one is whole.
    edited : iterable of str
        Paths of modules that differ in shape from the original class.
    input_shape : tuple of int, optional
        (C, H, W), recorded in the structure and used for the verification.
    meta : dict, optional
        Plain data recorded in the structure (origin, plan, costs).
    part : str, optional
        The network is this submodule of a bigger model, into which :func:`load` puts it back.
    leaves : iterable of str
        Paths of modules whose structure is not written, only their weights. :func:`load` takes them from the original
        class.
    unfolded : torch.fx.GraphModule, optional
        The same network with its batch normalisations, which is written into :data:`WITH_BATCHNORM` of the directory.

    Returns
    -------
    Path
        Of the directory.

    Raises
    ------
    DecompError
        If the network cannot be written as data, or if the network read back gives other outputs.
    """
    path, edited, leaves = Path(path), tuple(edited), tuple(leaves)
    with commit_directory(path) as folder:
        for network, place in ((unfolded, folder / WITH_BATCHNORM), (module, folder)):
            if network is None:
                continue
            place.mkdir(exist_ok=True)
            structure = {
                "format": FORMAT,
                "format_version": VERSION,
                "input_shape": list(input_shape) if input_shape else None,
                "edits": [{"module": name, "becomes": _describe_edit(network, name)} for name in edited],
                "part": part,
                "graph": describe_graph(network, leaves),
                "meta": meta or {},
            }
            _write(network, structure, place)
            if input_shape:
                _verify(network, load(place, leaves_of=network), input_shape, path)
    return path


def _write(network: fx.GraphModule, structure: dict[str, Any], folder: Path) -> None:
    state = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    save_file(state, str(folder / "weights.safetensors"))
    structure["weights_sha256"] = digest_file(folder / "weights.safetensors")
    write_json(folder / "structure.json", structure, seal=True)


def _describe_edit(network: fx.GraphModule, path: str) -> dict[str, Any]:
    if path in network.meta.get("left_out", {}):
        return network.meta["left_out"][path]
    module = dict(network.named_modules(remove_duplicate=False)).get(path)
    if path and module is not None and type(module) is not nn.Module:
        return describe_module(module, path)
    # A plain nn.Module in a traced network has only submodules left: its forward is part of the graph.
    forwards = network.meta.get("forwards", {})
    return forwards[path] or {"type": STANDS_ALONE} if path in forwards else {"type": FOREIGN}


def _verify(module: nn.Module, again: nn.Module, input_shape: tuple[int, int, int], path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *input_shape, generator=generator)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    x = x.to(next((p.dtype for p in module.parameters()), x.dtype))
    with torch.no_grad():
        # Both on the CPU, so that equal weights give equal numbers.
        off = difference((module if device.type == "cpu" else copy.deepcopy(module).cpu())(x), again(x))
    if off:
        raise DecompError(path, "the network read back from its files differs", got=f"a difference of {off:.3g}")


def read_structure(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the structure of a network directory and check its format and version.

    Raises
    ------
    FileError
        If ``structure.json`` is missing, broken, edited or of a newer version.
    """
    path = Path(path)
    if not (path / "structure.json").is_file():
        raise FileError(path, "is not an emitted network (no structure.json in it)", fix="give a model/ directory")
    file, fix = path / "structure.json", _how_to_write_again(path)
    structure = read_json(file, kind=FORMAT, format_version=VERSION, fix=fix, sealed=True)
    for key, kind in (("graph", dict), ("edits", list), ("meta", dict), ("weights_sha256", str)):
        if not isinstance(structure.get(key), kind):
            raise FileError(file, f"the structure is broken (no {key})", fix=fix)
    return structure


def leaves(structure: Mapping[str, Any]) -> list[str]:
    """Paths of the modules whose structure is not written: the argument `leaves` of :func:`save`."""
    return [path for path, spec in structure["graph"]["modules"].items() if spec.get("type") == "leaf"]


def forwards(structure: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """What :func:`decomp.graph.tracing.trace` gives as ``meta["forwards"]``, from the edits of a structure."""
    edits = {edit["module"]: edit["becomes"] for edit in structure["edits"]}
    kinds = {FORWARD, STANDS_ALONE}
    return {
        name: spec if spec["type"] == FORWARD else None for name, spec in edits.items() if spec.get("type") in kinds
    }


def left_out(structure: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What :func:`decomp.surgery.residual_branches.cut_branches` gives as ``meta["left_out"]``, from the edits."""
    called, edits = structure["graph"]["modules"], {edit["module"]: edit["becomes"] for edit in structure["edits"]}
    return {
        name: spec for name, spec in edits.items() if spec.get("type") in ("Zeros", "Identity") and name not in called
    }


def _how_to_write_again(path: Path) -> str:
    """The remedy in an error message: the stage that writes the network at `path`."""
    stages = {"original": "freeze into another --run", "model": "decompose with --redo"}
    stages |= {"pruned": "prune with --redo"} | dict.fromkeys(("best", "last"), "finetune with --redo")
    path = path.parent if path.name == WITH_BATCHNORM else path
    return f"run {stages[path.name]}" if path.name in stages else "write it again"


def load(
    path: str | os.PathLike[str], into: nn.Module | None = None, *, leaves_of: nn.Module | None = None
) -> nn.Module:
    """Rebuild a network from its directory.

    Parameters
    ----------
    path : path
        A directory written by decompose or finetune (``runs/vgg/model``).
    into : torch.nn.Module, optional
        An instance of the original class, with any weights. A copy of it gets the edits and the weights; of a
        network that is a part of a bigger model, give the bigger model or the part. Without it the network
        stands alone.
    leaves_of : torch.nn.Module, optional
        A network that stands alone takes the modules that were left out of the trace (``--leaf``) from this one.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, on the CPU.

    Raises
    ------
    FileError
        If the files are missing, broken or do not fit the given module.
    """
    path = Path(os.fspath(path))
    structure = read_structure(path)
    weights = path / "weights.safetensors"
    if not weights.is_file():
        raise FileError(weights, "is missing", fix=_how_to_write_again(path))
    if structure.get("weights_sha256") != digest_file(weights):
        raise FileError(
            weights, "does not match its structure.json (broken or exchanged)", fix=_how_to_write_again(path)
        )
    state = load_file(str(weights))
    if into is None:
        network = build_graph(structure["graph"], state, str(path / "structure.json"), leaves_of)
        network.meta.update(forwards=forwards(structure), left_out=left_out(structure))
        return network
    return _load_into(deep_copy(into).cpu().eval(), structure, state, path)


@dataclass(frozen=True)
class Verified:
    """Whether a written network, which stands alone, also goes into the class of the original.

    Attributes
    ----------
    into : bool or None
        None where the class is not at hand.
    reason : str
        For anything but True.
    network : torch.nn.Module or None
        In that class, where it is True.
    """

    into: bool | None
    reason: str = ""
    network: nn.Module | None = field(default=None, repr=False, compare=False)

    def words(self) -> str:
        """Human-readable, to follow the name of the network."""
        if self.into:
            return "verified, standing alone and in the original class"
        cause = "cannot be built here" if self.into is None else "does not take it"
        return f"stands alone; the original class {cause} ({self.reason})"


def verify_into_original(path: str | os.PathLike[str], build: Callable[[], nn.Module]) -> Verified:
    """Check whether the edits and weights also go into the original class; see :func:`in_original_class`.

    Parameters
    ----------
    path : path
        A network directory.
    build : callable
        Returns an instance of the original class, with any weights.
    """
    try:
        original = build()
    except DecompError as error:
        return Verified(None, str(error).rstrip("."))
    network, reason = in_original_class(path, original)
    return Verified(network is not None, reason, network)


def in_original_class(path: str | os.PathLike[str], original: nn.Module) -> tuple[nn.Module | None, str]:
    """A network in the class of the original, where it gives the outputs that it gives alone.

    Parameters
    ----------
    path : path
        A network directory.
    original : torch.nn.Module
        Of the original class, with any weights; or the bigger model of which the network is a part.

    Returns
    -------
    network : torch.nn.Module or None
    reason : str
        Why there is none. No error is raised: the network that stands alone is right whatever the class does.
    """
    path = Path(path)
    structure = read_structure(path)
    part = structure.get("part")
    types = {edit["module"]: edit["becomes"].get("type") for edit in structure["edits"]}
    alone_at = next((name for name, kind in types.items() if kind == STANDS_ALONE), None)
    if alone_at is not None:
        return None, _function_words(alone_at)
    network: nn.Module | None = None
    try:
        network = load(path, into=original)
        alone = load(path, leaves_of=original.get_submodule(part) if part else original)
        x = torch.randn(2, *structure["input_shape"], generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), without_autocast():
            off = difference(alone(x), (network.get_submodule(part) if part else network)(x))
    except DecompError as error:
        return None, f"{error.rule}" if error.thing == str(path) else str(error).rstrip(".")
    except Exception as error:  # of the forward pass, which is the user's
        return None, _chain_words(error, network) or " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if off > INTO_TOLERANCE:
        size = "of another form" if off == math.inf else f"off by {off:.2g} of the largest"
        return None, f"with the exchanged modules its outputs are {size}"
    return network, ""


def _function_words(path: str) -> str:
    return f"{path or 'the forward pass'} calls layers as functions on its own parameters, where no other can be put"


def _chain_words(error: Exception, network: nn.Module | None) -> str:
    """A line about an attribute that a forward pass asks of a layer in whose place a chain is now; '' otherwise."""
    if network is None or not isinstance(error, AttributeError) or not isinstance(error.obj, nn.Sequential):
        return ""
    name = next((name for name, module in network.named_modules() if module is error.obj), "")
    return f"its forward reads {name}.{error.name}, and {name} is a chain of layers now, which has none"


def _load_into(whole: nn.Module, structure: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Apply the edits and load the weights, in the whole model or in the part of it that the network was."""
    part = structure.get("part")
    part = part if part and part in dict(whole.named_modules(remove_duplicate=False)) else ""
    module = whole.get_submodule(part)
    for edit in structure["edits"]:
        name, spec = edit["module"], edit["becomes"]
        try:
            old = module.get_submodule(name)
        except AttributeError as error:
            raise FileError(path, f"does not fit the given model: it has no module {name}") from error
        if spec.get("type") == STANDS_ALONE:
            raise FileError(path, _function_words(name), fix="load it without into=")
        if spec.get("type") == FOREIGN:
            new: nn.Module | None = foreign_batchnorm.as_batchnorm(old)
            if new is None and not fix_computed_weights(old):
                raise FileError(path, f"does not fit the given model: {name} is no batch normalisation with parts")
        else:
            new = build_forward(spec, name)
        if isinstance(old, nn.ConvTranspose2d) and isinstance(new, nn.Sequential):
            new = SizedChain(OrderedDict(new.named_children()))  # forward may give it an output size
        if new is not None:
            set_module(whole, f"{part}.{name}" if part else name, lay_out_like(new, old))
    match_dtypes(module, state)
    missing, unexpected = module.load_state_dict(_without_constants(module, structure, state), strict=False)
    used = set(structure["graph"]["modules"])
    missing = [k for k in missing if k.rpartition(".")[0] in used]
    if unexpected or missing:
        first = (unexpected + missing)[0]
        raise FileError(path, f"does not fit the given model at {first}", fix="give the class that was compressed")
    return whole.eval()


def _without_constants(
    module: nn.Module, structure: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights without the tensors that the class makes by itself; those that it keeps as attributes are set."""
    own, kept = module.state_dict().keys(), dict(state)
    for name in [name for name, kind in structure["graph"]["tensors"].items() if kind == "buffer" and name not in own]:
        holder, _, attribute = name.rpartition(".")
        value = getattr(module.get_submodule(holder), attribute, None)
        if isinstance(value, Tensor) and value.shape == state[name].shape:
            value.copy_(state[name])
        elif attribute.startswith("_tensor_constant"):  # kept for writing the network once more
            module.get_submodule(holder).register_buffer(attribute, state[name], persistent=False)
        else:
            continue
        del kept[name]
    return kept
