"""Options of ``prune`` and ``sensitivity``."""

from __future__ import annotations

from dataclasses import dataclass

from decomp.allocation.plan import COSTS
from decomp.criteria.names import CRITERIA, NORMALISATION_OF, NORMALISATIONS, RANKINGS
from decomp.errors import UsageError
from decomp.runtimes.names import LAYOUTS, RUNTIMES

from . import parse
from .options import StageOptions, checked_field, flag_field, name_list, settle_latency

SCORINGS = ("greedy", "independent")
#: Values of dropped channels that the biases of their readers take over.
BIASES = ("constant", "mean", "none")


@dataclass(frozen=True)
class PruneOptions(StageOptions):
    """Options of ``prune`` that decide its result; see :func:`decomp.pipelines.stages.prune.prune`.

    ``keep`` is the digest of a plan that was given as a file; it decides the channels, and the options that only serve
    to choose them are then None or their defaults. ``ranking`` and ``normalise`` go by the criterion where they are not
    given.
    """

    criterion: str = checked_field(parse.choice("--criterion", CRITERIA), "l1")
    speedup: float | None = checked_field(parse.speedup, None, optional=True)
    ratio: float | None = checked_field(parse.share_below_one("--ratio"), None, optional=True)
    keep: str | None = None
    cost: str = checked_field(parse.choice("--cost", COSTS), "macs")
    ranking: str | None = checked_field(parse.choice("--ranking", RANKINGS), None, optional=True)
    normalise: str | None = checked_field(parse.choice("--normalise", NORMALISATIONS), None, optional=True)
    floor: float | None = checked_field(parse.number("--floor", float, 0, most=1), None, optional=True)
    cap: float = checked_field(parse.number("--cap", float, 0, most=1), 1.0)
    scoring: str = checked_field(parse.choice("--scoring", SCORINGS), "greedy")
    multiple: int = checked_field(parse.number("--multiple", int, 1), 1)
    skip: tuple[str, ...] = checked_field(name_list("--skip"), ())
    coupled: bool = flag_field("--coupled", False)
    remove_branches: bool = flag_field("--remove-branches", False)
    bias: str = checked_field(parse.choice("--bias", BIASES), "constant")
    recalibrate_bn: bool = flag_field("--recalibrate-bn", False)
    seed: int = checked_field(parse.number("--seed", int, -(2**63)), 0)
    latency_batch: int | None = checked_field(parse.number("--batch-size", int, 1), 64, optional=True)
    latency_layout: str | None = checked_field(parse.choice("--layout", LAYOUTS), "contiguous", optional=True)
    runtime: str | None = checked_field(parse.choice("--runtime", tuple(RUNTIMES)), None, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        targets = {"--speedup": self.speedup, "--ratio": self.ratio, "--keep": self.keep}
        given = [name for name, value in targets.items() if value is not None]
        if len(given) != 1:
            rule = "one of --speedup, --ratio and --keep is needed" if not given else "only one of these can be given"
            fix = "give for example --speedup 2x" if not given else "leave the others out"
            raise UsageError("prune", rule, got=" and ".join(given) or None, fix=fix)
        if self.ranking is None and self.keep is None:
            object.__setattr__(self, "ranking", "global" if self.criterion == "bn-scale" else "layer")
        if self.normalise is None and self.keep is None:
            object.__setattr__(self, "normalise", NORMALISATION_OF[self.criterion])
        settle_latency(self, self.cost == "latency" and self.speedup is not None)


@dataclass(frozen=True)
class SensitivityOptions(StageOptions):
    """Options of ``sensitivity``; see :func:`decomp.pipelines.stages.sensitivity.sensitivity`."""

    criterion: str = checked_field(parse.choice("--criterion", CRITERIA), "l1")
    ratios: tuple[float, ...] = checked_field(parse.ratios, (0.1, 0.3, 0.5, 0.7, 0.9))
    coupled: bool = flag_field("--coupled", False)
    seed: int = checked_field(parse.number("--seed", int, -(2**63)), 0)
