"""State dicts inside checkpoints: where they lie in the content of a file, and names that wrappers have changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

State = dict[str, Tensor]

#: Segments that DataParallel and torch.compile put into names.
_WRAPPERS = ("module", "_orig_mod")
#: What profilers leave in a network.
_PROFILED = ("total_ops", "total_params")
#: Usual names of the weights in a checkpoint; the first ones are preferred.
_USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
#: Names of averaged weights, which are taken only where they are asked for or alone.
_AVERAGED = re.compile(r"ema|shadow|average|teacher|swa", re.IGNORECASE)


def state_dicts(content: Any, path: str = "") -> Iterator[tuple[str, State]]:
    """Every mapping of names to tensors in nested mappings.

    Parameters
    ----------
    content : object
        Of a checkpoint. The state of an optimizer is passed over.
    path : str
        Keys that lead to `content`, joined by dots.

    Yields
    ------
    path : str
        ``''`` for the content itself.
    state : dict of str to torch.Tensor
    """
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    if content and all(isinstance(value, Tensor) for value in content.values()):
        yield path, dict(content)
    elif "param_groups" not in content:
        for key, value in content.items():
            yield from state_dicts(value, f"{path}.{key}" if path else key)


def preference(path: str, state: Mapping[str, Tensor]) -> tuple[bool, int, int]:
    """Sort key of the state dicts in a checkpoint: the one that is most likely meant comes first."""
    first = path.partition(".")[0]
    usual = _USUAL.index(first) if first in _USUAL else len(_USUAL)
    return bool(_AVERAGED.search(path)), usual, -len(state)


@dataclass(frozen=True)
class Match:
    """A state dict under the names of a module.

    Attributes
    ----------
    state : dict of str to torch.Tensor
        Without the entries that only profilers leave.
    missing, left_over : list of str
        Names that only the module has, and that only the file has.
    mismatched : list of str
        Descriptions of entries of another shape or type than the module's.
    prefix : str
        Names without this prefix are not in `state`: they are of something else than the module.
    outside : list of str
        These names.
    """

    state: State
    missing: list[str]
    left_over: list[str]
    mismatched: list[str]
    prefix: str = ""
    outside: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether names, shapes and types are those of the module."""
        return self.n_wrong == 0

    @property
    def n_wrong(self) -> int:
        """Number of names, shapes and types that are not those of the module."""
        return len(self.missing) + len(self.left_over) + len(self.mismatched)


def matches(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[Match]:
    """The ways to read the names of a state dict as those of a module, where one fits; otherwise the closest one.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
    own : mapping of str to torch.Tensor
        The module's state dict.

    Returns
    -------
    list of Match
        One, unless several parts of the state dict fit the module alike.
    """
    plain = {_without_wrappers(name): name for name in own}
    spaces: list[tuple[State, Mapping[str, Tensor]]] = [(dict(state), own)]
    if len(plain) == len(own):
        without = {_without_wrappers(name): value for name, value in state.items()}
        spaces.append((without, {short: own[name] for short, name in plain.items()}))
    tried = [_compared(changed, names) for given, names in spaces for changed in _with_prefixes_off(given)]
    if found := next((match for match in tried if match.fits), None):
        return [_under_own_names(found, own, plain)]
    parts = [part for given, names in spaces for part in _parts(given, names)]
    fitting = {part.prefix: part for part in reversed(parts) if part.fits}
    if fitting:
        ordered = sorted(fitting.values(), key=lambda part: preference(part.prefix, part.state))
        return [_under_own_names(part, own, plain) for part in ordered]
    return [min([*tried, *parts], key=lambda match: match.n_wrong)]


def _with_prefixes_off(state: State) -> Iterator[State]:
    """The state dict as it is, and without one, two, ... of the segments with which all names begin."""
    yield state
    shared = _shared_prefix(state)
    for place in range(1, len(shared) + 1):
        length = len(".".join(shared[:place])) + 1
        yield {name[length:]: value for name, value in state.items()}


def _under_own_names(match: Match, own: Mapping[str, Tensor], plain: Mapping[str, str]) -> Match:
    """The match with the names of the module where they lack segments of wrappers that the module's names have."""
    state = {name if name in own else plain[name]: value for name, value in match.state.items()}
    return replace(match, state=state)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _shared_prefix(state: Mapping[str, Tensor]) -> list[str]:
    """Segments with which all names begin."""
    split = [name.split(".")[:-1] for name in state]
    shared = split[0] if split else []
    for parts in split:
        length = next((i for i, (one, other) in enumerate(zip(shared, parts)) if one != other), len(parts))
        shared = shared[:length]
    return shared


def _parts(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[Match]:
    """The entries below each prefix, as state dicts of their own."""
    prefixes = {name.rsplit(".", n)[0] for name in state for n in range(1, name.count(".") + 1)}
    for prefix in sorted(prefixes, key=lambda name: (name.count("."), name)):
        below = {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}
        if not below.keys().isdisjoint(own):
            outside = [name for name in state if not name.startswith(f"{prefix}.") and not _is_profiled(name)]
            yield _compared(below, own, prefix, outside)


def _compared(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str = "", outside: Iterable[str] = ()
) -> Match:
    kept = {name: value for name, value in state.items() if name in own or not _is_profiled(name)}
    # Old state dicts of batch normalisations have no counters of batches; evaluation does not depend on them.
    missing = [name for name in own if name not in kept and not name.endswith("num_batches_tracked")]
    both = [(name, value, own[name]) for name, value in kept.items() if name in own]
    mismatched = [f"{n} is {_shape(a)} where the model has {_shape(b)}" for n, a, b in both if a.shape != b.shape]
    mismatched += [f"{n} is {a.dtype}" for n, a, b in both if b.is_floating_point() and not a.is_floating_point()]
    return Match(kept, missing, [name for name in kept if name not in own], mismatched, prefix, list(outside))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _is_profiled(name: str) -> bool:
    return name.rpartition(".")[2] in _PROFILED
