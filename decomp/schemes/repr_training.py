"""RePr: training that drops overlapping filters for some epochs and brings them back orthogonal to the others.

A. Prakash, J. Storer, D. Florencio, C. Zhang, "RePr: Improved Training of Convolutional Filters", CVPR 2019. The
network keeps its size; only its training differs. The paper leaves open with which weights the following layers read a
filter that comes back, and the scale of new filters; see :class:`decomp.schemes.repr_settings.ReprSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from decomp import seeds
from decomp.errors import UsageError, check_choice
from decomp.schemes.channel_entries import ChannelEntries, mean_by_channel
from decomp.schemes.droppable_channels import droppable_spaces
from decomp.schemes.filter_ranking import choose_dropped, least_kept, share_of
from decomp.schemes.held_entries import HeldEntries
from decomp.schemes.orthogonal_filters import NewFilters, largest_cosine, reinitialise
from decomp.schemes.overlap_metrics import METRICS, dead_filters, live_overlaps, overlaps
from decomp.schemes.repr_settings import ReprSettings

#: Returns the accuracy of the network as it is.
Judge = Callable[[], float]


class RePr:
    """The scheme for one network, to be called from a training loop.

    Parameters
    ----------
    model : torch.nn.Module
        The network that is trained; a copy is traced to find its channels.
    input_shape : sequence of int
        (C, H, W) of one image.
    leaves : iterable of str
        As for :func:`decomp.graph.tracing.trace`.
    **settings
        Fields of :class:`decomp.schemes.repr_settings.ReprSettings`; ``epochs`` is needed.

    Attributes
    ----------
    settings : ReprSettings
    spaces : tuple of DroppableSpace
        The channels that take part.
    filters : dict of str to int
        Number of filters of each convolution that takes part.
    left_out : dict of str to str
        The other convolutions, with the reason.
    events : list of dict
        One per drop and per return: ``event`` ('drop' or 'restore'), ``epoch`` (before which it happened, from 0),
        ``cycle`` (from 0), ``dropped`` (filters by layer), ``overlap_before`` and ``overlap_after`` (mean over the
        filters that are there), ``overlap`` (the same by layer), and for 'restore' ``max_cosine`` (largest |cos|
        between a new filter and a constraint), ``max_cosine_any`` (and any other filter of its layer, or the one
        that it replaces), ``constraints`` and ``default_init`` (numbers by layer). Where the loop gives a judge, also
        ``accuracy_before`` and ``accuracy_after``.

    Raises
    ------
    UsageError
        A setting is out of range, or no filter of the network can be dropped.
    TraceError
        The network cannot be traced.
    """

    def __init__(
        self, model: nn.Module, input_shape: Sequence[int], *, leaves: Iterable[str] = (), **settings: Any
    ) -> None:
        self.settings, leaves = ReprSettings(**settings), tuple(leaves)
        check_choice("metric", self.settings.metric, METRICS)
        self.model = model
        self.spaces, self.left_out = droppable_spaces(
            model, input_shape, first=self.settings.first, coupled=self.settings.coupled, leaves=leaves
        )
        self._entries = ChannelEntries(model, self.spaces)
        self.filters = {path: len(self._entries.filters(path)) for path in self._entries.writers}
        self._check_filters(input_shape, leaves)
        self.events: list[dict[str, Any]] = []
        self._cycle: int | None = None
        self._dropped: list[list[int]] = [[] for _ in self.spaces]
        self._old_filters: dict[str, torch.Tensor] = {}
        self._old_slices: dict[str, torch.Tensor] = {}
        self._held = HeldEntries(model, {})
        self._optimizers: tuple[Optimizer, ...] = ()

    @property
    def state(self) -> str:
        """'full', or 'sub' while filters are dropped."""
        return "full" if self._cycle is None else "sub"

    # -- calls of a training loop --------------------------------------------------------------------------

    def before_epoch(self, epoch: int, *optimizers: Optimizer, judge: Judge | None = None) -> dict[str, Any] | None:
        """Drop filters or bring them back if this epoch begins with that.

        Parameters
        ----------
        epoch : int
            The epoch that begins, from 0.
        *optimizers : torch.optim.Optimizer
            All that train the model. Their memory of the filters concerned is set to zero.
        judge : callable, optional
            Returns the network's accuracy on validation images; called just before and just after an event.

        Returns
        -------
        dict or None
            The event, as in `events`.
        """
        self._optimizers = optimizers
        event: dict[str, Any] | None = None
        cycles = self.settings.planned_cycles
        if self._cycle is not None and epoch >= cycles[self._cycle].restore_at:
            event = self._judged(judge, lambda: self._restore(epoch))
        starting = [i for i, cycle in enumerate(cycles) if cycle.drop_at == epoch]
        if self._cycle is None and starting:
            event = self._judged(judge, lambda: self._drop(epoch, starting[0]))
        return event

    def after_backward(self) -> None:
        """Clear the gradients of dropped filters; before gradients are clipped and the optimizer's step."""
        self._held.clear_gradients()

    def after_step(self) -> None:
        """Undo what the optimizer's step and batch normalisation did to dropped filters."""
        self._held.write_back()
        self._held.clear_optimizers(self._optimizers)

    def finish(self, *optimizers: Optimizer) -> dict[str, Any] | None:
        """Bring back all filters after a training that was ended early; nothing happens where they are all there."""
        if self._cycle is None:
            return None
        self._optimizers = optimizers or self._optimizers
        return self._judged(None, lambda: self._restore(self.settings.planned_cycles[self._cycle or 0].restore_at))

    def state_dict(self) -> dict[str, Any]:
        """All that the scheme remembers between two epochs, as plain values and tensors."""
        return {
            "settings": self.settings.to_json(), "filters": dict(self.filters), "events": list(self.events),
            "cycle": self._cycle, "dropped": [list(places) for places in self._dropped],
            "old_filters": dict(self._old_filters), "old_slices": dict(self._old_slices),
            "held": self._held.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict` of an earlier process; load the model and its optimizer as well.

        Raises
        ------
        UsageError
            The state is of other settings, or of another network.
        """
        own = {"settings": self.settings.to_json(), "filters": self.filters}
        for name, value in own.items():
            differing = [key for key in {*state[name], *value} if state[name].get(key) != value.get(key)]
            if differing:
                key = sorted(differing)[0]
                rule = f"the saved training has {key} {state[name].get(key)}"
                raise UsageError("RePr", rule, got=value.get(key), fix="give the same network and settings")
        self.events = [dict(event) for event in state["events"]]
        self._cycle, self._dropped = state["cycle"], [list(places) for places in state["dropped"]]
        self._old_filters, self._old_slices = dict(state["old_filters"]), dict(state["old_slices"])
        self._held = HeldEntries.from_state(self.model, state["held"])

    # -- events --------------------------------------------------------------------------------------------

    def _judged(self, judge: Judge | None, change: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        before = None if judge is None else judge()
        with torch.no_grad():
            event = change()
        if judge is not None:
            event |= {"accuracy_before": before, "accuracy_after": judge()}
        self.events.append(event)
        return event

    def _drop(self, epoch: int, cycle: int) -> dict[str, Any]:
        entries, before = self._entries, self._overlaps({})
        self._dropped = self._chosen(epoch)
        dropped = self._dropped_filters()
        # All values are remembered before any is changed: the slices of one layer are filters of the next.
        self._old_filters = {path: entries.filters(path)[places].cpu() for path, places in dropped.items()}
        self._old_slices = entries.slices(self._dropped)
        entries.clear(self._dropped)
        self._held = entries.hold(self._dropped)
        self._held.clear_optimizers(self._optimizers)
        self._cycle = cycle
        return self._event("drop", epoch, dropped, before, self._overlaps(dropped))

    def _restore(self, epoch: int) -> dict[str, Any]:
        entries, dropped = self._entries, self._dropped_filters()
        before = self._overlaps(dropped)
        self._held.clear_optimizers(self._optimizers)
        entries.reset_normalisations(self._dropped, gain=1.0)
        # New filters are drawn last: they are to be orthogonal to the kept ones as these are from now on.
        self._write_slices(epoch)
        made = {path: self._new_filters(path, places, epoch) for path, places in dropped.items()}
        for path, places in dropped.items():
            entries.write_filters(path, places, made[path].rows)
        cosines = [self._cosines(path, places, made[path]) for path, places in dropped.items()]
        event = self._event("restore", epoch, dropped, before, self._overlaps({})) | {
            "max_cosine": max((pair[0] for pair in cosines), default=0.0),
            "max_cosine_any": max((pair[1] for pair in cosines), default=0.0),
            "constraints": {path: len(new.constraints) for path, new in made.items()},
            "default_init": {path: new.n_default for path, new in made.items()},
        }
        self._cycle, self._dropped = None, [[] for _ in self.spaces]
        self._old_filters, self._old_slices, self._held = {}, {}, HeldEntries(self.model, {})
        return event

    def _chosen(self, epoch: int) -> list[list[int]]:
        """Channels of each space to drop: each scored by the mean over the filters that write it."""
        settings, filters = self.settings, {path: self._entries.filters(path) for path in self.filters}
        overlap = {path: overlaps(rows, settings.metric).cpu() for path, rows in filters.items()}
        dead = {path: dead_filters(rows).cpu() for path, rows in filters.items()}
        return choose_dropped(
            [mean_by_channel(overlap, space) for space in self.spaces],
            [mean_by_channel(dead, space) == 1 for space in self.spaces],
            settings.drop, min_keep=settings.min_keep, order=settings.order,
            generator=seeds.generator(settings.seed, "repr", "order", epoch),
        )  # fmt: skip

    def _dropped_filters(self) -> dict[str, list[int]]:
        """Ascending numbers of the dropped filters by layer."""
        return {path: places.tolist() for path, places in self._entries.places("writers", self._dropped).items()}

    def _event(
        self, kind: str, epoch: int, dropped: dict[str, list[int]], before: dict[str, torch.Tensor],
        after: dict[str, torch.Tensor],
    ) -> dict[str, Any]:  # fmt: skip
        return {
            "event": kind, "epoch": epoch, "cycle": self._cycle, "dropped": dropped,
            "overlap_before": _mean(torch.cat(list(before.values()))),
            "overlap_after": _mean(torch.cat(list(after.values()))),
            "overlap": {path: [_mean(before[path]), _mean(after[path])] for path in self.filters},
        }  # fmt: skip

    def _write_slices(self, epoch: int) -> None:
        """The weights with which filters that stayed read the channels that come back; zero is what they are."""
        if self.settings.next_slice == "zero":
            return
        for path, columns in self._entries.places("readers", self._dropped).items():
            new = self._old_slices[path]
            if self.settings.next_slice == "init":
                generator = seeds.generator(self.settings.seed, "repr", "next", path, epoch)
                bound = self._entries.fan_in(path) ** -0.5
                new = torch.empty(new.shape).uniform_(-bound, bound, generator=generator)
            self._entries.write_slice(path, columns, new)

    def _new_filters(self, path: str, places: Sequence[int], epoch: int) -> NewFilters:
        rows = self._entries.filters(path).cpu().double()
        rows[list(places)] = self._old_filters[path].double()
        generator = seeds.generator(self.settings.seed, "repr", "filters", path, epoch)
        return reinitialise(rows, places, generator, method=self.settings.method, scale=self.settings.scale)

    def _cosines(self, path: str, places: Sequence[int], made: NewFilters) -> tuple[float, float]:
        """Largest |cos| between new filters and their constraints; and all other filters, and those they replace."""
        rows = self._entries.filters(path).cpu()
        new = rows[list(places)][: len(places) - made.n_default]
        kept = [f for f in range(len(rows)) if f not in set(places)]
        among = max((largest_cosine(new[i : i + 1], new[i + 1 :]) for i in range(len(new))), default=0.0)
        others = max(largest_cosine(new, rows[kept]), largest_cosine(new, self._old_filters[path]), among)
        return largest_cosine(new, made.constraints), others

    def _overlaps(self, without: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
        """Overlaps of the filters that are there and have weights, by layer."""
        found = {}
        for path, width in self.filters.items():
            there = [f for f in range(width) if f not in set(without.get(path, ()))]
            found[path] = live_overlaps(self._entries.filters(path)[there], self.settings.metric).cpu()
        return found

    def _check_filters(self, input_shape: Sequence[int], leaves: Iterable[str]) -> None:
        n = sum(space.width for space in self.spaces)
        if n == 0:
            why = next((f" ({path} {why})" for path, why in self.left_out.items()), "")
            rule = f"must have a convolution whose filters can be dropped{why}"
            raise UsageError("network", rule, fix=_way_out(self.model, input_shape, leaves))
        drop, min_keep = self.settings.drop, self.settings.min_keep
        if share_of(n, drop) == 0:
            raise UsageError("drop", f"must drop at least one of {n} filters", got=drop, fix="raise it")
        if all(least_kept(space.width, min_keep) == space.width for space in self.spaces):
            raise UsageError("min_keep", "must leave a filter that can be dropped", got=min_keep, fix="lower it")


def _mean(values: torch.Tensor) -> float:
    """The mean; 0 of nothing."""
    return float(values.mean()) if len(values) else 0.0


def _way_out(model: nn.Module, input_shape: Sequence[int], leaves: Iterable[str]) -> str:
    """The fewest further layers that have filters to drop, as arguments; another network where there are none."""
    for more in ({"first": True}, {"coupled": True}, {"first": True, "coupled": True}):
        if droppable_spaces(model, input_shape, leaves=leaves, **more)[0]:
            return f"give {' and '.join(f'{name}=True' for name in more)}"
    return "train another network"
