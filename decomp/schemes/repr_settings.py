"""Settings of RePr training, checked when made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from decomp.errors import UsageError, check_choice
from decomp.schemes.drop_cycles import Cycle, drop_cycles

ORDERS = ("overlap", "reversed", "random")
METHODS = ("orthogonal", "qr", "random")
SCALES = ("norm", "clip")
NEXT_SLICES = ("zero", "keep", "init")


@dataclass(frozen=True)
class ReprSettings:
    """Settings of :class:`decomp.schemes.repr_training.RePr`.

    Attributes
    ----------
    epochs : int
        Of the whole training.
    s1, s2 : int
        Epochs of the full network before each drop, and of the smaller network after it.
    drop : float
        Share of all rankable filters that is dropped, between 0 and 1.
    cycles : int
        At most so many; as many as fit where there is room for fewer.
    min_keep : float
        Share of each layer's filters that is never dropped; one filter always stays.
    first, coupled : bool
        See :func:`decomp.schemes.droppable_channels.droppable_spaces`.
    metric : {'absolute', 'signed'}
        See :func:`decomp.criteria.overlap.filter_overlap`.
    order : {'overlap', 'reversed', 'random'}
        See :func:`decomp.schemes.filter_ranking.choose_dropped`.
    method, scale : str
        See :func:`decomp.schemes.orthogonal_filters.reinitialise`.
    next_slice : {'zero', 'keep', 'init'}
        Weights with which the following layers read a filter that comes back. 'zero': none, so that the network's
        function does not change at that moment; 'keep': those from before the drop; 'init': new random ones.
    seed : int

    Raises
    ------
    UsageError
        A value is out of range, or not even one cycle fits.
    """

    epochs: int
    s1: int = 20
    s2: int = 10
    drop: float = 0.3
    cycles: int = 3
    min_keep: float = 0.1
    first: bool = False
    coupled: bool = False
    metric: str = "absolute"
    order: str = "overlap"
    method: str = "orthogonal"
    scale: str = "norm"
    next_slice: str = "zero"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "s1", "s2", "cycles"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(name, "must be a whole number of at least 1", got=value)
        for name, rule, lowest in (
            ("drop", "must be a number between 0 and 1, both excluded", 1e-300),
            ("min_keep", "must be a number in 0..1 (1 excluded)", 0.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value < 1:
                raise UsageError(name, rule, got=value)
        for name, possible in (
            ("order", ORDERS), ("method", METHODS), ("scale", SCALES), ("next_slice", NEXT_SLICES),
        ):  # fmt: skip
            check_choice(name, getattr(self, name), possible)
        if not self.planned_cycles:
            least = self.s1 + self.s2 + 1
            rule = f"must be at least {least} for one cycle (s1 {self.s1} + s2 {self.s2}) and a full epoch after it"
            raise UsageError("epochs", rule, got=self.epochs, fix="lower s1 or s2, or train longer")

    @property
    def planned_cycles(self) -> tuple[Cycle, ...]:
        """The cycles of the training."""
        return drop_cycles(self.epochs, self.s1, self.s2, self.cycles)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return dict(vars(self))
