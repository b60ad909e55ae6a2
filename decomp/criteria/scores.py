"""Scores of channels: one number per channel of a channel space; the channels with the lowest numbers go first.

Where several layers write a space, its channels are only removed together, and a score is that of the group: the sum
of norms and distances over the layers that write it, the mean of activations and scale factors. Where blocks with
projection shortcuts write it, the projections alone decide (Li et al. 2017, on pruning across several layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy.typing as npt
import torch
from torch import Tensor, nn

from decomp import seeds
from decomp.criteria.filters import FILTERS, filter_rows
from decomp.criteria.gradients import Loss, taylor
from decomp.criteria.groups import POWERS, group_norm
from decomp.criteria.members import per_channel, projections, writers
from decomp.criteria.names import CRITERIA, FILTER_CRITERIA, NEEDS, STATISTICS
from decomp.criteria.statistics import activation_statistics
from decomp.errors import NumericalError, UsageError, check_choice
from decomp.graph.channel_spaces import ChannelSpace, Spaces
from decomp.modules.select import Select


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion knows beside the weights; see :func:`gather`.

    Attributes
    ----------
    statistics : mapping of str to mapping of str to torch.Tensor
        By layer and name of the statistic, per output channel.
    changes : mapping of str to torch.Tensor
        Squared first-order changes of the loss, per channel of each space.
    """

    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    changes: Mapping[str, Tensor] = field(default_factory=dict)


def gather(
    network: nn.Module,
    spaces: Spaces,
    names: Sequence[str],
    criterion: str,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]] | None = None,
    loss: Loss | None = None,
) -> Evidence:
    """What a criterion needs to know beside the weights; for most criteria nothing.

    Parameters
    ----------
    network : torch.nn.Module
    spaces : decomp.graph.channel_spaces.Spaces
    names : sequence of str
        Channel spaces.
    criterion : str
    batches : iterable of torch.Tensor of shape (B, C, H, W), or of pairs of such and labels
        On the network's device. Not read where the criterion needs no images.
    loss : callable, optional
        For 'taylor'; see :func:`decomp.criteria.gradients.own_output_loss`.

    Returns
    -------
    Evidence

    Raises
    ------
    UsageError
        Unknown criterion; images or the loss that it needs are not given.
    """
    need = NEEDS[check_choice("criterion", criterion, CRITERIA)]
    if need not in ("images", "loss"):
        return Evidence()
    if batches is None or (need == "loss" and loss is None):
        raise _without_images(criterion)
    if need == "loss":
        assert loss is not None
        return Evidence(changes=taylor(network, spaces, names, batches, loss))
    layers = dict.fromkeys(path for name in names for path in _deciding(network, spaces, spaces[name]))
    images = (batch if isinstance(batch, Tensor) else batch[0] for batch in batches)
    return Evidence(statistics=activation_statistics(network, list(layers), images))


def score(
    network: nn.Module,
    spaces: Spaces,
    names: Sequence[str],
    criterion: str,
    *,
    evidence: Evidence | None = None,
    removed: Mapping[str, Iterable[int]] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """One number per channel of each space.

    Parameters
    ----------
    network : torch.nn.Module
        Has the module paths that ``spaces`` was made from.
    spaces : decomp.graph.channel_spaces.Spaces
    names : sequence of str
        Channel spaces.
    criterion : str
        One of :data:`decomp.criteria.names.CRITERIA`.
    evidence : Evidence, optional
        From :func:`gather`, for criteria that need images.
    removed : mapping of str to iterable of int, optional
        Channels that other spaces keep. Criteria of weights then leave out the weights that read the channels which
        those spaces lose ("greedy" in Li et al. 2017); without it, all weights count ("independent").
    seed : int
        For 'random'.

    Returns
    -------
    dict of str to torch.Tensor
        Float64, shape (width of the space,), on the CPU.

    Raises
    ------
    UsageError
        Unknown criterion; a space without a batch normalisation for 'bn-scale'; evidence is missing.
    NumericalError
        NaN or Inf among the numbers.
    """
    check_choice("criterion", criterion, CRITERIA)
    known, alive = evidence or Evidence(), None if removed is None else spaces.alive(removed)
    found = {name: _score(network, spaces, spaces[name], criterion, known, alive, seed) for name in names}
    for name, values in found.items():
        if not bool(values.isfinite().all()):
            raise NumericalError(
                name, f"the numbers of criterion {criterion} must be finite", got="NaN or infinite ones",
                fix="look for such numbers among the weights",
            )  # fmt: skip
    return found


def scorable(network: nn.Module, spaces: Spaces, names: Sequence[str], criterion: str) -> list[str]:
    """Those of some spaces that a criterion can judge.

    For 'bn-scale' the ones with scale factors; for others but 'random' those that layers with weights write, not
    selections of channels.

    Raises
    ------
    UsageError
        Unknown criterion, or there are none.
    """
    need = NEEDS[check_choice("criterion", criterion, CRITERIA)]
    if criterion != "random" and need != "batchnorm":
        return [name for name in names if not _selected(network, spaces[name])]
    found = [name for name in names if need != "batchnorm" or _normalisations(network, spaces[name])]
    if names and not found:
        raise _without_scales(f"the channels of {', '.join(names[:4])}{', …' if len(names) > 4 else ''}")
    return found


def _score(
    network: nn.Module, spaces: Spaces, space: ChannelSpace, criterion: str, evidence: Evidence,
    alive: npt.NDArray | None, seed: int,
) -> Tensor:  # fmt: skip
    if criterion in FILTER_CRITERIA:
        return _of_filters(network, spaces, space, FILTERS[criterion], alive)
    if criterion in POWERS:
        return group_norm(network, spaces, space, POWERS[criterion])
    if criterion in STATISTICS:
        return _of_activations(network, spaces, space, criterion, evidence)
    if criterion == "bn-scale":
        return _of_scales(network, spaces, space)
    if criterion == "random":
        return torch.rand(space.width, generator=seeds.generator(seed, criterion, space.name), dtype=torch.float64)
    assert criterion == "taylor", criterion  # a name without a branch here
    if space.name not in evidence.changes:
        raise _without_images(criterion)
    return evidence.changes[space.name]


def _deciding(network: nn.Module, spaces: Spaces, space: ChannelSpace) -> tuple[str, ...]:
    """The layers whose filters and outputs rank the channels of a space."""
    return projections(spaces, space) or writers(network, spaces, space)


def _of_filters(
    network: nn.Module, spaces: Spaces, space: ChannelSpace, of_rows: Callable[[Tensor], Tensor],
    alive: npt.NDArray | None,
) -> Tensor:  # fmt: skip
    parts = []
    for path in _deciding(network, spaces, space):
        use = spaces.use(path)
        assert use is not None  # it writes the space
        columns = None if alive is None else torch.from_numpy(alive[use.reads])
        parts.append((spaces.roots_of(use.writes), of_rows(filter_rows(network.get_submodule(path), columns))))
    return per_channel(space, parts, mean=False)


def _of_activations(
    network: nn.Module, spaces: Spaces, space: ChannelSpace, statistic: str, evidence: Evidence
) -> Tensor:
    parts = []
    for path in _deciding(network, spaces, space):
        use = spaces.use(path)
        if path not in evidence.statistics:
            raise _without_images(statistic)
        assert use is not None
        parts.append((spaces.roots_of(use.writes), evidence.statistics[path][statistic]))
    return per_channel(space, parts, mean=True)


def _of_scales(network: nn.Module, spaces: Spaces, space: ChannelSpace) -> Tensor:
    """Mean absolute scale factor of the normalisations of a channel (Liu et al., Network Slimming, 2017, section 3)."""
    paths = _normalisations(network, space)
    if not paths:
        raise _without_scales(space.name)
    parts = []
    for path in paths:
        use = spaces.use(path)
        assert use is not None
        parts.append((spaces.roots_of(use.writes), network.get_parameter(f"{path}.weight").detach().abs()))
    return per_channel(space, parts, mean=True)


def _normalisations(network: nn.Module, space: ChannelSpace) -> list[str]:
    """Paths of the batch normalisations with scale factors in a space."""
    carriers = [(path, network.get_submodule(path)) for path in space.carriers]
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return [path for path, module in carriers if isinstance(module, kinds) and module.affine]


def _selected(network: nn.Module, space: ChannelSpace) -> bool:
    return any(isinstance(network.get_submodule(path), Select) for path in space.producers)


def _without_images(criterion: str) -> UsageError:
    return UsageError(
        "criterion", f"{criterion} looks at the network's values on images, and there are none", fix="give images, or "
        "take a criterion of the weights, such as l1",
    )  # fmt: skip


def _without_scales(what: str) -> UsageError:
    return UsageError(
        "criterion", f"bn-scale compares the scale factors of batch normalisations, and {what} have none",
        fix="take another criterion, such as l1",
    )  # fmt: skip
