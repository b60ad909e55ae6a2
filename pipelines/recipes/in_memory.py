"""Networks that a Python caller gives: out of their wrappers, copied, or refused with what to do."""

from __future__ import annotations

import os

from torch import nn
from torch.export import ExportedProgram

from decomp.errors import UsageError, kind_of

from ...data import given
from ...data.exported_program import as_network
from ...data.models import LoadedModel
from ...data.plain_network import dtype_of, plain_copy, unwrapped
from ...data.weights import check_finite, digest_state_dict


def module_of(model: object) -> nn.Module:
    """The module that was given, out of DataParallel, torch.compile and exported programs.

    Raises
    ------
    UsageError
        It is something else; says how to come by a module.
    """
    if isinstance(model, ExportedProgram):
        model = as_network(model, "model")
    if not isinstance(model, nn.Module):
        raise UsageError("model", "must be a torch.nn.Module", got=_described(model), fix=_way_to_a_module(model))
    return unwrapped(model)


def loaded_copy(model: nn.Module) -> LoadedModel:
    """A float32 copy on the CPU, so that the caller's own network stays as it is."""
    name = type(model).__name__
    module = plain_copy(model, name)
    state = module.state_dict()
    check_finite(state, name)
    return LoadedModel(module, name, None, digest_state_dict(state), given.NAME, dtype=dtype_of(model))


def _described(value: object) -> str:
    return repr(value) if isinstance(value, str) and len(value) < 80 else kind_of(value)


def _way_to_a_module(value: object) -> str:
    """What to do with a value that is given as a network and is none."""
    if isinstance(value, dict):
        return "build the network and give it these weights with load_state_dict"
    if isinstance(value, (str, os.PathLike)):
        return "give the network itself; decomp.freeze(run, model=NAME, data=NAME) takes names"
    if isinstance(value, type):
        return f"give an instance with trained weights, such as {value.__name__}()"
    return "give the network itself"
